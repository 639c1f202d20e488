"""Where objects lie: in the tablespace that they had where the target has one of that name, else in the database's own. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence

from spanvault.database.postgres.archive import Entry
from spanvault.database.postgres.quoting import quote
from spanvault.model.sentences import few

_SHOWN = 5
_OF_DATABASE = re.compile(r' TABLESPACE = "((?:[^"]|"")+)";\s*(?:ALTER DATABASE |\Z)')


def usable_tablespace(name: str | None, there: Collection[str]) -> str | None:
    """The name if the target has it."""
    return name if name in there else None


def database_tablespace(entries: Iterable[Entry]) -> str | None:
    """The tablespace that the database itself had, if another than PostgreSQL's default."""
    for entry in entries:
        if entry.kind == "DATABASE" and (found := _OF_DATABASE.search(entry.sql)):
            return found[1].replace('""', '"')
    return None


def in_tablespace(entry: Entry, there: Collection[str]) -> str:
    """SQL that makes the entry where it was, within a transaction."""
    name = usable_tablespace(entry.tablespace, there)
    if name is None:
        return entry.sql
    return f"SET LOCAL default_tablespace = {quote(name)};\n{entry.sql}\n;SET LOCAL default_tablespace = '';"


def all_there(entries: Iterable[Entry], there: Collection[str]) -> bool:
    """Whether the target has every tablespace of the entries."""
    return all(entry.tablespace is None or entry.tablespace in there for entry in entries)


def elsewhere(database: str | None, entries: Sequence[Entry], there: Collection[str]) -> Iterator[str]:
    """A sentence for each tablespace that the target does not have; `database` is the database's own."""
    missing = dict.fromkeys(one.tablespace for one in entries if one.tablespace and one.tablespace not in there)
    for name in missing:
        shown = few([one.display for one in entries if one.tablespace == name], _SHOWN)
        yield f"The target has no tablespace {name} that may be used: made in the database's own are {shown}."
    if missing:
        yield "All indexes are made in the database's own tablespace, as that of some is missing: move them with ALTER INDEX."
    if database is not None and database not in there:
        yield f"The target has no tablespace {database} that may be used: the database is made in the default one."
