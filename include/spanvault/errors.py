"""The one error tree.

::

    SpanvaultError
    ├── Retryable            trying again may help: network, throttling, lock and wait limits
    │   └── Busy             somebody else holds what is needed; wait longer before the next try
    ├── Permanent            trying again gives the same answer
    │   ├── BadInput         the request is wrong; exit code 2
    │   │   ├── NotFound     what it names does not exist
    │   │   └── AlreadyExists  what it would create is there
    │   ├── AlreadyCovered   the backup that is asked for is there under another name; nothing is missing
    │   ├── Refused          allowed to ask, not allowed to do: it would lose or mix data
    │   │   ├── Locked       the object store keeps the object until its lock ends
    │   │   └── KeyMismatch  the backup's encryption and the given key do not fit
    │   ├── Damaged          stored bytes are not what the manifest says
    │   └── BrokenChain      history has a gap; a new full backup is needed
    └── StateUnknown         the last call may or may not have worked; read the state before trying again

The *type* answers "try again, stop, or look first?"; the message is one sentence for a person: what is wrong, where,
and what to do.
"""

from __future__ import annotations

from typing import ClassVar


class SpanvaultError(Exception):
    """Base of all errors that Spanvault raises on purpose; its text is one sentence for a person."""

    exit_code: ClassVar[int] = 1
    # The database's own error code, where the error came from one.
    sqlstate: str | None = None


class Retryable(SpanvaultError):
    """The operation failed for a reason that may pass."""


class Busy(Retryable):
    """Another session or run holds what is needed right now."""


class Permanent(SpanvaultError):
    """The operation fails again if tried again."""


class BadInput(Permanent):
    """The request itself is wrong: a URI, an option, a name, a statement."""

    exit_code = 2


class NotFound(BadInput):
    """Something the request names does not exist."""


class AlreadyExists(BadInput):
    """Something the request would create exists; nothing was overwritten."""


class AlreadyCovered(Permanent):
    """What the request would back up is backed up already."""


class Refused(Permanent):
    """The request is understood and not done, because doing it could lose or mix data."""


class Locked(Refused):
    """An object that is protected from deletion, by an object lock or a legal hold."""


class KeyMismatch(Refused):
    """A backup is encrypted and no fitting key is given, or a key is given and the backup is not encrypted."""


class Damaged(Permanent):
    """Stored bytes are not what was written."""


class BrokenChain(Permanent):
    """The source's history has a gap; only a new full backup helps."""


class StateUnknown(SpanvaultError):
    """A write's outcome is unknown; read the state before trying again."""
