"""One database's part of an incremental layer: which tables go on by their log, and which must be read whole."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from spanvault.backup.captured import CapturedDatabase, query_of
from spanvault.backup.context import Run
from spanvault.backup.layer_log import LayerLog, LayerPart, TableTotals
from spanvault.backup.sealing import has_user_types
from spanvault.backup.shape_log import ShapeChain, ShapeLog, chain_between, chain_from_birth
from spanvault.config.clusters import Endpoint
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.ddl_log import DdlRow, read_rows, table_oid
from spanvault.database.postgres.protect import changed_tables
from spanvault.database.postgres.snapshot import SealSnapshot
from spanvault.model.cut import Lsn
from spanvault.model.manifest import ManifestDatabase, ManifestTable, PlannedDatabase, Protection
from spanvault.model.schema import Table
from spanvault.model.sentences import few

_SHOWN = 20  # names in a phrase
_LONGEST_DDL = timedelta(days=1)  # a transaction with DDL that was open for longer: its tables are read whole


class LayerCapture(CapturedDatabase):
    """A database whose layer builds on `parent` (None: the database is new). `continued` are the tables whose rows follow
    from the parent's and the log, `born` those of which the log has every row; `chains` are the shapes that the DDL log,
    the table `ddl_log`, tells of both. The tables of `read_first` are neither."""

    def __init__(
        self,
        run: Run,
        planned: PlannedDatabase,
        snapshot: SealSnapshot,
        parent: ManifestDatabase | None,
        read_first: Iterable[tuple[str, int]] = (),
    ) -> None:
        super().__init__(run, planned, snapshot, read_first)
        self.parent = parent
        self._last_commit = parent.window.last_commit if parent else None
        self.shapes = {table.oid: table for table in parent.database.tables} if parent else {}
        self.entries = {entry.oid: entry for entry in parent.tables} if parent else {}
        self._types_moved = parent is None or self.types_version != parent.types_version
        self.continued = {table.oid: table for table in self.tables if self._continues(table)}
        self.ddl_log: int | None = None
        self.chains: dict[int, ShapeChain] = {}
        self.born: dict[int, Table] = {}
        self._births: dict[int, Lsn] = {}
        self._shape_since: dict[int, Lsn] = {}
        self._settled: dict[int, bool] = {}
        self.unchanged: set[int] = set()
        self.skipped: set[int] = set()

    @property
    def puts_off(self) -> bool:
        """Whether what must be read at the cut is left to a later layer."""
        return self.snapshot.inexact is not None

    def _continues(self, table: Table) -> bool:
        """Whether the parent's rows and the log give the table's, as far as the shapes say.

        Columns may have been added, dropped or renamed; a changed type, key or identity would leave rows of two kinds.
        """
        before, entry = self.shapes.get(table.oid), self.entries.get(table.oid)
        if before is None or entry is None or entry.basis is None or not table.logged or table.oid in self.read_first:
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

    def read_shapes(self, start: datetime) -> None:
        """Read from the DDL log, if the change log has carried it since the parent, how shapes changed since `start`, and
        which tables were born since."""
        query = query_of(self.snapshot.holder)
        ddl_log = table_oid(query)
        if ddl_log is None or self.parent is None or ddl_log not in _carried(self.parent.protection, self.planned.protection):
            return
        self.ddl_log = ddl_log
        moved = {oid for oid, table in self.continued.items() if self.shapes[oid].fingerprint() != table.fingerprint()}
        new = {table.oid: table for table in self.readable_tables() if self._may_be_born(table)}
        rows: dict[int, list[DdlRow]] = {}
        for row in read_rows(query, moved | new.keys(), start - _LONGEST_DDL):
            rows.setdefault(row.shape.oid, []).append(row)
        joined = self.planned.protection.rows
        for oid, own in rows.items():
            if oid in moved:
                chain = chain_between(self.shapes[oid], own, self.continued[oid])
            else:
                chain = chain_from_birth(own, new[oid], [row for row in joined if row.table_oid == oid])
                self.born |= {oid: new[oid]} if chain else {}
            if chain is not None:
                self.chains[oid] = chain

    def _may_be_born(self, table: Table) -> bool:
        if table.capture != "log" or table.oid in self.continued or table.oid in self.read_first:
            return False
        return not (self._types_moved and has_user_types(table))

    def introduced(self) -> list[Table]:
        """The tables that must be read whole, as far as is known before the log is read."""
        done = self.continued.keys() | self.born.keys() | self.unchanged | self.skipped | self.exact.keys()
        return [table for table in self.readable_tables() if table.oid not in done]

    def not_explained(self, log: LayerLog, endpoint: Endpoint) -> list[Table]:
        """The tables among `continued` and `born` that the log turned out not to tell: they are taken out.

        A rewrite changes rows without a change in the log, and shows as another file. Only a TRUNCATE explains one, and
        only if no column was altered as well: the rewrite may have come after it.
        """
        with connect(endpoint, self.name, purpose="seal") as connection:
            changed = changed_tables(connection, self.parent.protection) if self.parent else set()
            left = changed_tables(connection, self.planned.protection)
        distrusted = set(self.continued) if changed is None else changed
        if self.ddl_log in distrusted:
            distrusted |= self.chains.keys()
        found = self._not_born(log, set(self.born) if left is None or self.ddl_log in distrusted else left)
        for oid, table in list(self.continued.items()):
            if oid in distrusted or oid in log.reshaped or self._rewritten(self.shapes[oid], table, log):
                found.append(self.continued.pop(oid))
        self._note_shapes(log.shapes)
        return found

    def _not_born(self, log: LayerLog, distrusted: set[int]) -> list[Table]:
        """The tables among `born` whose first row the window does not have, or whose rows moved without a change in the
        log: they are taken out."""
        found = []
        for oid, table in list(self.born.items()):
            rewritten = self._rewritten(self.chains[oid].first, table, log)
            if oid in distrusted or oid in log.reshaped or rewritten or oid not in log.shapes.births:
                found.append(self.born.pop(oid))
        return found

    def _rewritten(self, first: Table, table: Table, log: LayerLog) -> bool:
        """Whether the table's rows were moved to another file since `first`, and not only by a TRUNCATE behind the last
        change of its columns."""
        oid = table.oid
        last = first
        for step in self.chains[oid].steps if oid in self.chains else ():
            last = step.shape
            if last.filenode != first.filenode:
                return True
        truncated = any(part.tables[oid].truncated for part in log.parts if oid in part.tables)
        explained = truncated and last.attributes_version == table.attributes_version
        return last.filenode != table.filenode and not explained

    def _note_shapes(self, shapes: ShapeLog) -> None:
        """Where the tables were born, and since when they have their shape. That of a born one which changes behind the
        last end holds where it was seen."""
        self._births = shapes.births
        for oid in self.chains:
            self._settled[oid] = shapes.complete(oid)
            if oid in self.born and not shapes.complete(oid):
                self._shape_since[oid] = self.snapshot.lsn
            elif (since := shapes.moved(oid)) is not None:
                self._shape_since[oid] = since

    def name_put_off(self, *, fingerprints: bool) -> None:
        """Say what is missing if nothing could be read at the cut."""
        if not self.puts_off:
            return
        done = self.continued.keys() | self.born.keys() | self.skipped
        left = [table for table in self.readable_tables() if table.oid not in done]
        kept = {oid for oid, entry in self.entries.items() if entry.basis is not None}
        stale = [_name(table) for table in left if table.capture == "exact" and table.oid in kept]
        unread = [_name(table) for table in left if table.capture != "exact" or table.oid not in kept]
        why = "(put off, because transactions stayed open)"
        self.omitted += (
            *((f"what changed in {few(list(dict.fromkeys(stale)), _SHOWN)} since the last reading {why}",) if stale else ()),
            *((f"the rows of {few(list(dict.fromkeys(unread)), _SHOWN)} {why}",) if unread else ()),
            *((f"fingerprints {why}",) if fingerprints else ()),
        )

    def layer_entry(self, part: LayerPart, *, last: bool) -> ManifestDatabase:
        """The database's part of the manifest of the layer that `part` is of. Later calls build on the tables of earlier
        ones."""
        tables = [self._table(table, part, last=last) for table in self.readable_tables()]
        if self.puts_off:  # nobody knows yet from where on a later layer has the others
            put_off = {"as_of": part.end, "since": Lsn(0)}
            tables = [
                one if one.basis is not None or one.oid in self.skipped else one.model_copy(update=put_off) for one in tables
            ]
        self.entries = {entry.oid: entry for entry in tables}
        self._last_commit = part.window.last_commit or self._last_commit
        window = part.window.model_copy(update={"last_commit": self._last_commit})
        return self.manifest_entry(tables).model_copy(update={"window": window, "commits": part.commits})

    def _table(self, table: Table, part: LayerPart, *, last: bool) -> ManifestTable:
        totals = part.tables.get(table.oid, TableTotals())
        before = self.entries.get(table.oid)
        if table.oid in self.born and (before is None or before.basis is None):
            before = self._at_birth(table, part)
        if before is not None and (table.oid in self.continued or table.oid in self.born):
            return self._continued(before, totals, table, part.end) if before.basis is not None else before
        if table.oid in self.exact and last:
            return self._read(table, totals, part)
        if table.oid in self.unchanged and before is not None:
            return before.model_copy(update={"as_of": self.snapshot.lsn, "bytes": 0, "changes": 0} if last else {})
        read_before = before is not None and before.basis is not None
        if table.capture == "exact" and before is not None and read_before and table.oid not in self.skipped:
            return before.model_copy(update={"bytes": 0})
        since = self.snapshot.lsn  # of a table that is left out, too: without an entry it would be restored empty
        return ManifestTable(oid=table.oid, rows=0, rows_exact=False, bytes=0, as_of=since, basis=None, since=since)

    def _at_birth(self, table: Table, part: LayerPart) -> ManifestTable:
        """The table when it was made: without a row. A layer that ends before does not have it."""
        birth = self._births[table.oid]
        basis = part.number if birth < part.end else None
        return ManifestTable(oid=table.oid, rows=0, rows_exact=basis is not None, bytes=0, as_of=birth, basis=basis, since=birth)

    def _shaped_since(self, before: ManifestTable, table: Table, end: Lsn) -> Lsn | None:
        if table.oid in self._shape_since:
            since = self._shape_since[table.oid]
            return since if since <= end or table.oid in self.born else None
        shape = self.shapes.get(table.oid)
        same = shape is not None and shape.fingerprint() == table.fingerprint()
        return before.shape_since if self._settled.get(table.oid, same) else None

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
            shape_since=self._shaped_since(before, table, end),
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


def _name(table: Table) -> str:
    return "large objects" if table.of_large_objects else table.qualified


def _carried(before: Protection, now: Protection) -> set[int]:
    """The tables that were in the publication all the time between the two."""
    same = (before.publication_oid, before.publication_xmin) == (now.publication_oid, now.publication_xmin)
    return {row.table_oid for row in set(before.rows) & set(now.rows)} if same else set()
