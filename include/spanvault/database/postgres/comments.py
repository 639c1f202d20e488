"""What comments say of tables: PostgreSQL keeps and dumps them, and has no other place for a word of somebody's."""

from __future__ import annotations

from spanvault.database.postgres.catalog import Query

_COMMENTS = """
SELECT c.oid::int8,
       array_remove(ARRAY[pg_catalog.obj_description(c.oid, 'pg_class')]
         || ARRAY(SELECT pg_catalog.obj_description(a.relid, 'pg_class')
                  FROM pg_catalog.pg_partition_ancestors(c.oid) WITH ORDINALITY a (relid, place) WHERE a.place > 1
                  ORDER BY a.place)
         || pg_catalog.obj_description(c.relnamespace, 'pg_namespace'), NULL)
FROM pg_catalog.pg_class c WHERE c.relkind = 'r'"""


def comments_of(query: Query) -> dict[int, list[str]]:
    """The comments that say something of the tables of the current database, by OID, nearest first."""
    return {int(oid): texts for oid, texts in query(_COMMENTS)}
