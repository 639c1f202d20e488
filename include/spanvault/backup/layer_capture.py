"""One database's part of an incremental layer: which tables go on by their log, and which must be read whole."""

from __future__ import annotations

from spanvault.backup.captured import CapturedDatabase
from spanvault.backup.context import Run
from spanvault.backup.layer_log import LayerLog, LayerPart, TableTotals
from spanvault.backup.sealing import has_user_types
from spanvault.config.clusters import Endpoint
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.protect import changed_tables
from spanvault.database.postgres.snapshot import SealSnapshot
from spanvault.model.cut import Lsn
from spanvault.model.manifest import ManifestDatabase, ManifestTable, PlannedDatabase
from spanvault.model.schema import Table


class LayerCapture(CapturedDatabase):
    """A database whose layer builds on `parent` (None: the database is new). `continued` are the tables whose rows follow
    from the parent's and the log."""

    def __init__(self, run: Run, planned: PlannedDatabase, snapshot: SealSnapshot, parent: ManifestDatabase | None) -> None:
        super().__init__(run, planned, snapshot)
        self.parent = parent
        self._last_commit = parent.window.last_commit if parent else None
        self.shapes = {table.oid: table for table in parent.database.tables} if parent else {}
        self.entries = {entry.oid: entry for entry in parent.tables} if parent else {}
        self._types_moved = parent is None or self.types_version != parent.types_version
        self.continued = {table.oid: table for table in self.tables if self._continues(table)}
        self.unchanged: set[int] = set()
        self.skipped: set[int] = set()

    def _continues(self, table: Table) -> bool:
        """Whether the parent's rows and the log give the table's, as far as the shapes say.

        Columns may have been added, dropped or renamed; a changed type, key or identity would leave rows of two kinds.
        """
        before, entry = self.shapes.get(table.oid), self.entries.get(table.oid)
        if before is None or entry is None or entry.basis is None or not table.logged:
            return False
        if (before.capture, before.key, before.replica_identity) != (table.capture, table.key, table.replica_identity):
            return False
        if table.capture == "count" and before.fingerprint() != table.fingerprint():
            return False  # copies of rows are compared by all their columns
        computed = {column.attnum for column in before.columns if column.generated}
        if any(column.attnum in computed for column in table.data_columns):
            return False  # its values were not stored while they were computed
        types = {column.attnum: (column.type_oid, column.typmod, column.collation_oid) for column in before.data_columns}
        same = all(
            types.get(column.attnum, kind) == kind
            for column in table.data_columns
            for kind in [(column.type_oid, column.typmod, column.collation_oid)]
        )
        return same and not (self._types_moved and has_user_types(table))

    def introduced(self) -> list[Table]:
        """The tables that must be read whole, as far as is known before the log is read."""
        done = self.continued.keys() | self.unchanged | self.skipped
        return [table for table in self.readable_tables() if table.oid not in done]

    def not_explained(self, log: LayerLog, endpoint: Endpoint) -> list[Table]:
        """The tables among `continued` that the log turned out not to tell: they are taken out.

        A rewrite changes rows without a change in the log, and shows as another file. Only a TRUNCATE explains one, and
        only if no column was altered as well: the rewrite may have come after it.
        """
        with connect(endpoint, self.name, purpose="seal") as connection:
            changed = changed_tables(connection, self.parent.protection) if self.parent else set()
        distrusted = set(self.continued) if changed is None else changed
        found = []
        for oid, table in list(self.continued.items()):
            before = self.shapes[oid]
            truncated = any(part.tables[oid].truncated for part in log.parts if oid in part.tables)
            explained = truncated and before.attributes_version == table.attributes_version
            moved = before.filenode != table.filenode and not explained
            if oid in distrusted or oid in log.reshaped or moved:
                found.append(self.continued.pop(oid))
        return found

    def layer_entry(self, part: LayerPart, *, last: bool) -> ManifestDatabase:
        """The database's part of the manifest of the layer that `part` is of. Later calls build on the tables of earlier
        ones."""
        tables = [entry for table in self.readable_tables() if (entry := self._table(table, part, last=last)) is not None]
        self.entries = {entry.oid: entry for entry in tables}
        self._last_commit = part.window.last_commit or self._last_commit
        window = part.window.model_copy(update={"last_commit": self._last_commit})
        return self.manifest_entry(tables).model_copy(update={"window": window, "commits": part.commits})

    def _table(self, table: Table, part: LayerPart, *, last: bool) -> ManifestTable | None:
        totals = part.tables.get(table.oid, TableTotals())
        before = self.entries.get(table.oid)
        if table.oid in self.continued and before is not None:
            return self._continued(before, totals, table, part.end)
        if table.oid in self.exact and last:
            return self._read(table, totals, part)
        if table.oid in self.unchanged and before is not None:
            return before.model_copy(update={"as_of": self.snapshot.lsn, "bytes": 0, "changes": 0} if last else {})
        if table.capture == "exact" and before is not None and table.oid not in self.skipped:
            return before.model_copy(update={"bytes": 0})
        if table.oid in self.skipped:
            return None
        since = self.snapshot.lsn
        return ManifestTable(oid=table.oid, rows=0, rows_exact=False, bytes=0, as_of=since, basis=None, since=since)

    def _continued(self, before: ManifestTable, totals: TableTotals, table: Table, end: Lsn) -> ManifestTable:
        proof = self.fingerprints.get(table.oid)
        proof = proof if proof is not None and proof.lsn == end else None
        rows = max(0, (0 if totals.truncated else before.rows) + totals.rows_added)
        return ManifestTable(
            oid=table.oid,
            rows=proof.rows if proof else rows,
            rows_exact=proof is not None or before.rows_exact or totals.truncated,
            bytes=sum(file.bytes for file in totals.files),
            as_of=end,
            basis=before.basis,
            since=before.since,
            changes=totals.changes,
            fingerprint=proof,
        )

    def _read(self, table: Table, totals: TableTotals, part: LayerPart) -> ManifestTable:
        files = [file for file in self.exact_files if file.table_oid == table.oid]
        proof = self.fingerprints.get(table.oid)
        since = self.snapshot.lsn
        return ManifestTable(
            oid=table.oid,
            rows=(0 if totals.truncated else sum(file.rows for file in files)) + totals.rows_added,
            bytes=sum(file.bytes for file in (*files, *totals.files)),
            as_of=max(part.end, since) if table.logged else since,
            basis=part.number,
            since=since,
            changes=totals.changes,
            fingerprint=None if totals.changes else proof,
        )
