"""Preflight: what a source needs, checked before anything is done, each failure with the exact fix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Literal

from spanvault.config.clusters import Endpoint
from spanvault.database.postgres.catalog import read_tables, user_databases
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.publication import adding_script, publishable
from spanvault.database.postgres.quoting import literal, qualified, quote
from spanvault.database.postgres.server import Connection, scalar, server_version, version_number
from spanvault.embedded.binaries import PG_BIN_VARIABLE, tool_version
from spanvault.errors import BadInput, NotFound
from spanvault.model.base import Value
from spanvault.model.schema import Table
from spanvault.model.sentences import counted, few

Status = Literal["ok", "warning", "failed"]
_MIB = 1 << 20


class Check(Value):
    """One check's outcome. `fix` is what to run or do; empty if nothing."""

    name: str
    status: Status
    detail: str
    fix: str = ""


def require(connection: Connection) -> None:
    """Raise BadInput for the first thing without which no backup is possible."""
    for check in server_checks(connection):
        if check.status == "failed":
            raise BadInput(f"The source is not ready: {check.detail}. Fix: {check.fix}")


def examine(endpoint: Endpoint, interval: timedelta | None = None) -> list[Check]:
    """All checks of a cluster, over all its databases. `interval`: the time between two backups of a chain."""
    with connect(endpoint, purpose="preflight") as connection:
        checks = [*server_checks(connection), *advice(connection, interval)]
        names = user_databases(lambda text: connection.execute(text.encode()).fetchall())
    for name in names:
        with connect(endpoint, name, purpose="preflight") as connection:
            checks += database_checks(connection, name)
    return checks


def server_checks(connection: Connection) -> list[Check]:
    """What every backup needs of the server."""
    return [check(connection) for check in (_version, _programs, _primary, _wal_level, _role, _slots, _walsenders)]


def _version(connection: Connection) -> Check:
    number, text = version_number(connection), server_version(connection)
    if number < 140000:
        return Check(
            name="version", status="failed", detail=f"PostgreSQL {text} is older than 14", fix="Upgrade to PostgreSQL 14 to 18."
        )
    status: Status = "ok" if number < 190000 else "warning"
    return Check(name="version", status=status, detail=f"PostgreSQL {text}")


def _programs(connection: Connection) -> Check:
    """pg_dump reads servers of its own version and older ones, and is needed at the backup's end."""
    name, server = "programs", version_number(connection) // 10000
    fix = f"Set {PG_BIN_VARIABLE} to the folder of the programs of PostgreSQL {server} or newer, here and for all workers."
    try:
        own = tool_version("pg_dump")
    except (NotFound, BadInput) as error:
        return Check(name=name, status="failed", detail=str(error).rstrip("."), fix=fix)
    if own < server:
        detail = f"pg_dump is of PostgreSQL {own}, and the server of {server}: it cannot read the schema"
        return Check(name=name, status="failed", detail=detail, fix=fix)
    return Check(name=name, status="ok", detail=f"pg_dump is of PostgreSQL {own}")


def _primary(connection: Connection) -> Check:
    if scalar(connection, "SELECT pg_catalog.pg_is_in_recovery()"):
        return Check(name="primary", status="failed", detail="the node is a standby", fix="Name the primary in clusters.yaml.")
    return Check(name="primary", status="ok", detail="the node accepts writes")


def _wal_level(connection: Connection) -> Check:
    level = scalar(connection, "SELECT pg_catalog.current_setting('wal_level')")
    if level != "logical":
        return Check(
            name="wal_level",
            status="failed",
            detail=f"wal_level is {level!r}; the change log needs 'logical'",
            fix="ALTER SYSTEM SET wal_level = 'logical'; then restart the server.",
        )
    return Check(name="wal_level", status="ok", detail="logical")


def _role(connection: Connection) -> Check:
    row = connection.execute(
        "SELECT rolname, rolsuper, rolreplication, rolbypassrls, pg_catalog.pg_has_role('pg_read_all_data', 'usage'),"
        " pg_catalog.pg_has_role('pg_monitor', 'usage') FROM pg_catalog.pg_roles WHERE rolname = current_user"
    ).fetchone()
    name, superuser, replication, bypass, reads, monitors = row or ("?", False, False, False, False, False)
    if superuser:
        return Check(name="role", status="ok", detail=f"{name} is a superuser")
    role = quote(str(name))
    fixes = [
        *([] if replication else [f"ALTER ROLE {role} REPLICATION;"]),
        *([] if bypass else [f"ALTER ROLE {role} BYPASSRLS;"]),
        *([] if reads else [f"GRANT pg_read_all_data TO {role};"]),
        *([] if monitors else [f"GRANT pg_monitor TO {role};"]),
    ]
    if not replication or not reads:
        return Check(name="role", status="failed", detail=f"{name} may not replicate or read all data", fix=" ".join(fixes))
    status: Status = "warning" if fixes else "ok"
    return Check(name="role", status=status, detail=f"{name} is no superuser", fix=" ".join(fixes))


def _slots(connection: Connection) -> Check:
    used, limit = _used_of_limit(connection, "pg_replication_slots", "max_replication_slots")
    return _room("replication slots", used, limit, "max_replication_slots")


def _walsenders(connection: Connection) -> Check:
    used, limit = _used_of_limit(connection, "pg_stat_replication", "max_wal_senders")
    return _room("walsenders", used, limit, "max_wal_senders")


def _used_of_limit(connection: Connection, view: str, setting: str) -> tuple[int, int]:
    used = int(scalar(connection, f"SELECT count(*) FROM pg_catalog.{view}"))
    return used, int(scalar(connection, "SELECT pg_catalog.current_setting(%s)", (setting,)))


def _room(name: str, used: int, limit: int, setting: str) -> Check:
    detail = f"{used} of {limit} {name} in use; a backup takes 1 a database and 2 more for a moment"
    fix = f"ALTER SYSTEM SET {setting} = {limit + 10}; then restart the server."
    if used >= limit:
        return Check(name=setting, status="failed", detail=detail, fix=fix)
    tight = limit - used < 3
    return Check(name=setting, status="warning" if tight else "ok", detail=detail, fix=fix if tight else "")


def advice(connection: Connection, interval: timedelta | None = None) -> list[Check]:
    """What is no obstacle now and may become one: limits on slots, standbys that slots fail over to, the server's disk."""
    return [
        _wal_limit(connection),
        _idle_limit(connection, interval),
        *_failover(connection),
        _spill(connection),
        _open_transactions(connection),
    ]


def _wal_limit(connection: Connection) -> Check:
    limit = int(scalar(connection, "SELECT setting FROM pg_catalog.pg_settings WHERE name = 'max_slot_wal_keep_size'"))
    name = "max_slot_wal_keep_size"
    if limit < 0:
        return Check(
            name=name,
            status="warning",
            detail="no limit: a forgotten slot can fill the disk with log",
            fix="ALTER SYSTEM SET max_slot_wal_keep_size = '64GB'; SELECT pg_reload_conf();",
        )
    status: Status = "warning" if limit < 1024 else "ok"
    detail = f"slots may keep {limit} MiB of log; a chain whose slot needs more ends there, and the next backup is a full one"
    fix = "ALTER SYSTEM SET max_slot_wal_keep_size = '64GB'; SELECT pg_reload_conf();" if status == "warning" else ""
    return Check(name=name, status=status, detail=detail, fix=fix)


def _idle_limit(connection: Connection, interval: timedelta | None) -> Check:
    name = "idle_replication_slot_timeout"
    limit = scalar(
        connection, "SELECT (setting || unit)::interval FROM pg_catalog.pg_settings WHERE name = %s AND setting <> '0'", (name,)
    )
    if limit is None:
        return Check(name=name, status="ok", detail="slots may stay idle between backups")
    detail = f"the server drops slots that are idle for {limit}"
    status: Status
    if interval is None:
        status, detail = "warning", f"{detail}: it must be longer than the time between backups"
    elif interval >= limit:
        status, detail = "failed", f"{detail}, and backups come every {interval}: each chain ends after its first layer"
    elif interval * 2 > limit:
        status, detail = "warning", f"{detail}, and backups come every {interval}: one that is late ends its chain"
    else:
        return Check(name=name, status="ok", detail=f"{detail}; backups come every {interval}")
    return Check(
        name=name,
        status=status,
        detail=detail,
        fix="ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf();",
    )


def _failover(connection: Connection) -> list[Check]:
    """A promoted standby may lack what was backed up from the primary, unless slots that fail over wait for it."""
    name = "synchronized_standby_slots"
    setting = scalar(connection, "SELECT pg_catalog.current_setting(%s, true)", (name,))
    slots = connection.execute(
        "SELECT s.slot_name FROM pg_catalog.pg_replication_slots s"
        " WHERE (pg_catalog.to_jsonb(s) ->> 'failover')::bool AND NOT s.temporary ORDER BY 1"
    ).fetchall()
    if setting is None or not slots:
        return []
    listed = few([row[0] for row in slots], 5)
    if setting:
        return [Check(name=name, status="ok", detail=f"slots that fail over ({listed}) wait for {setting}")]
    physical = connection.execute(
        "SELECT slot_name FROM pg_catalog.pg_replication_slots WHERE slot_type = 'physical' AND NOT temporary ORDER BY 1"
    ).fetchall()
    standbys = ", ".join(row[0] for row in physical) or "<the standbys' physical slots>"
    return [
        Check(
            name=name,
            status="warning",
            detail=f"slots fail over ({listed}) and wait for no standby: after a promotion chains may hold what the new primary "
            "never had, and end",
            fix=f"ALTER SYSTEM SET synchronized_standby_slots = {literal(standbys)}; SELECT pg_reload_conf();",
        )
    ]


def _spill(connection: Connection) -> Check:
    memory = scalar(connection, "SELECT pg_catalog.current_setting('logical_decoding_work_mem')")
    kept = scalar(
        connection,
        "SELECT coalesce(max(pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), restart_lsn)), 0)::int8"
        " FROM pg_catalog.pg_replication_slots WHERE slot_name LIKE 'spanvault\\_%' AND NOT temporary",
    )
    return Check(
        name="temporary disk",
        status="ok",
        detail=f"reading the log writes the window's changes (pgsql_tmp) and transactions larger than {memory} (pg_replslot) to "
        f"the server's disk: keep about twice the log of a window free; {int(kept) // _MIB} MiB are kept now",
    )


def _open_transactions(connection: Connection) -> Check:
    row = connection.execute(
        "SELECT (SELECT count(*) FROM pg_catalog.pg_prepared_xacts) + (SELECT count(*) FROM pg_catalog.pg_stat_activity"
        " WHERE backend_xid IS NOT NULL AND xact_start < clock_timestamp() - interval '1 minute')"
    ).fetchone()
    count = int(row[0]) if row else 0
    if count:
        return Check(
            name="open transactions",
            status="warning",
            detail=f"{count} transactions have been open for over a minute or are prepared; a backup waits for them",
            fix="SELECT * FROM pg_prepared_xacts; SELECT * FROM pg_stat_activity WHERE backend_xid IS NOT NULL;",
        )
    return Check(name="open transactions", status="ok", detail="none that would hold a backup up")


def database_checks(connection: Connection, name: str) -> list[Check]:
    """What a backup of the connected database meets: privileges, tables that the log cannot carry."""
    return [check(connection, name) for check in _DATABASE_CHECKS]


def _may_publish(connection: Connection, name: str) -> Check:
    label = f"{name}: publication"
    role = quote(str(scalar(connection, "SELECT current_user")))
    ours = _publications(connection)
    owned = all(mine for _, mine, _ in ours)
    fixes = [f"ALTER PUBLICATION {quote(publication)} OWNER TO {role};" for publication, mine, _ in ours if not mine]
    if not ours and not scalar(connection, "SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')"):
        fixes.append(
            f"GRANT CREATE ON DATABASE {quote(name)} TO {role}; or let an administrator run what the first backup prints."
        )
        owned = False
    tables = [table for table in read_tables(lambda text: connection.execute(text.encode()).fetchall()) if table.logged]
    own = publishable(connection, tables)
    published = set.intersection(*(found for _, _, found in ours)) if ours else set()
    others = [table for table in tables if table.oid not in own | published]
    if not others:
        detail = "every table is published, or the role may do so" if owned else "the role may not make or alter the publication"
        return Check(name=label, status="ok" if owned else "failed", detail=detail, fix=" ".join(fixes))
    fixes += [*_memberships(connection, others, role), "Or, by an administrator:"]
    scripts = [(publication, [table for table in others if table.oid not in found]) for publication, _, found in ours]
    fixes += [adding_script(publication, missing) for publication, missing in scripts if missing]
    if not ours:
        fixes.append("the ALTER PUBLICATION that preflight prints after the first backup.")
    names, size = few([qualified(table.schema_name, table.name) for table in others], 5), sum(table.bytes for table in others)
    return Check(
        name=label,
        status="warning" if owned else "failed",
        detail=f"the role may not publish {counted(len(others), 'table')} ({size // _MIB} MiB), read whole at the cut: {names}",
        fix=" ".join(fixes),
    )


def _publications(connection: Connection) -> list[tuple[str, bool, set[int]]]:
    """Our publications in the connected database: the name, whether the role may alter it, the OIDs of its tables."""
    rows = connection.execute(
        "SELECT p.pubname::text, pg_catalog.pg_has_role(p.pubowner, 'usage'),"
        " ARRAY(SELECT r.prrelid::int8 FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = p.oid)"
        " FROM pg_catalog.pg_publication p WHERE p.pubname ~ '^spanvault_[0-9a-f]{1,12}$' ORDER BY 1"
    ).fetchall()
    return [(publication, mine, set(oids)) for publication, mine, oids in rows]


def _memberships(connection: Connection, tables: Sequence[Table], role: str) -> list[str]:
    """What lets the role publish these tables itself."""
    owners = connection.execute(
        "SELECT DISTINCT pg_catalog.quote_ident(r.rolname), r.rolsuper FROM pg_catalog.pg_class c"
        " JOIN pg_catalog.pg_roles r ON r.oid = c.relowner WHERE c.oid = ANY (%s::oid[]) ORDER BY 1",
        ([table.oid for table in tables],),
    ).fetchall()
    return [
        # Membership would make the backup's role a superuser in effect.
        f"Give the tables of the superuser {owner} another owner, or back up as a superuser."
        if superuser
        else f"GRANT {owner} TO {role};"
        for owner, superuser in owners
    ]


def _without_identity(connection: Connection, name: str) -> Check:
    label = f"{name}: tables without identity"
    tables = [table for table in read_tables(lambda text: connection.execute(text.encode()).fetchall()) if table.lacks_identity]
    if not tables:
        return Check(name=label, status="ok", detail="every table has a key that the log carries")
    size = sum(table.bytes for table in tables) // _MIB
    names = few([qualified(table.schema_name, table.name) for table in tables], 5)
    return Check(
        name=label,
        status="warning",
        detail=f"{counted(len(tables), 'table')} ({size} MiB), read whole under one snapshot at the cut: {names}",
        fix="Add a primary key, or ALTER TABLE ... REPLICA IDENTITY USING INDEX ...; where there is a key, and REPLICA IDENTITY"
        " FULL beside a generated column, ALTER TABLE ... REPLICA IDENTITY DEFAULT.",
    )


_DATABASE_CHECKS: tuple[Callable[[Connection, str], Check], ...] = (_may_publish, _without_identity)
