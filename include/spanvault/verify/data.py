"""`checksums`: every byte of a backup is read and compared with its digest, every row is decoded and counted."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pyarrow as pa

from spanvault.collection.chain import Layer, OpenLocation, load_manifest, no_locations
from spanvault.collection.commits import read_commits
from spanvault.collection.files import own_objects, part_objects, read_files
from spanvault.collection.layout import object_key
from spanvault.collection.lookup import find_subdir
from spanvault.columnar.read import read_batches, verified_file
from spanvault.columnar.types import file_schema
from spanvault.errors import Damaged
from spanvault.model.manifest import DataFile, Manifest, ManifestDatabase, ObjectReference
from spanvault.model.progress import Progress, Silent
from spanvault.model.schema import SYSTEM_COLUMNS, Table
from spanvault.storage.base import Storage
from spanvault.verify.files import object_count
from spanvault.verify.layers import layers_to_check
from spanvault.verify.places import AbsentPlaces
from spanvault.verify.result import Findings, VerificationResult

TableKey = tuple[str, int]


def check_data(
    storage: Storage,
    subdir: str = "LATEST",
    number: int | None = None,
    *,
    open_location: OpenLocation = no_locations,
    workers: int = 2,
    scratch: Path | None = None,
    progress: Progress | None = None,
) -> VerificationResult:
    """Read all of a chain's valid layers: digests of every object, columns and row counts of every data file, lists of
    transactions, and per table the rows that the manifest promises. With `number` that layer only. Needs a copy of
    `workers` data files at a time on `scratch` (default: the system's temporary folder).

    Raises NotFound and BadInput when there is no such backup to check.
    """
    findings = Findings("checksums")
    found = find_subdir(storage, subdir)
    progress = progress or Silent()
    with findings.guard():
        layers = layers_to_check(storage, found, number, open_location, findings)
        originals = {layer.manifest.number: layer.manifest for layer in layers if not layer.manifest.compacted}
        if number:
            originals[number - 1] = load_manifest(storage, found, number - 1)
        for layer in layers:
            with findings.guard():
                _check_layer(_Reading(storage, layer, originals, findings, progress, scratch), workers)
    return findings.result()


class _Reading:
    """One layer under verification: reads objects (from several threads) and counts what its list says. `originals` are
    the chain's original layers by number, as far as they are known: files may have an earlier shape of their table."""

    def __init__(
        self,
        storage: Storage,
        layer: Layer,
        originals: Mapping[int, Manifest],
        findings: Findings,
        progress: Progress,
        scratch: Path | None,
    ) -> None:
        self.storage = storage
        self.manifest = layer.manifest
        self.findings = findings
        self.progress = progress
        self.data = layer.data
        self._scratch = scratch
        self._shapes = {number: _shapes(manifest) for number, manifest in originals.items()}
        self._own = _shapes(layer.manifest)

    def check_object(self, reference: ObjectReference) -> None:
        """Compare an object's bytes with its digest."""
        self._check(self.storage, reference)

    def check_part(self, reference: ObjectReference) -> None:
        """The same of an object that is where the data files are."""
        self._check(self.data, reference)

    def _check(self, storage: Storage, reference: ObjectReference) -> None:
        with self.findings.guard():
            key = object_key(self.manifest.subdir, reference.path)
            with verified_file(storage, key, sha256=reference.sha256, size=reference.bytes, scratch=self._scratch):
                self._seen(reference.bytes, 0)

    def check_file(self, file: DataFile) -> None:
        """Compare a data file's bytes with its digest, then decode all of it and count."""
        with self.findings.guard():
            key = object_key(self.manifest.subdir, file.path)
            shapes = self._shapes_of(file)
            if not shapes:
                raise Damaged(f"{key} is of table {file.table_oid} of {file.database!r}, which the manifest does not have.")
            with verified_file(self.data, key, sha256=file.sha256, size=file.bytes, scratch=self._scratch) as local:
                rows = _count_rows(local, key, file, shapes)
            if rows != file.rows:
                raise Damaged(f"{key} holds {rows} rows, and {file.rows} were written.")
            self._seen(file.bytes, rows)

    def check_commits(self, entry: ManifestDatabase) -> None:
        """Compare a list of transactions with what the manifest says of the window."""
        reference = entry.commits
        if reference is None:
            return
        with self.findings.guard():
            count = 0
            for commit in read_commits(self.storage, self.manifest.subdir, reference):
                count += 1
                if not self.manifest.start.lsn <= commit.lsn < self.manifest.end.lsn:
                    raise Damaged(
                        f"{self.manifest.subdir}/{reference.path} lists a commit at {commit.lsn}, which is not between"
                        f" {self.manifest.start.lsn} and {self.manifest.end.lsn}."
                    )
            if count != entry.window.transactions:
                raise Damaged(
                    f"{self.manifest.subdir}/{reference.path} lists {count} transactions, and the manifest says"
                    f" {entry.window.transactions}."
                )

    def _shapes_of(self, file: DataFile) -> list[Table]:
        """The shapes that the file may have. One that a compacted layer took over is as its own layer's; changes may be
        as they were logged in the layer before or, compacted, in any that is stood for."""
        manifest = self.manifest
        folder = int(file.path.partition("/")[0]) if file.path[:1].isdigit() else manifest.number
        if folder != manifest.number and folder in self._shapes:
            candidates = [self._shapes[folder], self._shapes.get(folder - 1, {})]
        else:
            earlier = (self._shapes.get(number, {}) for number in range(manifest.first - 1, manifest.number))
            candidates = [self._own, *earlier]
        key = (file.database, file.table_oid)
        shapes = [tables[key] for tables in candidates if key in tables]
        return shapes if file.role == "change" else shapes[:1]

    def _seen(self, size: int, rows: int) -> None:
        self.findings.looked_at(bytes_=size, rows=rows)
        self.progress.advance(units=1, bytes_=size, rows=rows)


def _check_layer(layer: _Reading, workers: int) -> None:
    manifest = layer.manifest
    layer.progress.step("verify data", total_bytes=_total_bytes(manifest), total_units=object_count(manifest))
    rows: Counter[TableKey] = Counter()
    changed: set[TableKey] = set()
    count = size = 0
    absent = AbsentPlaces(layer.data, manifest, layer.findings)

    def listed() -> Iterable[Callable[[], None]]:
        nonlocal count, size
        for file in read_files(layer.storage, manifest.subdir, manifest.files):
            count, size = count + 1, size + file.bytes
            key = (file.database, file.table_oid)
            rows[key] += file.rows
            if file.role == "change":
                changed.add(key)
            if not absent.hold(file.path):
                yield partial(layer.check_file, file)

    own = (partial(layer.check_object, reference) for reference in own_objects(manifest))
    parts = (partial(layer.check_part, reference) for reference in absent.without(iter(part_objects(manifest))))
    commits = (partial(layer.check_commits, entry) for entry in manifest.databases)
    _in_parallel(itertools.chain(own, parts, commits, listed()), workers)
    if (count, size) != (manifest.totals.files, manifest.totals.file_bytes):
        layer.findings.fail(
            f"The list of {manifest.subdir} has {count} files of {size} bytes, and its manifest says"
            f" {manifest.totals.files} of {manifest.totals.file_bytes}."
        )
    _compare_rows(layer, rows, changed)


def _total_bytes(manifest: Manifest) -> int:
    return manifest.totals.file_bytes + sum(reference.bytes for reference in (*own_objects(manifest), *part_objects(manifest)))


def _compare_rows(layer: _Reading, rows: Counter[TableKey], changed: set[TableKey]) -> None:
    """A table's rows are those of its files where the layer holds it whole and no change has to be merged into it."""
    for entry in layer.manifest.databases:
        for table in entry.tables:
            key = (entry.database.name, table.oid)
            whole = table.basis is not None and layer.manifest.first <= table.basis <= layer.manifest.number
            if whole and table.rows_exact and key not in changed and rows[key] != table.rows:
                layer.findings.fail(
                    f"The files of table {table.oid} of {entry.database.name!r} in {layer.manifest.subdir} hold"
                    f" {rows[key]} rows, and the manifest says {table.rows}."
                )


def _in_parallel(tasks: Iterable[Callable[[], None]], workers: int) -> None:
    """Run the tasks on `workers` threads, taking no more of them than can run soon."""
    with ThreadPoolExecutor(workers) as pool:
        running: deque[Future[None]] = deque()
        for task in tasks:
            if len(running) >= 2 * workers:
                running.popleft().result()
            running.append(pool.submit(task))
        for future in running:
            future.result()


def _shapes(manifest: Manifest) -> dict[TableKey, Table]:
    return {(entry.database.name, table.oid): table for entry in manifest.databases for table in entry.database.tables}


def _count_rows(local: Path, key: str, file: DataFile, shapes: Sequence[Table]) -> int:
    """The rows of a file, whose columns must be those of its shape; where it may have one of several, at least the key of
    one of them and nothing that none of them has."""
    columns = [set(file_schema(table).names) for table in shapes]
    keys = [{column.stored_as for column in table.key_columns} for table in shapes]
    rows = 0
    try:
        for batch in read_batches(local):
            rows += batch.num_rows
            names = set(batch.schema.names)
            if file.role == "change":
                names -= SYSTEM_COLUMNS
            loose = len(shapes) > 1 and names <= set().union(*columns) and any(key <= names for key in keys)
            if names != columns[0] and not loose:
                raise Damaged(
                    f"{key} has the columns {sorted(names)}, and the table {shapes[0].qualified} has {sorted(columns[0])}."
                )
    except (pa.ArrowException, OSError) as error:
        raise Damaged(f"{key} cannot be decoded as Parquet, although its digest is right: {error}") from error
    return rows
