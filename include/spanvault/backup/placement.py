"""Where tables belong: by clusters.yaml, else by a word in a comment, of the table, of the tables that it is a partition of,
the nearest first, or of its schema. PostgreSQL keeps and dumps comments, and has no other place for a word of somebody's."""

from __future__ import annotations

import re
from collections.abc import Iterable

from spanvault.backup.captured import query_of
from spanvault.config.clusters import Cluster
from spanvault.database.postgres.comments import comments_of
from spanvault.database.postgres.connect import connect
from spanvault.errors import BadInput
from spanvault.model.locality import Locality
from spanvault.model.manifest import PlannedDatabase
from spanvault.model.schema import Table

TableKey = tuple[str, int]

_WORD = re.compile(r"(?<!\S)spanvault\.locality=(\S+)")


def table_localities(cluster: Cluster, databases: Iterable[PlannedDatabase]) -> dict[TableKey, Locality]:
    """Where the tables belong that are told to belong somewhere, by database and OID. Raises BadInput for a comment whose
    locality cannot be read."""
    found: dict[TableKey, Locality] = {}
    for planned in databases:
        name = planned.database.name
        with connect(cluster.primary, name, purpose="plan") as connection:
            comments = comments_of(query_of(connection))
        for table in planned.database.tables:
            place = cluster.placed(name, table.schema_name, table.name) or _told(name, table, comments.get(table.oid, ()))
            if place is not None:
                found[name, table.oid] = place
    return found


def _told(database: str, table: Table, comments: Iterable[str]) -> Locality | None:
    word = next((match[1] for text in comments if (match := _WORD.search(text))), None)
    try:
        return Locality.parse(word) if word is not None else None
    except BadInput as error:
        raise BadInput(f"The comment that places the table {table.qualified} of {database!r} cannot be read: {error}") from None
