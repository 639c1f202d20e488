"""Tables whose rows are in no backup: by clusters.yaml, else by a word in a comment, looked for as that of placement is.

Their definitions are backed up, their rows are neither read nor published. What points to them by a foreign key could not be
restored, so such a foreign key is refused, as in CockroachDB
(https://www.cockroachlabs.com/docs/stable/take-full-and-incremental-backups#exclude-a-tables-data-from-backups).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from spanvault.config.clusters import Cluster
from spanvault.database.postgres.catalog import Query
from spanvault.database.postgres.comments import comments_of
from spanvault.errors import BadInput, Refused
from spanvault.model.schema import Table
from spanvault.model.sentences import few

WORD = "spanvault.exclude_data"
_WORD = re.compile(rf"(?<!\S){re.escape(WORD)}(?:=(\S*))?(?!\S)")


def with_exclusions(query: Query, cluster: Cluster, database: str, tables: Iterable[Table]) -> tuple[Table, ...]:
    """The tables of the current database, those marked whose rows are excluded.

    Raises BadInput for a comment that cannot be read, Refused for a foreign key from a table with rows to one without.
    """
    tables = tuple(tables)
    comments = comments_of(query)
    marked = {table.oid for table in tables if _is_excluded(cluster, database, table, comments.get(table.oid, ()))}
    if not marked:
        return tables
    _require_no_reference(query, [table for table in tables if table.capture != "none" and table.oid not in marked], marked)
    return tuple(
        table.model_copy(update={"excluded": True, "capture": "none"}) if table.oid in marked else table for table in tables
    )


def phrases(tables: Iterable[Table]) -> tuple[str, ...]:
    """What a backup does not hold because it is excluded."""
    names = [table.qualified for table in tables if table.excluded]
    return (f"the rows of {few(names, 3)}, which are excluded ({WORD})",) if names else ()


def _is_excluded(cluster: Cluster, database: str, table: Table, comments: Iterable[str]) -> bool:
    if table.of_large_objects:
        return False
    if cluster.excludes(database, table.schema_name, table.name):
        return True
    found = next((match for text in comments if (match := _WORD.search(text))), None)
    if found is None or found[1] in {None, "true", "false"}:
        return found is not None and found[1] != "false"
    raise BadInput(
        f"The comment that excludes the rows of {table.qualified} of {database!r} cannot be read: write {WORD}, {WORD}=true or"
        f" {WORD}=false, not {found[0]!r}."
    )


def _require_no_reference(query: Query, others: Sequence[Table], excluded: set[int]) -> None:
    """Raise Refused if a table with rows refers to one without: those foreign keys could not be made after a restore. One that
    is not validated can: PostgreSQL takes the rows that are there as they are."""
    if not others:
        return
    rows = query(
        f"""SELECT f.conname, f.conrelid::int8, n.nspname || '.' || t.relname
            FROM pg_catalog.pg_constraint f JOIN pg_catalog.pg_class t ON t.oid = f.confrelid
            JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
            WHERE f.contype = 'f' AND f.convalidated AND f.confrelid IN ({", ".join(map(str, sorted(excluded)))})
            ORDER BY 1, 2"""
    )
    names = {table.oid: table.qualified for table in others}
    for constraint, oid, target in rows:
        if oid in names:
            raise Refused(
                f"The rows of {target} are excluded from backups ({WORD}), and the foreign key {constraint} of {names[oid]} needs"
                f" them: a restore could not make it. Exclude the rows of {names[oid]} too, or let {target} be backed up."
            )
