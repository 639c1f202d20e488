"""Fingerprints that PostgreSQL computes itself: of a table's rows, and of the catalogs."""

from __future__ import annotations

from spanvault.database.postgres.catalog import Query
from spanvault.database.postgres.quoting import qualified


def fingerprint_sql(schema: str, table: str) -> str:
    """A query for (rows, hash) of a table's own rows: count(*) and the sum of 64-bit hashes of each row's text.

    The same rows give the same answer on any server with the same version, in any order; column order counts.
    """
    return _fingerprint(f"ONLY {qualified(schema, table)}")


def query_fingerprint_sql(query: str) -> str:
    """The same of the rows that a query gives."""
    return _fingerprint(f"({query})")


def _fingerprint(rows: str) -> str:
    return f"SELECT count(*)::int8, coalesce(sum(pg_catalog.hashtextextended(t::text, 0)::numeric), 0)::text FROM {rows} AS t"


_OWN_PUBLICATIONS = "(SELECT oid FROM pg_catalog.pg_publication WHERE pubname ~ '^spanvault_')"
_TEMPORARY = "(SELECT oid FROM pg_catalog.pg_namespace WHERE nspname ~ '^pg_(toast_)?temp_')"
_TEMPORARY_CLASS = f"(SELECT oid FROM pg_catalog.pg_class WHERE relnamespace IN {_TEMPORARY})"

_OWN_DATABASE = "(SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())"
_OF_DATABASE = f"classoid = 'pg_catalog.pg_database'::pg_catalog.regclass AND objoid = {_OWN_DATABASE}"

_VERSION = "c.xmin::text || c.ctid::text"
# Without what TRUNCATE, VACUUM and ANALYZE set, and what follows from other catalogs.
_VERSIONS = {
    "pg_class": (
        "(pg_catalog.to_jsonb(c) - '{relfilenode,relpages,reltuples,relallvisible,relallfrozen,relfrozenxid,relminmxid,"
        "relhasindex,relhasrules,relhastriggers,relhassubclass}'::text[])::text"
    )
}

# Catalogs whose rows say what a dump of the schema says, each with what leaves sessions' temporary objects out.
_CATALOGS: dict[str, str] = {
    "pg_class": f"relnamespace NOT IN {_TEMPORARY}",
    "pg_attribute": f"attnum > 0 AND attrelid NOT IN {_TEMPORARY_CLASS}",
    "pg_attrdef": f"adrelid NOT IN {_TEMPORARY_CLASS}",
    "pg_constraint": f"connamespace NOT IN {_TEMPORARY}",
    "pg_index": f"indrelid NOT IN {_TEMPORARY_CLASS}",
    "pg_inherits": f"inhrelid NOT IN {_TEMPORARY_CLASS}",
    "pg_trigger": f"tgrelid NOT IN {_TEMPORARY_CLASS}",
    "pg_rewrite": f"ev_class NOT IN {_TEMPORARY_CLASS}",
    "pg_sequence": f"seqrelid NOT IN {_TEMPORARY_CLASS}",
    "pg_type": f"typnamespace NOT IN {_TEMPORARY}",
    "pg_proc": f"pronamespace NOT IN {_TEMPORARY}",
    # Which column a sequence belongs to, and what belongs to an extension, stands nowhere else.
    "pg_depend": (
        "deptype IN ('e', 'x') OR deptype = 'a' AND classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND refobjsubid > 0"
        f" AND refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND objid NOT IN {_TEMPORARY_CLASS}"
    ),
    "pg_namespace": "nspname !~ '^pg_(toast_)?temp_'",
    "pg_description": f"classoid <> 'pg_catalog.pg_publication'::pg_catalog.regclass OR objoid NOT IN {_OWN_PUBLICATIONS}",
    "pg_publication": f"oid NOT IN {_OWN_PUBLICATIONS}",
    "pg_publication_rel": f"prpubid NOT IN {_OWN_PUBLICATIONS}",
    "pg_publication_namespace": f"pnpubid NOT IN {_OWN_PUBLICATIONS}",
    # The database's own properties and settings, which are in its dump.
    "pg_database": f"oid = {_OWN_DATABASE}",
    "pg_db_role_setting": f"setdatabase = {_OWN_DATABASE}",
    "pg_shdescription": _OF_DATABASE,
    "pg_shseclabel": _OF_DATABASE,
    **dict.fromkeys(
        (
            "pg_aggregate", "pg_am", "pg_amop", "pg_amproc", "pg_cast", "pg_collation", "pg_conversion", "pg_default_acl",
            "pg_enum", "pg_event_trigger", "pg_extension", "pg_foreign_data_wrapper", "pg_foreign_server",
            "pg_foreign_table", "pg_init_privs", "pg_language", "pg_opclass", "pg_operator", "pg_opfamily",
            "pg_partitioned_table",
            "pg_policy", "pg_range", "pg_seclabel", "pg_statistic_ext", "pg_subscription", "pg_transform", "pg_ts_config",
            "pg_ts_config_map", "pg_ts_dict", "pg_ts_parser", "pg_ts_template", "pg_user_mapping",
        ),
        "true",
    ),
}  # fmt: skip


def catalog_fingerprint(query: Query) -> str:
    """A digest of the catalogs as the session's snapshot shows them; any DDL changes it, data changes do not.

    (xmin, ctid) name a row's version. Of pg_class the columns count instead, as every TRUNCATE changes the row, and some
    applications truncate a table every second. VACUUM FULL and REFRESH change it too: false alarms that a retry absorbs.
    Costs some 30 ms. Catalogs that the server does not have, or that the role may not read (nor may its pg_dump),
    are left out.
    """
    names = ", ".join(f"'{name}'" for name in _CATALOGS)
    readable = query(
        "SELECT relname::text FROM pg_catalog.pg_class WHERE relnamespace = 'pg_catalog'::pg_catalog.regnamespace"
        f" AND relname IN ({names}) AND pg_catalog.has_table_privilege(oid, 'SELECT')"
    )
    found = {row[0] for row in readable}
    pieces = [
        f"SELECT '{name}' AS c, count(*) AS n, sum(pg_catalog.hashtextextended({_VERSIONS.get(name, _VERSION)}, 0)::numeric) AS h"
        f" FROM pg_catalog.{name} c WHERE {condition}"
        for name, condition in _CATALOGS.items()
        if name in found
    ]
    rows = query(
        "SELECT pg_catalog.md5(pg_catalog.string_agg(c || ':' || n || ':' || coalesce(h, 0), ',' ORDER BY c)) FROM ("
        + " UNION ALL ".join(pieces)
        + ") AS catalogs"
    )
    return str(rows[0][0])
