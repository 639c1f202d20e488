"""Whether a foreign key of a backup fits a table that the target has already. Pure: pg_dump's SQL in, words out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from spanvault.database.postgres.archive import Entry
from spanvault.restore.table_sql import items

_REFERENCES = re.compile(r'\sREFERENCES "(?:[^"]|"")+"\."(?:[^"]|"")+"\((?P<columns>[^()]*)\)')
_UNIQUE = re.compile(r"\s(?:PRIMARY KEY|UNIQUE(?: NULLS NOT DISTINCT)?) \((?P<columns>[^()]*)\)(?! DEFERRABLE)")
_UNIQUE_INDEX = re.compile(
    r"\ACREATE UNIQUE INDEX .* USING \"?btree\"? \((?P<columns>(?:\"(?:[^\"]|\"\")+\"(?:, )?)+)\)(?: INCLUDE \([^()]*\))?"
    r"(?: NULLS NOT DISTINCT)?(?: WITH \([^()]*\))?;",
)
_NAME = re.compile(r'"((?:[^"]|"")+)"')
_WHOLE_NUMBERS = frozenset({"smallint", "integer", "bigint"})


def misfit(foreign_key: Entry, referenced: Entry, present: Iterable[Entry]) -> str:
    """Why `foreign_key`, which refers to `referenced` of the backup, cannot refer to the table of its name among `present`;
    empty if it can. Completes `which ...`."""
    entries = [entry for entry in present if entry.schema == referenced.schema]
    table = next((one for one in entries if (one.kind, one.name) == ("TABLE", referenced.name)), None)
    found = _REFERENCES.search(foreign_key.sql)
    if table is None or found is None:
        return "is no table"
    there, here = _types(table), _types(referenced)
    for name in (wanted := _names(found["columns"])):
        if name not in there:
            return f"has no column {name}"
        if there[name] != here.get(name) and not {there[name], here.get(name)} <= _WHOLE_NUMBERS:
            return f"has {name} as {there[name]} and not {here.get(name)}"
    if not any(set(key) == set(wanted) for key in _keys(referenced.name, entries)):
        return f"has no unique key on ({', '.join(wanted)})"
    return ""


def _types(table: Entry) -> dict[str, str]:
    return {item.name: item.type_name.replace('"', "") for item in items(table.sql) if not item.is_constraint}


def _keys(table: str, entries: Iterable[Entry]) -> Iterator[list[str]]:
    for entry in entries:
        of_table = entry.kind == "CONSTRAINT" and entry.name.startswith(f"{table} ")
        of_index = entry.kind == "INDEX" and f'."{table.replace(chr(34), chr(34) * 2)}" USING' in entry.sql
        found = _UNIQUE.search(entry.sql) if of_table else _UNIQUE_INDEX.search(entry.sql) if of_index else None
        if found:
            yield _names(found["columns"])


def _names(columns: str) -> list[str]:
    return [name.replace('""', '"') for name in _NAME.findall(columns)]
