"""Small collections to restore from while everything around breaks, and what a restore must have brought back."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spanvault.config.settings import Settings
from spanvault.database.postgres.target import PROGRESS_SCHEMA
from spanvault.engine.context import Context
from spanvault.engine.local import run_backup
from spanvault.model.locality import Locality
from spanvault.model.request import BackupOptions, BackupRequest, EncryptionOptions, RestoreOptions, RestoreRequest
from spanvault.model.target import DatabaseTarget, SchemaTarget, TablePattern, TableTarget, Target
from tests.kit.faults import Faults, FaultyStorage
from tests.kit.prepared import TIER
from tests.kit.servers import TestDatabase

Facts = dict[str, list[tuple[Any, ...]]]

SOURCE = """
    create schema s;
    create table t (id int primary key, v text, n int); create index t_n on t (n);
    create table child (id int primary key, up int references t); create table keyless (a int);
    create table s.wide (id int primary key, v text); alter table s.wide alter v set storage external;
    create table s.pair (id int primary key, one int references s.wide); create sequence s.lone;
    insert into t select i, repeat('x', 100), i from generate_series(1, 900) i;
    insert into child select i, i from generate_series(1, 300) i;
    insert into s.wide select i, repeat(md5(i::text), 90) from generate_series(1, 12) i;
    insert into s.pair select i, i from generate_series(1, 12) i;
    insert into keyless select generate_series(1, 5);
    create materialized view mv as select n % 10 as digit, count(*) as times from t group by 1;
    create view v as select t.id from t join child on child.up = t.id;
    select lo_from_bytea(0, 'a large object'); select setval('s.lone', 77)
"""
CHANGES = """
    update t set n = n + 1 where id % 7 = 0; delete from child where id % 5 = 0; insert into t values (5000, 'new', 1);
    update s.wide set id = 1000 where id = 2 and false; insert into keyless values (9); update s.wide set v = v where id < 4;
    insert into s.wide values (100, 'more'); select setval('s.lone', 78);
    refresh materialized view mv
"""
_QUERIES = {
    "indexes": "select indexdef from pg_indexes where schemaname in ('public', 's')",
    "constraints": "select conrelid::regclass::text, conname, pg_get_constraintdef(oid), convalidated from pg_constraint"
    " where connamespace in ('public'::regnamespace, to_regnamespace('s'))",
    "sequences": "select schemaname, sequencename, last_value from pg_sequences where schemaname <> 'spanvault'",
    "views": "select schemaname, matviewname, ispopulated from pg_matviews",
    "large objects": "select encode(lo_get(oid), 'hex') from pg_largeobject_metadata",
}
_RELATIONS = (
    "select quote_ident(nspname) || '.' || quote_ident(relname) from pg_class c join pg_namespace n on n.oid = relnamespace"
    " where relkind in ('r', 'm') and nspname !~ '^pg_' and nspname <> 'information_schema'"
)


def facts(database: TestDatabase) -> Facts:
    """Every row of every table, and what follows the rows: what a restore has to bring back."""
    with database.connect() as session:
        found = {name: sorted(session.execute(query.encode()).fetchall()) for name, query in _QUERIES.items()}
        for (name,) in session.execute(_RELATIONS).fetchall():
            found[name] = sorted(session.execute(f"select x::text from {name} x".encode()).fetchall())
    return found


@dataclass(frozen=True)
class Kept:
    """A collection, the keys that open it, and what its source held at its end."""

    source: TestDatabase
    uri: str
    key: EncryptionOptions
    held: Facts

    def context(self, faults: Faults | None = None, scratch: Path | None = None) -> Context:
        """The engine's context, under faults."""
        settings = Settings(wait_for_writers=20, scratch_dir=scratch)
        if faults is None:
            return Context(settings=settings, encryption=self.key)
        wrap = lambda storage: FaultyStorage(storage, faults)  # noqa: E731
        return Context(settings=settings, encryption=self.key, wrap=wrap, reached=faults.reach)

    def request(self, kind: Kind, target: str, on_failure: str = "keep") -> RestoreRequest:
        """The restore of a kind into the database `target`."""
        name = {"new_db_name": target} if kind.target is None else {"into_db": target}
        options = RestoreOptions.model_validate({**name, "workers": 1, "on_failure": on_failure})
        what = kind.target or DatabaseTarget(names=(self.source.name,))
        if isinstance(what, TableTarget):
            patterns = tuple(one.model_copy(update={"database": self.source.name}) for one in what.patterns)
            what = TableTarget(patterns=patterns)
        if isinstance(what, SchemaTarget):
            what = SchemaTarget(names=tuple((self.source.name, schema) for _, schema in what.names))
        return RestoreRequest(target=what, collection=self.uri, options=options, encryption=self.key)


@dataclass(frozen=True)
class Kind:
    """A kind of restore: of which collection, into what. `names` are the facts that it brings back, None for all."""

    collection: str
    target: Target | None = None
    names: tuple[str, ...] | None = None


_TABLES = TableTarget(patterns=(TablePattern(name="t"), TablePattern(name="child")))
KINDS: Mapping[str, Kind] = {
    "full": Kind("full"),
    "chain": Kind("chain"),
    "encrypted": Kind("encrypted"),
    "places": Kind("places"),
    "tables": Kind("chain", _TABLES, ("public.t", "public.child")),
    "schema": Kind("chain", SchemaTarget(names=((None, "s"),)), ("s.wide", "s.pair", "sequences")),
}


def make_collections(source: TestDatabase, folder: Path, key: EncryptionOptions) -> dict[str, Kept]:
    """A full; the same and two layers with history upon it; an encrypted chain; one over two places."""
    source.execute(SOURCE)
    plain = EncryptionOptions()
    chains = {
        "chain": (f"file://{folder / 'chain'}", plain),
        "encrypted": (f"file://{folder / 'encrypted'}", key),
        "places": (
            f"file://{folder / 'default'}?COCKROACH_LOCALITY=default\n"
            f"file://{folder / 'eu'}?COCKROACH_LOCALITY={TIER.replace('=', '%3D')}",
            plain,
        ),
    }
    for uri, keys in chains.values():
        _back_up(source, uri, keys)
    held = facts(source)
    shutil.copytree(folder / "chain", folder / "full")
    found = {"full": Kept(source, f"file://{folder / 'full'}", plain, held)}
    for number in range(2):
        source.execute(CHANGES.replace("5000", str(5000 + number)).replace("100,", f"{100 + number},"))
        for uri, keys in chains.values():
            _back_up(source, uri, keys, "LATEST")
    held = facts(source)
    return {**found, **{name: Kept(source, uri, keys, held) for name, (uri, keys) in chains.items()}}


def _back_up(source: TestDatabase, uri: str, key: EncryptionOptions, append: str | None = None) -> None:
    (node,) = source.cluster.endpoints
    cluster = source.cluster.model_copy(update={"endpoints": (node.model_copy(update={"locality": Locality.parse(TIER)}),)})
    options = BackupOptions(span_bytes=64 << 10, workers=1, revision_history=append is not None)
    request = BackupRequest(target=DatabaseTarget(names=(source.name,)), into=uri, append=append, options=options, encryption=key)
    run_backup(Context(settings=Settings(wait_for_writers=20)), cluster, request, processes=False)


def left_behind(database: TestDatabase, scratch: Path) -> list[object]:
    """What of a restore is still there when it is over: its records, its sessions, its temporary files."""
    records: Sequence[tuple[Any, ...]] = database.execute(
        "select nspname from pg_namespace where nspname = %s", [PROGRESS_SCHEMA]
    )
    sessions = database.execute(
        "select application_name, state, query from pg_stat_activity"
        " where application_name like 'spanvault%' and datname = current_database()"
    )
    return [*records, *sessions, *scratch.iterdir()]
