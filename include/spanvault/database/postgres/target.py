"""The database that a restore writes: making it, looking whether it is empty, and what it remembers of the restore.

Until a restore is finished its target holds the schema `spanvault_restore`: which restore this is (`restores`) and which
parts are in (`units`). A part and its row there are committed together, so every part comes in exactly once, however
often and by however many processes it is tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from spanvault.config.clusters import Endpoint
from spanvault.database.postgres.connect import APPLICATION_NAME, connect
from spanvault.database.postgres.server import version_number
from spanvault.database.postgres.sqlstate import translated
from spanvault.errors import BadInput, Retryable, SpanvaultError
from spanvault.model.schema import Database

Connection = psycopg.Connection[TupleRow]
State = Literal["loading", "finishing", "finished"]

PROGRESS_SCHEMA = "spanvault_restore"
# Databases that hosting services keep for themselves on every cluster.
SERVICE_DATABASES = frozenset({"postgres", "rdsadmin", "azure_maintenance", "azure_sys", "cloudsqladmin"})

_LOCK_CLASS = 0x5350414E  # "SPAN": the first half of our advisory locks
_SETUP = f"""
    CREATE SCHEMA IF NOT EXISTS {PROGRESS_SCHEMA};
    CREATE TABLE IF NOT EXISTS {PROGRESS_SCHEMA}.restores (
        id text PRIMARY KEY, source text NOT NULL, made_database boolean NOT NULL, entries int8[] NOT NULL,
        state text NOT NULL, started_at timestamptz NOT NULL DEFAULT now());
    CREATE TABLE IF NOT EXISTS {PROGRESS_SCHEMA}.units (
        restore text REFERENCES {PROGRESS_SCHEMA}.restores ON DELETE CASCADE, unit text, rows int8 NOT NULL,
        PRIMARY KEY (restore, unit));
"""
_SUBSCRIPTIONS = """
    SELECT subname FROM pg_catalog.pg_subscription
    WHERE subdbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
"""
_SYSTEM_SCHEMAS = f"(nspname ~ '^pg_' OR nspname IN ('information_schema', '{PROGRESS_SCHEMA}', 'spanvault'))"
_IN_THE_WAY = f"""
    WITH own AS (
        SELECT 'schema ' || nspname AS what, n.oid AS oid, 'pg_catalog.pg_namespace'::regclass AS class
        FROM pg_catalog.pg_namespace n WHERE NOT {_SYSTEM_SCHEMAS} AND nspname <> 'public'
        UNION ALL
        SELECT 'relation ' || nspname || '.' || relname, c.oid, 'pg_catalog.pg_class'::regclass
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = relnamespace
        WHERE NOT {_SYSTEM_SCHEMAS} AND relkind NOT IN ('i', 'I', 't', 'c')
        UNION ALL
        SELECT 'function ' || nspname || '.' || proname, p.oid, 'pg_catalog.pg_proc'::regclass
        FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = pronamespace WHERE NOT {_SYSTEM_SCHEMAS}
        UNION ALL
        SELECT 'type ' || nspname || '.' || typname, t.oid, 'pg_catalog.pg_type'::regclass
        FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = typnamespace
        WHERE NOT {_SYSTEM_SCHEMAS} AND typtype IN ('e', 'd', 'r')
        UNION ALL
        SELECT 'large object ' || oid, oid, 'pg_catalog.pg_largeobject'::regclass FROM pg_catalog.pg_largeobject_metadata
    )
    SELECT what FROM own
    WHERE NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d
                      WHERE d.classid = own.class AND d.objid = own.oid AND d.deptype = 'e')
    ORDER BY what LIMIT 4
"""


@dataclass(frozen=True)
class Record:
    """An unfinished restore as its target remembers it. `entries` are the ids of the archive's entries that it makes."""

    id: str
    source: str
    made_database: bool
    entries: tuple[int, ...]
    state: State


def maintenance_connection(endpoint: Endpoint) -> Connection:
    """A session to make databases from: on the endpoint's database, or on `postgres` if that does not exist."""
    try:
        return connect(endpoint, purpose="restore")
    except BadInput:
        if endpoint.database == "postgres":
            raise
        return connect(endpoint, "postgres", purpose="restore")


def database_names(connection: Connection) -> set[str]:
    """All databases except templates."""
    rows = connection.execute("SELECT datname FROM pg_catalog.pg_database WHERE NOT datistemplate").fetchall()
    return {str(row[0]) for row in rows}


def is_superuser(connection: Connection) -> bool:
    """Whether the session's role is one."""
    return connection.execute("SELECT pg_catalog.current_setting('is_superuser')").fetchone() == ("on",)


def role_names(connection: Connection) -> frozenset[str]:
    """All roles of the server."""
    return frozenset(str(row[0]) for row in connection.execute("SELECT rolname FROM pg_catalog.pg_roles").fetchall())


def available_extensions(connection: Connection) -> frozenset[str]:
    """The extensions that can be made on the server."""
    return frozenset(str(row[0]) for row in connection.execute("SELECT name FROM pg_catalog.pg_available_extensions").fetchall())


def tablespace_names(connection: Connection) -> frozenset[str]:
    """The tablespaces that the role may make something in."""
    rows = connection.execute(
        "SELECT spcname FROM pg_catalog.pg_tablespace WHERE pg_catalog.has_tablespace_privilege(oid, 'CREATE')"
    ).fetchall()
    return frozenset(str(row[0]) for row in rows) | {"pg_default"}


def create_database(connection: Connection, like: Database, name: str, owner: str | None, tablespace: str | None = None) -> None:
    """Make an empty database with the encoding and locale of `like`.

    Raises AlreadyExists, BadInput for a missing privilege, and Permanent where this server lacks the locale.
    """
    words = [
        sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {}").format(
            sql.Identifier(name), sql.Literal(like.encoding), sql.Literal(like.collate), sql.Literal(like.ctype)
        )
    ]
    if version_number(connection) >= 150000:
        words += _locale_provider(like)
    if tablespace is not None:
        words.append(sql.SQL("TABLESPACE {}").format(sql.Identifier(tablespace)))
    if owner is not None:
        words.append(sql.SQL("OWNER {}").format(sql.Identifier(owner)))
    with translated(f"Creating the database {name!r}"):
        connection.execute(sql.SQL(" ").join(words))


def _locale_provider(like: Database) -> list[sql.Composed]:
    provider = {"c": "libc", "i": "icu", "b": "builtin"}[like.locale_provider]
    words = [sql.SQL("LOCALE_PROVIDER {}").format(sql.SQL(provider))]
    if like.locale is not None and provider != "libc":
        option = "ICU_LOCALE" if provider == "icu" else "BUILTIN_LOCALE"
        words.append(sql.SQL("{} {}").format(sql.SQL(option), sql.Literal(like.locale)))
    return words


def drop_subscriptions(connection: Connection, names: Sequence[str]) -> None:
    """Remove subscriptions without a word to their publishers: these may still serve the database that was backed up."""
    present = {str(row[0]) for row in connection.execute(_SUBSCRIPTIONS).fetchall()}
    for name in sorted(present.intersection(names)):
        with translated(f"Removing the subscription {name}"):
            identifier = sql.Identifier(name)
            connection.execute(sql.SQL("ALTER SUBSCRIPTION {} DISABLE").format(identifier))
            connection.execute(sql.SQL("ALTER SUBSCRIPTION {} SET (slot_name = NONE)").format(identifier))
            connection.execute(sql.SQL("DROP SUBSCRIPTION {}").format(identifier))


def drop_database(connection: Connection, name: str) -> None:
    """Remove a database and end its sessions; no error if it is gone."""
    with translated(f"Dropping the database {name!r}"):
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def in_the_way(connection: Connection) -> list[str]:
    """Some objects of a database that should be empty; what extensions own does not count."""
    return [str(row[0]) for row in connection.execute(_IN_THE_WAY).fetchall()]


def read_records(connection: Connection) -> list[Record]:
    """The unfinished restores into this database."""
    if connection.execute(f"SELECT to_regclass('{PROGRESS_SCHEMA}.restores')").fetchone() == (None,):
        return []
    rows = connection.execute(
        f"SELECT id, source, made_database, entries, state FROM {PROGRESS_SCHEMA}.restores ORDER BY started_at"
    ).fetchall()
    return [Record(row[0], row[1], row[2], tuple(row[3]), row[4]) for row in rows]


def find_record(connection: Connection, restore_id: str) -> Record | None:
    """This restore's record, or None."""
    return next((record for record in read_records(connection) if record.id == restore_id), None)


def remember(connection: Connection, record: Record) -> None:
    """Write the record of a restore that begins."""
    with translated("Starting the restore"), connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s, 0)", [_LOCK_CLASS])
        connection.execute(_SETUP)
        connection.execute(
            f"INSERT INTO {PROGRESS_SCHEMA}.restores (id, source, made_database, entries, state) VALUES (%s, %s, %s, %s, %s)",
            [record.id, record.source, record.made_database, list(record.entries), record.state],
        )


def set_state(connection: Connection, restore_id: str, state: State) -> None:
    """Write how far the restore is."""
    connection.execute(f"UPDATE {PROGRESS_SCHEMA}.restores SET state = %s WHERE id = %s", [state, restore_id])


def forget(connection: Connection, restore_id: str) -> None:
    """Remove the record, and with the last one the progress schema; no error if it is gone."""
    with translated("Ending the restore"), connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s, 0)", [_LOCK_CLASS])
        if read_records(connection):
            connection.execute(f"DELETE FROM {PROGRESS_SCHEMA}.restores WHERE id = %s", [restore_id])
            if not read_records(connection):
                connection.execute(f"DROP SCHEMA {PROGRESS_SCHEMA} CASCADE")


def claim_unit(connection: Connection, restore_id: str, unit: str) -> bool:
    """In the connection's transaction: take the unit, or learn that it is in. Waits for another process's transaction
    with the same unit. Raises NotFound when the restore is not under way here."""
    with translated("Recording a part of the restore"):
        taken = connection.execute(
            f"INSERT INTO {PROGRESS_SCHEMA}.units VALUES (%s, %s, 0) ON CONFLICT DO NOTHING RETURNING unit", [restore_id, unit]
        )
        return taken.fetchone() is not None


def record_rows(connection: Connection, restore_id: str, unit: str, rows: int) -> None:
    """In the same transaction as its claim: how many rows the unit brought."""
    statement = f"UPDATE {PROGRESS_SCHEMA}.units SET rows = %s WHERE restore = %s AND unit = %s"
    connection.execute(statement, [rows, restore_id, unit])


def forget_unit(connection: Connection, restore_id: str, unit: str) -> None:
    """In the connection's transaction: what the unit brought is gone."""
    connection.execute(f"DELETE FROM {PROGRESS_SCHEMA}.units WHERE restore = %s AND unit = %s", [restore_id, unit])


def units_done(connection: Connection, restore_id: str) -> dict[str, int]:
    """The rows of each unit that is in."""
    rows = connection.execute(f"SELECT unit, rows FROM {PROGRESS_SCHEMA}.units WHERE restore = %s", [restore_id]).fetchall()
    return {str(unit): int(count) for unit, count in rows}


@contextmanager
def one_at_a_time(connection: Connection, restore_id: str) -> Iterator[None]:
    """Keep other processes out of the same step of the same restore into this database; they wait."""
    number = int(restore_id[:7], 16)
    connection.execute("SELECT pg_advisory_lock(%s, %s)", [_LOCK_CLASS, number])
    try:
        yield
    finally:
        if not connection.closed and not connection.broken:
            connection.execute("SELECT pg_advisory_unlock(%s, %s)", [_LOCK_CLASS, number])


def end_sessions(connection: Connection, purpose: str) -> None:
    """End what sessions of a killed try still do: a server notices a dead client only when it next writes to it."""
    connection.execute(
        "SELECT pg_terminate_backend(pid, 30000) FROM pg_catalog.pg_stat_activity"
        " WHERE datname = current_database() AND application_name = %s AND pid <> pg_backend_pid()",
        [f"{APPLICATION_NAME} {purpose}"[:63]],
    )


def event_triggers_off(connection: Connection) -> dict[str, str]:
    """The setting that keeps event triggers that were restored from taking the rest of the restore for changes by an
    application; none without a superuser, who alone can have restored any. Before version 17 those that are ENABLE ALWAYS
    still fire."""
    if not is_superuser(connection):
        return {}
    return {"event_triggers": "off"} if version_number(connection) >= 170000 else {"session_replication_role": "replica"}


def without_event_triggers(connection: Connection) -> None:
    """Let the session fire no event triggers, see `event_triggers_off`."""
    for name, value in event_triggers_off(connection).items():
        connection.execute("SELECT pg_catalog.set_config(%s, %s, false)", [name, value])


def passes(connection: Connection, error: SpanvaultError) -> bool:
    """Whether another try may help. That a server which a foreign table is on cannot be reached does not count."""
    if connection.closed or connection.broken:
        return True
    return isinstance(error, Retryable) and not (error.sqlstate or "").startswith("08")


def run_all(connection: Connection, statements: Sequence[str]) -> None:
    """Run scripts as they are, in the connection's transaction."""
    for statement in statements:
        connection.execute(statement.encode())
