"""What a verification found. Three outcomes: a backup that could not be looked at is neither good nor bad."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from spanvault.errors import BrokenChain, Damaged, Permanent, Retryable, SpanvaultError
from spanvault.model.base import Value
from spanvault.model.sentences import few

Level = Literal["check_files", "checksums", "schema_only", "verify_backup_table_data", "collection"]
# Of one backup; `collection` binds them all.
BACKUP_LEVELS = ("check_files", "checksums", "schema_only", "verify_backup_table_data")
Outcome = Literal["pass", "fail", "could not verify"]

SHOWN = 10  # of each kind of finding; a lost bucket would otherwise be told file by file


class VerificationResult(Value):
    """One verification. `failures` and `unverified` hold the first sentences of each kind, `failure_count` and
    `unverified_count` how many there were, `permanent` whether one of the latter stays however often it is tried;
    `missing` the first keys that are not there; `notes` what is worth knowing and harms nothing. `objects`, `bytes` and
    `rows` are what was looked at; `seconds` how long it took."""

    level: Level
    outcome: Outcome
    objects: int
    bytes: int
    rows: int = 0
    failure_count: int = 0
    failures: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unverified_count: int = 0
    unverified: tuple[str, ...] = ()
    permanent: bool = False
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    def require_pass(self) -> None:
        """Raises Damaged if the verification failed; Permanent or Retryable if it could not be done, for a reason that
        stays (a newer format, a missing privilege) or may pass. The sentence says why."""
        if self.outcome == "fail":
            found = _missing_sentence(self.missing) if self.missing else _joined(self.failures, self.failure_count)
            besides = (
                f"\nNot all could be looked at: {_joined(self.unverified, self.unverified_count)}" if self.unverified else ""
            )
            raise Damaged(f"{found}{_ADVICE if self.missing else f' {_ADVICE.strip()}'}{besides}")
        if self.outcome == "could not verify":
            kind = Permanent if self.permanent else Retryable
            raise kind("The backup could not be verified: " + _joined(self.unverified, self.unverified_count))


class Findings:
    """Collects what a verification sees. Methods may be called from several threads."""

    def __init__(self, level: Level) -> None:
        self._level = level
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._objects = self._bytes = self._rows = 0
        self._failure_count = self._unverified_count = 0
        self._permanent = False
        self._failures: list[str] = []
        self._missing: list[str] = []
        self._unverified: list[str] = []
        self._notes: list[str] = []
        self._not_given: dict[str, dict[str, None]] = {}  # the backups, in order, by the locality

    def looked_at(self, *, bytes_: int = 0, rows: int = 0) -> None:
        """One more object was looked at."""
        with self._lock:
            self._objects += 1
            self._bytes += bytes_
            self._rows += rows

    def fail(self, sentence: str, *, missing: str | None = None) -> None:
        """The backup is damaged; of the same sentence one counts. `missing`: the key that is not there."""
        with self._lock:
            if sentence in self._failures:  # several layers may name one object
                return
            self._failure_count += 1
            _keep(self._failures, sentence)
            if missing is not None:
                _keep(self._missing, missing)

    def not_given(self, locality: str, subdir: str) -> None:
        """A backup has files of a locality whose place is not given, so they cannot be looked at; told once for each place."""
        with self._lock:
            self._not_given.setdefault(locality, {})[subdir] = None

    def note(self, sentence: str) -> None:
        """Something that harms nothing."""
        with self._lock:
            _keep(self._notes, sentence)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Turns errors into findings: damage fails the verification; anything else means that it could not be done."""
        try:
            yield
        except (Damaged, BrokenChain) as error:
            self.fail(str(error))
        except SpanvaultError as error:
            with self._lock:
                self._unverified_count += 1
                self._permanent |= isinstance(error, Permanent)
                _keep(self._unverified, str(error))

    def result(self) -> VerificationResult:
        """The verification's result so far."""
        with self._lock:
            absent = [_absent_sentence(locality, list(subdirs)) for locality, subdirs in self._not_given.items()]
            outcome: Outcome = "pass"
            if self._failure_count:
                outcome = "fail"
            elif self._unverified_count or absent:
                outcome = "could not verify"
            return VerificationResult(
                level=self._level,
                outcome=outcome,
                objects=self._objects,
                bytes=self._bytes,
                rows=self._rows,
                failure_count=self._failure_count,
                failures=tuple(self._failures),
                missing=tuple(self._missing),
                unverified_count=self._unverified_count + len(absent),
                unverified=(*absent, *self._unverified)[:SHOWN],
                permanent=self._permanent or bool(absent),
                notes=tuple(self._notes),
                seconds=time.monotonic() - self._started,
            )


def _keep(sentences: list[str], sentence: str) -> None:
    if len(sentences) < SHOWN:
        sentences.append(sentence)


# After a list of files on a line of its own.
_ADVICE = "\nPut it back from a copy of the collection; without one, restore from another backup and take a new full one."


def _missing_sentence(keys: tuple[str, ...]) -> str:
    """CockroachDB's words for `check_files`."""
    head = "The following files are missing from the backup:"
    if len(keys) >= SHOWN:
        head = "Multiple files cannot be read from the backup including:"
    return "\n\t".join([head, *keys])


def _absent_sentence(locality: str, subdirs: list[str]) -> str:
    return (
        f"The files of {locality} of {few(subdirs, 3)} were not looked at, because their place is not given: add the URI that"
        f" has, or was, COCKROACH_LOCALITY={locality}."
    )


def _joined(sentences: tuple[str, ...], count: int) -> str:
    more = f" ({count - len(sentences)} more)" if count > len(sentences) else ""
    return " ".join(sentences) + more
