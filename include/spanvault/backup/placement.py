"""Where tables belong: by clusters.yaml, else by a word in a comment, of the table, of the tables that it is a partition of,
the nearest first, or of its schema. PostgreSQL keeps and dumps comments, and has no other place for a word of somebody's."""

from __future__ import annotations

import re
from collections.abc import Iterable

from spanvault.backup.captured import query_of
from spanvault.config.clusters import Cluster
from spanvault.database.postgres.connect import connect
from spanvault.errors import BadInput
from spanvault.model.locality import Locality
from spanvault.model.manifest import PlannedDatabase
from spanvault.model.schema import Table

TableKey = tuple[str, int]

_WORD = re.compile(r"(?<!\S)spanvault\.locality=(\S+)")
_COMMENTS = """
SELECT c.oid::int8,
       array_remove(ARRAY[pg_catalog.obj_description(c.oid, 'pg_class')]
         || ARRAY(SELECT pg_catalog.obj_description(a.relid, 'pg_class')
                  FROM pg_catalog.pg_partition_ancestors(c.oid) WITH ORDINALITY a (relid, place) WHERE a.place > 1
                  ORDER BY a.place)
         || pg_catalog.obj_description(c.relnamespace, 'pg_namespace'), NULL)
FROM pg_catalog.pg_class c WHERE c.relkind = 'r'"""


def table_localities(cluster: Cluster, databases: Iterable[PlannedDatabase]) -> dict[TableKey, Locality]:
    """Where the tables belong that are told to belong somewhere, by database and OID. Raises BadInput for a comment whose
    locality cannot be read."""
    found: dict[TableKey, Locality] = {}
    for planned in databases:
        name = planned.database.name
        with connect(cluster.primary, name, purpose="plan") as connection:
            comments = {int(oid): texts for oid, texts in query_of(connection)(_COMMENTS)}
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
