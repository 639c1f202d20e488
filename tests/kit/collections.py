"""A small, real collection, written as a run writes one: through the public functions, in the same order."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spanvault.collection.commit import commit
from spanvault.collection.commits import CommitsWriter
from spanvault.collection.files import write_files
from spanvault.collection.identity import ensure_collection
from spanvault.collection.layout import data_path, globals_dump_path, manifest_key, object_key, schema_dump_path
from spanvault.collection.plans import create_plan
from spanvault.collection.receipts import put_receipt
from spanvault.collection.seals import put_seal, read_seal
from spanvault.model.cut import Cut, Lsn, subdir_of
from spanvault.model.manifest import (
    CollectionDocument,
    Commit,
    DataFile,
    Manifest,
    ManifestDatabase,
    ManifestTable,
    ObjectReference,
    Plan,
    PlannedDatabase,
    Protection,
    Receipt,
    SealedLayer,
    SealRecord,
    SourceIdentity,
    Totals,
    View,
    Window,
)
from spanvault.model.request import BackupRequest
from spanvault.model.schema import Column, Database, SequenceValue, Table
from spanvault.model.span import Batch, Span, span_id
from spanvault.model.target import ClusterTarget, Target
from spanvault.storage.base import Storage

SYSTEM_IDENTIFIER = "7431234567890123456"
PLANNED_AT = datetime(2026, 11, 22, 14, 30, 0, 120_000, tzinfo=UTC)

BASE_ROWS = ((1, "one"), (2, "two"), (3, None), (4, "four"))
EXACT_ROWS = ((10, "ten"), (10, "ten"))


def _column(attnum: int, name: str, type_name: str, oid: int) -> Column:
    return Column(attnum=attnum, name=name, type_oid=oid, type_name=type_name, typmod=-1, base_type=type_name, type_kind="b")


def _table(oid: int, name: str, *, key: tuple[int, ...], schema_name: str = "public") -> Table:
    columns = (_column(1, "id", "int8", 20), _column(2, "note", "text", 25))
    return Table(
        oid=oid,
        schema_name=schema_name,
        name=name,
        columns=columns,
        key=key,
        capture="log" if key else "exact",
        filenode=oid,
        pages=2,
        bytes=16384,
        estimated_rows=4,
    )


ORDERS = _table(16400, "orders", key=(1,))
EVENTS = _table(16410, "events", key=(), schema_name="audit")
SHOP = Database(name="shop", oid=16384, encoding="UTF8", collate="C", ctype="C", owner="postgres", tables=(ORDERS, EVENTS))
PROTECTION = Protection(
    database="shop", slot="spanvault_x", publication="spanvault_x", publication_oid=1, publication_xmin=2, start=Lsn(0x100)
)
CHANGE_SCHEMA = pa.schema([
    ("_op", pa.string()),
    ("_lsn", pa.int64()),
    ("_seq", pa.int64()),
    ("_xid", pa.int64()),
    ("_time", pa.timestamp("us", tz="UTC")),
    ("_old_key", pa.list_(pa.string())),
    ("_unchanged", pa.list_(pa.string())),
    ("_source_key", pa.list_(pa.string())),
    ("id", pa.int64()),
    ("note", pa.string()),
])


@dataclass(frozen=True)
class SealedRun:
    """A run that has sealed and not committed."""

    plan: Plan
    seal_key: str
    manifest: Manifest


def write_collection(storage: Storage, *, planned_at: datetime = PLANNED_AT, run_key: str = "run-1") -> Manifest:
    """One committed full backup of the database `shop`: table public.orders (two spans and one change file, so three
    rows at the cut) and table audit.events (one exact file)."""
    run = write_uncommitted(storage, planned_at=planned_at, run_key=run_key)
    return commit(storage, run.manifest)


def write_uncommitted(
    storage: Storage,
    *,
    planned_at: datetime = PLANNED_AT,
    run_key: str = "run-1",
    target: Target = ClusterTarget(),  # noqa: B008 - an immutable value
) -> SealedRun:
    """As `write_collection`, ending just before the commit."""
    plan = make_plan(ensure(storage), planned_at=planned_at, run_key=run_key, target=target)
    assert create_plan(storage, plan)
    base = [
        _export_span(storage, plan, span, BASE_ROWS[2 * number : 2 * number + 2])
        for number, span in enumerate(plan.batches[0].spans)
    ]
    seal_key = _seal(storage, plan, base)
    return SealedRun(plan, seal_key, make_manifest(storage, plan, seal_key))


def ensure(storage: Storage) -> CollectionDocument:
    """The collection's identity, made if it is not there."""
    return ensure_collection(storage, system_identifier=SYSTEM_IDENTIFIER, now=PLANNED_AT)


def make_plan(
    collection: CollectionDocument,
    *,
    planned_at: datetime,
    run_key: str,
    target: Target = ClusterTarget(),  # noqa: B008
) -> Plan:
    """The plan of a full backup, not written."""
    spans = tuple(
        Span(
            id=span_id(SHOP.oid, ORDERS.oid, first),
            database="shop",
            table_oid=ORDERS.oid,
            first_page=first,
            end_page=first + 1 if first == 0 else None,
        )
        for first in (0, 1)
    )
    return Plan(
        subdir=subdir_of(planned_at),
        run_key=run_key,
        planned_at=planned_at,
        collection_id=collection.id,
        request=BackupRequest(into="file:///backups", target=target),
        request_text="BACKUP INTO 'file:///backups'",
        source=SourceIdentity(cluster="main", system_identifier=SYSTEM_IDENTIFIER, timeline=1, server_version="18.1"),
        databases=(PlannedDatabase(database=SHOP, protection=PROTECTION, types_version="0"),),
        batches=(Batch(index=0, label="public.orders", spans=spans),),
    )


def make_receipt(plan: Plan, span: Span, file: DataFile) -> Receipt:
    """The receipt of an exported span, not written."""
    return Receipt(
        span=span.id,
        file=file,
        filenode=ORDERS.filenode,
        table_fingerprint=ORDERS.fingerprint(),
        seen_lsn=Lsn(0x120),
        timeline=1,
        node="primary",
        written_at=plan.planned_at,
    )


def put_table(
    storage: Storage, plan: Plan, table: pa.Table, of: Table, *, number: int | None = None, **fields: object
) -> DataFile:
    """Write a Parquet file of the run; `fields` complete the DataFile. `number` is the layer, if it is not the plan's."""
    path = data_path(plan.number if number is None else number)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    with storage.open_write(object_key(plan.subdir, path)) as writer:
        writer.write(data)
    return DataFile.model_validate({
        "path": path,
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "rows": table.num_rows,
        "database": "shop",
        "table_oid": of.oid,
        **fields,
    })


def put_object(storage: Storage, plan: Plan, path: str, data: bytes) -> ObjectReference:
    """Write an object of the run and refer to it."""
    storage.put(object_key(plan.subdir, path), data, create_only=True)
    return ObjectReference(path=path, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def make_manifest(storage: Storage, plan: Plan, seal_key: str) -> Manifest:
    """The manifest that a seal asks for, not written; its file list is."""
    (layer,) = read_seal(storage, seal_key).layers
    return manifest_of(storage, plan, layer)


def manifest_of(storage: Storage, plan: Plan, layer: SealedLayer, **fields: object) -> Manifest:
    """The manifest of a sealed layer, not written; its file list is. `fields` change it."""
    tables = [table for entry in layer.databases for table in entry.tables]
    manifest = Manifest(
        kind=layer.kind,
        number=layer.number,
        first=layer.number,
        subdir=layer.subdir,
        collection_id=plan.collection_id,
        run_key=plan.run_key,
        request=plan.request,
        request_text=plan.request_text,
        source=plan.source,
        start=layer.start,
        end=layer.end,
        captured=layer.captured,
        databases=layer.databases,
        files=write_files(storage, layer.subdir, layer.number, layer.files),
        globals_dump=layer.globals_dump,
        totals=Totals(
            tables=len(tables),
            rows=sum(table.rows for table in tables),
            file_bytes=sum(file.bytes for file in layer.files),
            files=len(layer.files),
            source_bytes=32768,
        ),
        planned_at=plan.planned_at,
        committed_at=plan.planned_at + timedelta(minutes=2),
    )
    return manifest.model_copy(update=fields)


def _rows(rows: Sequence[tuple[int, str | None]]) -> pa.Table:
    schema = pa.schema([("id", pa.int64()), ("note", pa.string())])
    return pa.Table.from_pylist([{"id": key, "note": note} for key, note in rows], schema=schema)


def _export_span(storage: Storage, plan: Plan, span: Span, rows: Sequence[tuple[int, str | None]]) -> DataFile:
    file = put_table(storage, plan, _rows(rows), ORDERS, role="base", span=span.id)
    return put_receipt(storage, plan.subdir, plan.number, make_receipt(plan, span, file)).file


def _seal(storage: Storage, plan: Plan, base: Sequence[DataFile]) -> str:
    end = Cut(lsn=Lsn(0x200), time=plan.planned_at + timedelta(seconds=30))
    none = {"_old_key": None, "_unchanged": None, "_source_key": None}
    gone = {**none, "_op": "D", "_lsn": 0x180, "_seq": 2, "_xid": 700, "_time": end.time, "id": 4, "note": None}
    updated = {**gone, "_op": "U", "_seq": 1, "id": 2, "note": "TWO"}
    changes = pa.Table.from_pylist([updated, gone], schema=CHANGE_SCHEMA)
    files = (
        *base,
        put_table(storage, plan, changes, ORDERS, role="change", sequence=0),
        put_table(storage, plan, _rows(EXACT_ROWS), EVENTS, role="exact", as_of=str(end.lsn)),
    )
    by_table = {oid: sum(file.bytes for file in files if file.table_oid == oid) for oid in (ORDERS.oid, EVENTS.oid)}
    schema = put_object(storage, plan, schema_dump_path(plan.number, SHOP.oid), b"an archive of pg_dump")
    database = ManifestDatabase(
        database=SHOP,
        protection=PROTECTION,
        captured=end.lsn,
        catalogs="c",
        types_version="0",
        schema_dump=schema,
        tables=(
            ManifestTable(oid=ORDERS.oid, rows=3, bytes=by_table[ORDERS.oid], as_of=end.lsn, since=end.lsn),
            ManifestTable(oid=EVENTS.oid, rows=2, bytes=by_table[EVENTS.oid], as_of=end.lsn, since=end.lsn),
        ),
        sequences=(SequenceValue(schema_name="public", name="orders_id_seq", last_value=4, is_called=True),),
        views=(View(schema_name="public", name="open_orders"),),
    )
    layer = SealedLayer(
        subdir=plan.subdir,
        number=plan.number,
        start=end,
        end=end,
        captured=end,
        databases=(database,),
        files=files,
        globals_dump=put_object(storage, plan, globals_dump_path(plan.number), b"CREATE ROLE app;\n"),
    )
    record = SealRecord(subdir=plan.subdir, number=plan.number, layers=(layer,), sealed_at=end.time)
    return put_seal(storage, record)


# Chains of several layers ---------------------------------------------------------------------------------------------


def at(seconds: float) -> datetime:
    """A moment so many seconds after the first full was planned; that full's cut is at 30."""
    return PLANNED_AT + timedelta(seconds=seconds)


Stamps = Sequence[tuple[int, datetime]]  # (position, time) of commits in log order


def write_layer(storage: Storage, parent: Manifest, **fields: Any) -> Manifest:
    """A committed incremental layer upon `parent`; `fields` as in `make_layer`."""
    return commit(storage, make_layer(storage, parent, **fields))


def make_layer(
    storage: Storage,
    parent: Manifest,
    *,
    end: Cut,
    commits: Mapping[str, Stamps] | None = None,
    history: bool = False,
    run_key: str | None = None,
    with_plan: bool = True,
    location: tuple[str, Storage] | None = None,
    **changes: Any,
) -> Manifest:
    """The manifest of layer n upon `parent`, not written; everything that it names is. Each commit of the database `shop`
    updates order 1; `commits` are by database. `location` is where the data files go; `changes` are put into the manifest
    as they are."""
    number = parent.number + 1
    plan = incremental_plan(storage, parent.subdir, number, run_key or f"run-of-layer-{number}")
    if with_plan:
        create_plan(storage, plan)
    stamps = {"shop": (), **(commits or {})}
    file = _change_file(location[1] if location else storage, plan, number, stamps["shop"], history=history)
    layer = SealedLayer(
        kind="incremental",
        subdir=parent.subdir,
        number=number,
        start=parent.end,
        end=end,
        captured=end,
        databases=tuple(
            _layer_database(storage, plan, parent, number, name, of, end, history=history, file=file)
            for name, of in stamps.items()
        ),
        files=(file,),
    )
    digest = hashlib.sha256(storage.get(manifest_key(parent.subdir, parent.number))).hexdigest()
    own = {"revision_history": history, "parent_sha256": digest, "location": location[0] if location else None}
    return manifest_of(storage, plan, layer, **{**own, **changes})


def incremental_plan(storage: Storage, subdir: str, number: int, run_key: str) -> Plan:
    """The plan of a run that wants layer `number`, not written."""
    plan = make_plan(ensure(storage), planned_at=at(60 * number), run_key=run_key)
    return plan.model_copy(update={"kind": "incremental", "number": number, "subdir": subdir, "batches": ()})


def write_compacted(
    storage: Storage, subdir: str, first: int, number: int, *, run_key: str = "compaction", **changes: Any
) -> Manifest:
    """A committed layer that stands for the layers `first` to `number`; from 0 on it is a full. Its one data file is a
    new one; `changes` are put into the manifest as they are."""
    last, _ = _stored(storage, subdir, number)
    start, parent = last.end, None
    if first > 0:
        before, parent = _stored(storage, subdir, first - 1)
        start = before.end
    plan = incremental_plan(storage, subdir, number, run_key)
    file = _change_file(storage, plan, number, [(int(last.end.lsn) - 1, last.end.time)], history=False)
    databases = last.databases
    if not changes.get("revision_history"):
        databases = tuple(entry.model_copy(update={"commits": None}) for entry in databases)
    layer = SealedLayer(
        kind="full" if first == 0 else "incremental",
        subdir=subdir,
        number=number,
        start=start,
        end=last.end,
        captured=last.captured,
        databases=databases,
        files=(file,),
    )
    return commit(storage, manifest_of(storage, plan, layer, **{"first": first, "parent_sha256": parent, **changes}))


def _stored(storage: Storage, subdir: str, number: int) -> tuple[Manifest, str]:
    data = storage.get(manifest_key(subdir, number))
    return Manifest.from_json(data, "a layer"), hashlib.sha256(data).hexdigest()


def _change_file(storage: Storage, plan: Plan, number: int, stamps: Stamps, *, history: bool) -> DataFile:
    none = {"_old_key": None, "_unchanged": None, "_source_key": None}
    rows = [
        {**none, "_op": "U", "_lsn": lsn, "_seq": place, "_xid": 800 + place, "_time": time, "id": 1, "note": f"at {lsn:X}"}
        for place, (lsn, time) in enumerate(stamps, start=1)
    ]
    table = pa.Table.from_pylist(rows if history else rows[-1:], schema=CHANGE_SCHEMA)
    return put_table(storage, plan, table, ORDERS, number=number, role="change")


def _layer_database(
    storage: Storage, plan: Plan, parent: Manifest, number: int, name: str, stamps: Stamps, end: Cut, *, history: bool,
    file: DataFile,
) -> ManifestDatabase:  # fmt: skip
    database = SHOP if name == "shop" else SHOP.model_copy(update={"name": name, "oid": 20000 + len(name), "tables": ()})
    reference = None
    if history:
        with CommitsWriter(storage, parent.subdir, number, database.oid) as writer:
            for place, (lsn, time) in enumerate(stamps, start=1):
                writer.add(lsn, 800 + place, (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1))
        reference = writer.reference
    times = [time for _, time in stamps]
    orders = ManifestTable(
        oid=ORDERS.oid, rows=3, rows_exact=False, bytes=file.bytes, as_of=end.lsn, since=Lsn(0x200), changes=len(stamps)
    )
    events = ManifestTable(oid=EVENTS.oid, rows=2, bytes=0, as_of=end.lsn, since=Lsn(0x200))
    return ManifestDatabase(
        database=database,
        protection=PROTECTION,
        captured=end.lsn,
        catalogs="c",
        types_version="0",
        window=Window(
            transactions=len(stamps),
            changes=len(stamps),
            first_time=min(times, default=None),
            newest_time=max(times, default=None),
            last_commit=Commit(lsn=Lsn(stamps[-1][0]), xid=800 + len(stamps), time=times[-1]) if stamps else None,
        ),
        commits=reference,
        schema_dump=put_object(
            storage, plan, schema_dump_path(number, database.oid), f"an archive of {name} at {end.lsn}".encode()
        ),
        tables=(orders, events) if name == "shop" else (),
    )
