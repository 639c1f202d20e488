"""Settings of the source that change how values print, against sessions that pin them. What is right comes from a session of
the test's own, which knows nothing of the product's settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from spanvault.backup import exact, span_session
from spanvault.config.clusters import Endpoint
from spanvault.database.postgres import connect as sessions
from spanvault.database.postgres.connect import connect, connection_parameters, options_text
from spanvault.database.postgres.copy_in import copy_batches
from spanvault.database.postgres.copy_out import CopySession
from spanvault.database.postgres.quoting import quote
from spanvault.engine.local import run_backup
from spanvault.errors import SpanvaultError
from spanvault.merge.history import histories
from spanvault.merge.table import table_at
from spanvault.model.manifest import Manifest
from tests.kit.harness import Backup
from tests.kit.servers import TestDatabase

# What a session must have, and what the source sets for its own.
PINNED = {
    "DateStyle": ("ISO, YMD", "German"),
    "IntervalStyle": ("postgres", "iso_8601"),
    "TimeZone": ("UTC", "Asia/Tokyo"),
    "extra_float_digits": ("1", "0"),
    "bytea_output": ("hex", "escape"),
    "lc_monetary": ("C", "POSIX"),
    "search_path": ("", "elsewhere, public"),
    "xmloption": ("content", "document"),
    "row_security": ("off", "on"),
    "standard_conforming_strings": ("on", "off"),
    "statement_timeout": ("0", "1h"),
    "idle_in_transaction_session_timeout": ("0", "1h"),
    "idle_session_timeout": ("0", "1h"),
    "default_transaction_read_only": ("off", "on"),
}
# A table for each setting that changes text. Arrays are stored as their text, which nothing on the way can put right.
VALUES = {
    "DateStyle": ("date[]", "array['2020-02-03'::date]"),
    "IntervalStyle": ("interval[]", "array['1 day 2 hours'::interval]"),
    "TimeZone": ("timestamptz[]", "array['2020-02-03 04:05:06+00'::timestamptz]"),
    "extra_float_digits": ("float8[]", "array[0.1::float8 + 0.2]"),
    "bytea_output": ("bytea[]", "array[decode('deadbeef', 'hex')]"),
    "lc_monetary": ("money[]", "array[1234.5::numeric::money]"),
    "search_path": ("regclass[]", "array['public.named'::regclass]"),
}
ROWS = 20


@pytest.fixture
def backup(database: TestDatabase, tmp_path: Path) -> Iterator[Backup]:
    yield Backup(database, tmp_path / "collection")


def set_otherwise(database: TestDatabase, names: dict[str, str]) -> None:
    for name, value in names.items():
        parts = ", ".join(part if part.startswith("'") else f"'{part}'" for part in value.split(", "))
        database.execute(f"alter database {database.name} set {name} = {parts}")


@pytest.mark.parametrize("kind", ["copy", "queries", "walsender"])
def test_each_session_is_pinned(database: TestDatabase, kind: str) -> None:
    set_otherwise(database, {name: other for name, (_, other) in PINNED.items()})
    shown: dict[str, object] = {}
    if kind == "copy":
        with CopySession(connection_parameters(database.endpoint, purpose="test")) as copying:
            for name in PINNED:
                shown[name] = (copying.fetch_row(f"select current_setting('{name}')") or [None])[0]
            assert copying.fetch_row("select current_setting('application_name')") == ("spanvault test",)
    else:
        with connect(database.endpoint, purpose="test", replication=kind == "walsender") as session:
            for name in PINNED:
                row = session.execute(f"show {name}".encode(), prepare=False).fetchone()
                shown[name] = row[0] if row else None
    assert shown == {name: value for name, (value, _) in PINNED.items()}


def other_locale(database: TestDatabase) -> str | None:
    """A locale in which money prints otherwise than in C, if the server has one."""
    with psycopg.connect(database.url, autocommit=True) as session:
        names = session.execute("select distinct collcollate from pg_collation where collprovider = 'c' and collcollate <> ''")
        for (name,) in names.fetchall():
            session.execute("select set_config('lc_monetary', %s, false)", [name])
            if session.execute("select 1234.5::numeric::money::text").fetchone() != ("$1,234.50",):
                return str(name)
    return None


def right_texts(database: TestDatabase, table: str) -> list[str]:
    """What the source's values are in the pinned settings."""
    with psycopg.connect(database.url, autocommit=True) as session:
        for name, (value, _) in PINNED.items():
            session.execute("select set_config(%s, %s, false)", [name, value])
        return [row[0] for row in session.execute(f"select id || ' ' || v::text from public.{table} order by 1".encode())]


def held_texts(backup: Backup, manifest: Manifest, table: str) -> list[str]:
    """The texts that the backup has, never cast to their type: its sessions might put right what is stored wrongly."""
    resolved = backup.resolved(manifest.subdir, manifest.end.lsn)
    (history,) = (one for one in histories(backup.storage, resolved, lambda *_: True).values() if one.table.name == table)
    columns = history.table.data_columns
    with connect(backup.database.endpoint, purpose="test") as session:
        session.execute(f"create temp table held ({', '.join(f'{quote(column.name)} text' for column in columns)})".encode())
        copy_batches(session, "pg_temp.held", columns, table_at(history, None))
        return [row[0] for row in session.execute("select id || ' ' || v from pg_temp.held order by 1")]


def without_settings(patch: pytest.MonkeyPatch, names: list[str]) -> None:
    """Sessions that read values, slices or the log, have these settings as the source sets them. All others stay pinned:
    the driver itself takes times in one DateStyle only."""
    pinned = sessions.connection_parameters
    rest = options_text({name: value for name, value in sessions.PINNED_SETTINGS.items() if name not in names})

    def loose(endpoint: Endpoint, database: str | None = None, purpose: str = "") -> dict[str, Any]:
        return pinned(endpoint, database, purpose) | {"options": rest}

    patch.setattr(span_session, "connection_parameters", loose)
    patch.setattr(exact, "connection_parameters", loose)
    patch.setattr(sessions, "connection_parameters", lambda *given: (loose if "window" in given else pinned)(*given))


def test_settings_that_would_change_text(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    database, locale = backup.database, other_locale(backup.database)
    names = [name for name in VALUES if name != "lc_monetary" or locale is not None]
    database.execute("create schema elsewhere; create table named (id int primary key)")
    for name in names:
        kind, value = VALUES[name]
        database.execute(
            f"create table of_{name} (id int primary key, v {kind}, n int);"
            f"insert into of_{name} select i, {value}, i from generate_series(1, {ROWS}) i"
        )
    set_otherwise(database, {name: locale or "" if name == "lc_monetary" else PINNED[name][1] for name in names})

    def write() -> None:
        for name in names:
            database.execute(f"update public.of_{name} set n = n + 1 where id <= {ROWS // 2}")

    backup.at = {"export.all": write}
    with monkeypatch.context() as without:
        without_settings(without, names)
        manifest = backup.take()
    for name in names:
        held, right = held_texts(backup, manifest, f"of_{name}".lower()), right_texts(database, f"of_{name}".lower())
        assert not set(held) & set(right), f"without {name} some text is right, whether from a slice or from the log"
    second = Backup(database, backup.folder.with_name("second"), at={"export.all": write})
    manifest = second.take()
    for name in names:
        table = f"of_{name}".lower()
        assert held_texts(second, manifest, table) == right_texts(database, table), name


def test_a_role_that_row_security_filters_is_refused(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent filter would make a backup of half a table."""
    database = backup.database
    database.execute("create table secret (id int primary key, who text); insert into secret values (1, 'a'), (2, 'b')")
    role = f"reader_{database.name}"
    database.execute(f"create role {role} login replication; grant pg_read_all_data to {role}; grant {role} to postgres")
    database.execute(f"alter table secret owner to {role}; alter table secret enable row level security")
    database.execute(
        "alter table secret force row level security; create policy p on secret using (who = 'a');"
        f"grant create on database {database.name} to {role}"
    )
    endpoint = database.endpoint.model_copy(update={"user": role})
    cluster = database.cluster.model_copy(update={"endpoints": (endpoint,)})
    with pytest.raises(SpanvaultError, match="row-level security"):
        run_backup(backup.context, cluster, backup.request, processes=False)
    assert not list(backup.folder.glob("*/*/*/chain/*"))
    second = Backup(database, backup.folder.with_name("second"))
    monkeypatch.delitem(sessions.PINNED_SETTINGS, "row_security")
    manifest = run_backup(second.context, cluster, second.request, processes=False)
    assert second.rows(manifest, "secret") == ["(1,a)"]
