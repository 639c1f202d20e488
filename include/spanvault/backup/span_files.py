"""What is left of a span on storage: the entry of its data file, and its receipt."""

from __future__ import annotations

from typing import Any

from spanvault.backup.context import Run
from spanvault.backup.span_session import SpanSession
from spanvault.collection.receipts import put_receipt
from spanvault.database.postgres.copy_out import WrittenFile
from spanvault.model.cut import Lsn
from spanvault.model.manifest import DataFile, Receipt
from spanvault.model.schema import Table
from spanvault.model.span import Span
from spanvault.model.uri import DEFAULT_LOCALITY


def data_file(
    path: str,
    written: WrittenFile,
    database: str,
    table: Table,
    *,
    role: Any,
    span: str | None = None,
    as_of: Lsn | None = None,
    tier: str | None = None,
) -> DataFile:
    """The file list's row for what was just written, at the URI of the locality `tier` if one is given."""
    return DataFile(
        path=path,
        sha256=written.sha256,
        bytes=written.bytes,
        rows=written.rows,
        database=database,
        table_oid=table.oid,
        role=role,
        span=span,
        as_of=as_of,
        locality=tier or DEFAULT_LOCALITY,
        text_columns=tuple(sorted(written.text_columns)),
    )


def leave_receipt(
    run: Run, node: SpanSession, span: Span, live: Table, path: str, written: WrittenFile, seen: Lsn, timeline: int
) -> Receipt:
    """Vouch for the span's file, once nothing that it shows can be lost any more; the receipt that counts."""
    receipt = Receipt(
        span=span.id,
        file=data_file(path, written, span.database, live, role="base", span=span.id, tier=node.tier),
        filenode=live.filenode,
        table_fingerprint=live.fingerprint(),
        seen_lsn=seen,
        timeline=timeline,
        node=node.endpoint.node,
        written_at=run.clock(),
    )
    winner = put_receipt(run.storage, run.plan.subdir, run.plan.number, receipt)
    run.reached("export.after_receipt")
    return winner
