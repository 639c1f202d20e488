"""What a restore plans and refuses, from documents alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spanvault.collection.chain import Layer, Resolved
from spanvault.collection.files import read_files
from spanvault.database.postgres.archive import Entry
from spanvault.errors import BadInput, NotFound
from spanvault.merge.history import TableHistory, TableLayer
from spanvault.model.cut import Lsn
from spanvault.model.manifest import DataFile
from spanvault.model.request import RestoreOptions, RestoreRequest
from spanvault.model.target import ClusterTarget, DatabaseTarget, SchemaTarget, TablePattern, TableTarget, Target
from spanvault.restore.batches import MAX_BATCH_BYTES, MAX_BATCHES, MIN_BATCH_BYTES
from spanvault.restore.origin import Origin, TableKey
from spanvault.restore.plan import RestorePlan, make_plan
from spanvault.restore.sources import table_histories
from spanvault.storage.base import Storage
from spanvault.storage.local import LocalStorage
from tests.kit.collections import EVENTS, ORDERS, write_collection

SHOP = DatabaseTarget(names=("shop",))
ORDERS_ONLY = TableTarget(patterns=(TablePattern(database="shop", name="orders"),))


Collection = tuple[Storage, Resolved]


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    """A small cluster backup, resolved to its end."""
    storage = LocalStorage(tmp_path, f"file://{tmp_path}")
    manifest = write_collection(storage)
    return storage, Resolved((Layer(manifest, "", storage),), None, manifest.end, inner=False)


def entry(
    number: int, kind: str, schema: str | None, name: str, oid: int = 0, sql: str = "", depends: Sequence[int] = ()
) -> Entry:
    return Entry(
        id=number, section="pre-data", catalog=0, oid=oid, kind=kind, schema=schema, name=name, depends=tuple(depends), sql=sql
    )


ENTRIES = (
    entry(1, "SCHEMA", None, "audit"),
    entry(2, "TABLE", "public", "orders", ORDERS.oid),
    entry(3, "TABLE", "audit", "events", EVENTS.oid, depends=[1]),
    entry(4, "VIEW", "public", "open_orders", depends=[2]),
    entry(5, "TABLE", "public", "fresh", 999, 'CREATE TABLE "public"."fresh" (\n    "a" integer\n);'),
    entry(6, "TABLE", "public", "root", 998, 'CREATE TABLE "public"."root" (\n    "a" integer\n)\nPARTITION BY RANGE ("a");'),
    entry(7, "TABLE", "public", "fast", 997, 'CREATE UNLOGGED TABLE "public"."fast" (\n    "a" integer\n);'),
)


Histories = Callable[[Mapping[TableKey, Origin]], Mapping[TableKey, TableHistory]]


def plan(collection: Collection, target: Target, histories: Histories | None = None, **options: Any) -> RestorePlan:
    storage, resolved = collection
    request = RestoreRequest(target=target, collection="file:///backups", options=RestoreOptions(**options))
    read = histories or (lambda origins: table_histories(storage, resolved, origins))
    return make_plan(resolved, read, request, lambda _: ENTRIES, "postgres")


def files_of(collection: Collection) -> list[DataFile]:
    """Every data file of the backup."""
    storage, resolved = collection
    manifest = resolved.manifest
    return list(read_files(storage, manifest.subdir, manifest.files))


def with_files(collection: Collection, files: Sequence[DataFile]) -> Histories:
    """Histories of the one layer, made of the given files."""
    storage, resolved = collection

    def histories(origins: Mapping[TableKey, Origin]) -> dict[TableKey, TableHistory]:
        found = {}
        for key, origin in origins.items():
            own = tuple(file for file in files if (file.database, file.table_oid) == key)
            layer = TableLayer(storage, resolved.manifest.subdir, 0, origin.table, own)
            found[key] = TableHistory(origin.table, (layer,))
        return found

    return histories


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (DatabaseTarget(names=("nope",)), "no database 'nope'; it holds shop"),
        (TableTarget(patterns=(TablePattern(name="nope"),)), r"no table or view public\.nope"),
        (TableTarget(patterns=(TablePattern(database="x", name="orders"),)), "no database 'x'"),
        (TableTarget(patterns=(TablePattern(name="fresh"),)), r"does not hold the rows of table public\.fresh"),
        (SchemaTarget(names=(("shop", "nope"),)), "no schema 'nope'"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(collection: Collection, target: Target, reason: str) -> None:
    with pytest.raises((BadInput, NotFound), match=reason):
        plan(collection, target)


def test_a_database_under_another_name(collection: Collection) -> None:
    made = plan(collection, SHOP, new_db_name="copy")
    (database,) = made.databases
    assert (database.source, database.target, database.whole) == ("shop", "copy", True)
    assert set(database.tables) == {ORDERS.oid, EVENTS.oid}
    assert made.rows == 5
    assert made.request.subdir == collection[1].manifest.subdir
    assert made.request.as_of == Lsn(0x200)
    assert made.layers == ("0-0",)
    assert made.notes == ()
    assert not made.grants


def test_every_unit_is_in_exactly_one_batch(collection: Collection) -> None:
    units = [unit.id for batch in plan(collection, ClusterTarget()).batches for unit in batch.units]
    files = [file for file in files_of(collection) if file.role != "change"]
    assert len(units) == len(set(units)) == len(files) + 1  # the survivors of the change file are one


@pytest.mark.parametrize(
    ("target", "oids"),
    [
        (ORDERS_ONLY, {ORDERS.oid}),
        (TableTarget(patterns=(TablePattern(name="open_orders"),)), set()),
        (TableTarget(patterns=(TablePattern(name="root"), TablePattern(name="fast"))), set()),
        (SchemaTarget(names=((None, "audit"),)), {EVENTS.oid}),
    ],
)
def test_parts_load_their_tables_only(collection: Collection, target: Target, oids: set[int]) -> None:
    made = plan(collection, target, into_db="elsewhere")
    assert {unit.table_oid for batch in made.batches for unit in batch.units} == oids
    assert [(one.target, one.whole) for one in made.databases] == [("elsewhere", False)]


def test_tables_of_two_databases_never_meet_in_one(collection: Collection) -> None:
    storage, resolved = collection
    (shop,) = resolved.manifest.databases
    other = shop.model_copy(update={"database": shop.database.model_copy(update={"name": "old_shop"})})
    (layer,) = resolved.layers
    both = replace(layer, manifest=layer.manifest.model_copy(update={"databases": (shop, other)}))
    named = TableTarget(patterns=tuple(TablePattern(database=name, name="orders") for name in ("shop", "old_shop")))
    of_both = (storage, replace(resolved, layers=(both,)))
    with pytest.raises(BadInput, match="into_db takes tables of one database, and shop, old_shop are named"):
        plan(of_both, named, into_db="elsewhere")
    assert [(one.source, one.target) for one in plan(of_both, named, with_files(of_both, ())).databases] == [
        ("shop", "shop"),
        ("old_shop", "old_shop"),
    ]


def test_schema_only_has_no_batches_unless_data_are_verified(collection: Collection) -> None:
    assert plan(collection, SHOP, schema_only=True).batches == ()
    verified = plan(collection, SHOP, schema_only=True, verify_backup_table_data=True)
    assert verified.batches
    assert not verified.loads


def test_a_plan_is_the_same_for_any_order_of_files(collection: Collection) -> None:
    files = files_of(collection)
    assert plan(collection, SHOP, with_files(collection, files)) == plan(collection, SHOP, with_files(collection, files[::-1]))


def test_a_restore_is_the_same_for_other_workers_and_another_address_only(collection: Collection) -> None:
    one = plan(collection, SHOP)
    assert plan(collection, SHOP, workers=7, on_failure="clean", verify_fingerprint=True).id == one.id
    assert plan(collection, SHOP, new_db_name="copy").id != one.id
    assert plan(collection, SHOP, schema_only=True).id != one.id
    assert plan(collection, ClusterTarget()).id != one.id


@pytest.mark.parametrize(("count", "size"), [(3, 1000), (400, 1 << 20), (3000, 40 << 20)])
def test_batches_are_neither_tiny_nor_too_many(collection: Collection, count: int, size: int) -> None:
    base = next(file for file in files_of(collection) if file.role == "base")
    many = [base.model_copy(update={"path": f"000000/data/{number:05d}.parquet", "bytes": size}) for number in range(count)]
    batches = plan(collection, SHOP, with_files(collection, many), workers=2).batches
    assert len(batches) <= MAX_BATCHES + 1
    assert sum(batch.bytes for batch in batches) == count * size
    assert all(batch.bytes >= MIN_BATCH_BYTES for batch in batches[:-1])
    if count * size < MAX_BATCHES * MAX_BATCH_BYTES:
        assert all(batch.bytes <= MAX_BATCH_BYTES + size for batch in batches)
