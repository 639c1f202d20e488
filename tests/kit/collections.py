"""A small, real collection, written as a run writes one: through the public functions, in the same order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq

from spanvault.collection.commit import commit
from spanvault.collection.files import write_files
from spanvault.collection.identity import ensure_collection
from spanvault.collection.layout import data_path, globals_dump_path, object_key, schema_dump_path
from spanvault.collection.plans import create_plan
from spanvault.collection.receipts import put_receipt
from spanvault.collection.seals import put_seal, read_seal
from spanvault.model.cut import Cut, Lsn, subdir_of
from spanvault.model.manifest import (
    CollectionDocument,
    DataFile,
    Manifest,
    ManifestDatabase,
    ManifestTable,
    ObjectReference,
    Plan,
    PlannedDatabase,
    Protection,
    Receipt,
    SealRecord,
    SourceIdentity,
    Totals,
    View,
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


def put_table(storage: Storage, plan: Plan, table: pa.Table, of: Table, **fields: object) -> DataFile:
    """Write a Parquet file of the run; `fields` complete the DataFile."""
    path = data_path(plan.number)
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
    seal = read_seal(storage, seal_key)
    return Manifest(
        subdir=plan.subdir,
        collection_id=plan.collection_id,
        run_key=plan.run_key,
        request=plan.request,
        request_text=plan.request_text,
        source=plan.source,
        start=seal.start,
        end=seal.end,
        captured=seal.end,
        databases=seal.databases,
        files=write_files(storage, plan.subdir, plan.number, seal.files),
        globals_dump=seal.globals_dump,
        totals=Totals(
            tables=2,
            rows=5,
            file_bytes=sum(file.bytes for file in seal.files),
            files=len(seal.files),
            source_bytes=32768,
        ),
        planned_at=plan.planned_at,
        committed_at=plan.planned_at + timedelta(minutes=2),
    )


def _rows(rows: Sequence[tuple[int, str | None]]) -> pa.Table:
    schema = pa.schema([("id", pa.int64()), ("note", pa.string())])
    return pa.Table.from_pylist([{"id": key, "note": note} for key, note in rows], schema=schema)


def _export_span(storage: Storage, plan: Plan, span: Span, rows: Sequence[tuple[int, str | None]]) -> DataFile:
    file = put_table(storage, plan, _rows(rows), ORDERS, role="base", span=span.id)
    return put_receipt(storage, plan.subdir, plan.number, make_receipt(plan, span, file)).file


def _seal(storage: Storage, plan: Plan, base: Sequence[DataFile]) -> str:
    end = Cut(lsn=Lsn(0x200), time=plan.planned_at + timedelta(seconds=30))
    gone = {"_op": "D", "_lsn": 0x180, "_seq": 2, "_xid": 700, "_time": end.time, "id": 4, "note": None}
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
        schema_dump=schema,
        tables=(
            ManifestTable(oid=ORDERS.oid, rows=3, bytes=by_table[ORDERS.oid], as_of=end.lsn),
            ManifestTable(oid=EVENTS.oid, rows=2, bytes=by_table[EVENTS.oid], as_of=end.lsn),
        ),
        sequences=(SequenceValue(schema_name="public", name="orders_id_seq", last_value=4, is_called=True),),
        views=(View(schema_name="public", name="open_orders"),),
    )
    record = SealRecord(
        subdir=plan.subdir,
        number=plan.number,
        start=Cut(lsn=Lsn(0x100), time=plan.planned_at),
        end=end,
        databases=(database,),
        files=files,
        globals_dump=put_object(storage, plan, globals_dump_path(plan.number), b"CREATE ROLE app;\n"),
        sealed_at=end.time,
    )
    return put_seal(storage, record)
