"""README.txt of a collection, and the command that restores from it."""

from __future__ import annotations

import contextlib
import re

from spanvault.collection.layout import README_KEY
from spanvault.errors import AlreadyExists
from spanvault.storage.base import Storage

_TEXT = """\
This is a Spanvault collection: backups of one PostgreSQL cluster.

To restore the newest backup of the whole cluster into an empty one:

    {restore}

To see what is here:

    {show}

Replace what is in angle brackets, and "redacted" parts of a URI by the real secret. A copy of this folder is as good
as the folder: give its own URI instead.

    COLLECTION.json        which collection and which cluster
    metadata/index/        a cache for listings; it can be rebuilt
    YYYY/MM/DD-HHMMSS.CC/  one backup: chain/000000.json is its manifest, which names every other file of it

Data files are Parquet; docs/format.md of Spanvault says how to read a backup without Spanvault. Never change, rename or
delete single files: a backup is whole or of no use.
"""


def restore_command(uri: str, subdir: str = "LATEST") -> str:
    """The shell command that restores a whole backup; `uri` as `display_uri` has it."""
    source = "LATEST" if subdir == "LATEST" else f"'{subdir}'"
    return _command(f"RESTORE FROM {source} IN {_quoted(uri)}")


def write_readme(storage: Storage) -> None:
    """Write README.txt if it is not there."""
    text = _TEXT.format(
        restore=restore_command(storage.display_uri), show=_command(f"SHOW BACKUPS IN {_quoted(storage.display_uri)}")
    )
    with contextlib.suppress(AlreadyExists):
        storage.put(README_KEY, text.encode(), create_only=True)


def _command(statement: str) -> str:
    escaped = re.sub(r'([\\"$`])', r"\\\1", statement)
    return f'spanvault sql --url postgresql://<user>@<host>/postgres "{escaped}"'


def _quoted(uri: str) -> str:
    return "'" + uri.replace("'", "''") + "'"
