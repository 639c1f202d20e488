"""What a cut can give: where each table's rows come from, which tables it has no rows of, and what stands elsewhere.

Pure: the manifests of a chain's layers in, decisions out. What the log carries is known at every cut of a layer. What is
read (schema, sequences, tables whose changes the log does not tell, tables that joined the log later) is known at the
position of its reading; it stands at the cut too if a reading at or before the cut and the next one behind it agree.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from spanvault.collection.chain import Resolved
from spanvault.errors import Damaged
from spanvault.model.cut import Cut, Lsn
from spanvault.model.manifest import Manifest, ManifestDatabase, ManifestTable
from spanvault.model.schema import Fingerprint, Table
from spanvault.model.sentences import few

TableKey = tuple[str, int]

SHOWN = 5  # names in a sentence


@dataclass(frozen=True)
class Origin:
    """Where a table's rows come from. `entry` is what the manifest of layer `number` says of them, `table` their shape, and
    `as_of` the position that the restored rows stand at."""

    table: Table
    entry: ManifestTable
    as_of: Lsn
    number: int


@dataclass(frozen=True)
class Missing:
    """A table that the cut has no rows of; `why` completes `cannot be restored`, and says from or to where it can."""

    database: str
    schema_name: str
    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.schema_name}.{self.name} ({self.why})"


@dataclass(frozen=True)
class _Known:
    """A manifest, by table."""

    manifest: Manifest

    @cached_property
    def tables(self) -> Mapping[TableKey, tuple[ManifestTable, Table]]:
        found: dict[TableKey, tuple[ManifestTable, Table]] = {}
        for database in self.manifest.databases:
            shapes = {table.oid: table for table in database.database.tables}
            for entry in (*database.tables, *_unlisted(database)):
                if entry.oid not in shapes:
                    raise Damaged(
                        f"The manifest of layer {self.manifest.number} of the backup {self.manifest.subdir} does not describe the"
                        f" table with OID {entry.oid} of database {database.database.name!r}."
                    )
                found[database.database.name, entry.oid] = (entry, shapes[entry.oid])
        return found


class AtCut:
    """What a resolved cut gives. `origins` and `missing` are the tables of the last layer, by database and OID; `gone`
    those that are in an earlier layer and not in the last one, so that nobody knows until when they were there."""

    def __init__(self, resolved: Resolved) -> None:
        self._resolved = resolved
        self._cut = resolved.cut.lsn
        self._last = _Known(resolved.manifest)
        self._witnesses = tuple(_witnesses(resolved))
        self.origins: dict[TableKey, Origin] = {}
        self.missing: dict[TableKey, Missing] = {}
        for key, (entry, table) in self._last.tables.items():
            if entry.basis is None and table.lacks_identity and self._skips:
                found: Origin | Missing = self._left_out(key, table)
            else:
                found = self._read_whole(key, entry, table) if table.capture == "exact" else self._logged(key, entry, table)
            if isinstance(found, Origin):
                self.origins[key] = found
            else:
                self.missing[key] = found
        self.gone = tuple(self._gone().values())

    def fingerprint(self, key: TableKey) -> Fingerprint | None:
        """PostgreSQL's fingerprint of exactly the rows that are restored, or None. A full backup keeps one from shortly
        before its cut only of a table that did not change until then."""
        origin, manifest = self.origins[key], self._resolved.manifest
        found = origin.entry.fingerprint
        if found is None:
            return None
        full = manifest.kind == "full" and not manifest.compacted and found.lsn < origin.as_of
        read = origin.table.capture == "exact" and found.lsn == origin.entry.since
        return found if full or read or found.lsn == origin.as_of else None

    def elsewhere(self, tables: Mapping[str, Collection[int]], *, rows: bool) -> tuple[str, ...]:
        """Phrases for what does not stand at the cut, of the given tables (OIDs by database) and of their databases'
        schemas and, with `rows`, sequences."""
        return (*(self._tables_elsewhere(tables) if rows else ()), *self._read_elsewhere(tables, rows=rows))

    def _read_whole(self, key: TableKey, entry: ManifestTable, table: Table) -> Origin | Missing:
        """The newest reading at or before the cut; at a layer's end its own reading, wherever that stands.

        An entry tells two positions of one reading: rows that were read at `since` were found unchanged at `as_of`.
        """
        number = self._resolved.manifest.number
        if not self._resolved.inner and entry.basis is not None:
            return Origin(table, entry, entry.as_of, number)
        if self._shape_moved(key, table):
            return Missing(key[0], table.schema_name, table.name, self._changed)
        readings = [
            Origin(table, known.tables[key][0], position, known.manifest.number)
            for known in (self._last, *self._witnesses)
            if key in known.tables and known.tables[key][0].basis is not None
            for position in (known.tables[key][0].as_of, known.tables[key][0].since)
            if position <= self._cut
        ]
        newest = max(readings, key=lambda reading: reading.as_of, default=None)
        return newest or self._unread(key, table, entry, max(entry.as_of, entry.since))

    def _logged(self, key: TableKey, entry: ManifestTable, table: Table) -> Origin | Missing:
        number = self._resolved.manifest.number
        if entry.basis is None or (self._resolved.inner and entry.since > self._cut):
            return self._unread(key, table, entry, entry.since)
        if entry.since > self._cut:
            return Origin(table, entry, entry.since, number)
        if not self._resolved.inner:
            return Origin(table, entry, entry.as_of, number)
        why = self._columns_unknown(key, table, entry)
        return Missing(key[0], table.schema_name, table.name, why) if why else Origin(table, entry, self._cut, number)

    def _columns_unknown(self, key: TableKey, table: Table, entry: ManifestTable) -> str | None:
        """Why nobody knows which columns the rows of a cut inside the layer have; None if they are known."""
        if entry.shape_since is not None:
            since = f"its columns changed there; restorable from {self._at(entry.shape_since)}"
            return since if entry.shape_since > self._cut and not self._only_grew(key, table) else None
        if not self._before(key[0]):
            return f"no reading at or before it is left that tells its columns; restorable from {self._resolved.manifest.end}"
        return self._changed if self._shape_moved(key, table) else None

    @property
    def _skips(self) -> bool:
        """Whether the last layer leaves tables without identity out."""
        return self._resolved.manifest.request.options.without_identity == "skip"

    @cached_property
    def _earlier(self) -> tuple[_Known, ...]:
        return tuple(_Known(layer.manifest) for layer in reversed(self._resolved.layers[:-1]))

    def _left_out(self, key: TableKey, table: Table) -> Missing:
        """Also inside the layer: whoever leaves a table out does not count on an older reading of it."""
        why = "left out by without_identity = 'skip'"
        for known in self._earlier:
            if key in known.tables and known.tables[key][0].basis is not None:
                why += f"; restorable up to {known.manifest.end}"
                break
        return Missing(key[0], table.schema_name, table.name, why)

    def _only_grew(self, key: TableKey, table: Table) -> bool:
        """Whether rows of before the shape's last change are known in it: columns were added or renamed, none dropped."""
        shapes = [known.tables[key][1] for known in self._witnesses if key in known.tables]
        return bool(shapes and self._before(key[0])) and all(_holds(table, shape) for shape in shapes)

    def _before(self, name: str) -> list[ManifestDatabase]:
        """The database as the witnesses have it; none if it was never read at or before the cut, or if that reading's layer was
        compacted with later ones: then a witness from behind the cut says nothing of what was before it."""
        found = [one for known in self._witnesses if (one := known.manifest.database(name)) is not None]
        return found if any(one.captured <= self._cut for one in found) else []

    def _shape_moved(self, key: TableKey, table: Table) -> bool:
        shapes = {_shape(known.tables[key][1]) for known in self._witnesses if key in known.tables}
        return not shapes <= {_shape(table)}

    def _unread(self, key: TableKey, table: Table, entry: ManifestTable, position: Lsn) -> Missing:
        why = f"restorable from {self._at(position)}"
        if entry.basis is None and not entry.since:
            why = f"its reading was put off at {self._resolved.manifest.end}; a later backup may have it"
        return Missing(key[0], table.schema_name, table.name, why)

    @property
    def _changed(self) -> str:
        return f"its columns or key changed meanwhile; restorable from {self._resolved.manifest.end}"

    def _gone(self) -> dict[TableKey, Missing]:
        found: dict[TableKey, Missing] = {}
        for known in self._witnesses:
            for key, (entry, table) in known.tables.items():
                if key not in self._last.tables and key not in found and entry.basis is not None:
                    until = f"gone afterwards; restorable up to {known.manifest.end}"
                    found[key] = Missing(key[0], table.schema_name, table.name, until)
        return found

    def _tables_elsewhere(self, tables: Mapping[str, Collection[int]]) -> Iterator[str]:
        by_position: dict[Lsn, list[str]] = {}
        for database in sorted(tables):
            for oid in tables[database]:
                origin = self.origins[database, oid]
                if origin.as_of != self._cut:
                    by_position.setdefault(origin.as_of, []).append(origin.table.qualified)
        for position in sorted(by_position):
            yield f"{few(sorted(by_position[position]), SHOWN)} as of {self._at(position)}"

    def _read_elsewhere(self, databases: Iterable[str], *, rows: bool) -> Iterator[str]:
        for name in sorted(databases):
            last = self._resolved.manifest.database(name)
            if last is None or last.captured <= self._cut:
                continue
            before = self._before(name)
            what = [] if _agree(last, before, "catalogs", "types_version") else ["schema"]
            if rows and last.sequences and not _agree(last, before, "sequences"):
                what.append("sequences")
            if what:
                yield f"{' and '.join(what)} of {name} as of {self._at(last.captured)}"

    def _at(self, position: Lsn) -> str:
        """The position with its time, where a manifest tells it."""
        manifests = [*(layer.manifest for layer in self._resolved.layers), *(known.manifest for known in self._witnesses)]
        known: dict[Lsn, Cut] = {cut.lsn: cut for one in manifests for cut in (one.start, one.captured, one.end)}
        return str(known.get(position, position))


def _unlisted(database: ManifestDatabase) -> Iterator[ManifestTable]:
    """Entries for tables that the manifest describes and says nothing of: early versions wrote none for those left out."""
    listed = {entry.oid for entry in database.tables}
    at = database.captured
    for table in database.database.tables:
        if table.capture != "none" and table.oid not in listed:
            yield ManifestTable(oid=table.oid, rows=0, rows_exact=False, bytes=0, as_of=at, basis=None, since=at)


def _witnesses(resolved: Resolved) -> Iterator[_Known]:
    """The manifests before the last of a cut inside a layer, newest first, to the first that was read at or before it."""
    if not resolved.inner:
        return
    earlier = [layer.manifest for layer in reversed(resolved.layers[:-1])]
    before = resolved.before or earlier[0]
    for manifest in (before, *(one for one in earlier if one.number < before.number)):
        yield _Known(manifest)
        if all(database.captured <= resolved.cut.lsn for database in manifest.databases):
            return


def _agree(last: ManifestDatabase, before: Sequence[ManifestDatabase], *fields: str) -> bool:
    return bool(before) and all(getattr(one, field) == getattr(last, field) for one in before for field in fields)


def _shape(table: Table) -> str:
    """What rows of equal shape have in common; a column that was altered and altered back is none of it."""
    return table.model_copy(update={"attributes_version": ""}).fingerprint()


def _holds(table: Table, before: Table) -> bool:
    """Whether rows of the shape `before` are rows of `table`, with the values that PostgreSQL gives to younger columns."""
    columns = {column.attnum: column for column in table.columns}
    known = {column.attnum: column for column in before.columns}
    younger = (column for attnum, column in columns.items() if attnum not in known)
    kept = ((column, columns.get(attnum)) for attnum, column in known.items())
    return all(not column.not_null or column.missing_text is not None for column in younger) and all(
        one is not None and (one.not_null <= column.not_null) and one.generated == column.generated for column, one in kept
    )
