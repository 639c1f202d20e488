"""Runs that end at any point, and what their chains must hold afterwards.

`Interrupted` makes runs of one collection under faults, each by a run's key, as a scheduler does and repeats them. It
remembers what the source held when a layer's manifest appeared; `check` compares every layer that was ever committed.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path

from spanvault.collection.chain import original_layers
from spanvault.collection.layout import INDEX_PREFIX
from spanvault.collection.lookup import complete_subdirs
from spanvault.config.settings import Settings
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.copy_in import copy_batches
from spanvault.database.postgres.quoting import quote
from spanvault.engine.context import Context
from spanvault.engine.maintenance import collection_check, sweep
from spanvault.engine.schedule import plan_scheduled
from spanvault.engine.steps import advance_protection, export_batch, plan_backup, seal_backup, write_manifest
from spanvault.merge.history import histories
from spanvault.merge.table import table_at
from spanvault.model.clock import now
from spanvault.model.cut import Lsn
from spanvault.model.manifest import Manifest, Plan
from tests.kit.faults import Action, Faults, FaultyStorage
from tests.kit.harness import Backup

LayerKey = tuple[str, int]  # the chain's folder and the layer's number
Rows = dict[str, list[str]]

# What is written where in a collection.
_KINDS = {
    "plan": "*PLAN*.json",
    "dump": "*/schema-*",
    "data": "*/data/*",
    "commits": "*/commits-*",
    "seal": "*/seal-*",
    "files": "*/files-*",
    "manifest": "*/chain/*",
    "index": f"{INDEX_PREFIX}*",
    "readme": "README.txt",
}
# Nothing there yet; half written; all written and invisible; there, and the answer lost.
_WRITES = (
    "storage.put.before",
    "storage.put.after",
    "storage.open_write.write",
    "storage.open_write.publish",
    "storage.open_write.after",
)


@dataclass(frozen=True)
class Moment:
    """The `nth` time in a run that `point` is reached, with an object of this kind if it is around a write to storage."""

    point: str
    nth: int
    kind: str = ""

    def arm(self, faults: Faults, action: Action) -> None:
        """Let it happen there."""
        faults.add_fault(self.point, key=_KINDS.get(self.kind, "*"), nth=self.nth, action=action)


def moments(log: Sequence[tuple[str, str]]) -> list[Moment]:
    """The moments of a clean run: each named point and each kind of write, at its first time and, where the next run has
    as many, at its last."""
    counts: Counter[tuple[str, str]] = Counter()
    for point, key in log:
        kind = next((kind for kind, pattern in _KINDS.items() if fnmatchcase(key, pattern)), "")
        if (kind and point in _WRITES) or not point.startswith("storage."):
            counts[point, kind] += 1
    return [
        Moment(point, nth, kind)
        for (point, kind), count in counts.items()
        for nth in sorted({1, count if _comes_as_often(point, kind) else 1})
    ]


def _comes_as_often(point: str, kind: str) -> bool:
    """Whether every run has as many: not the reads of tables, which a run may find unchanged."""
    return kind != "data" and point not in {"read.after_snapshot", "storage.open_write.write"}


@dataclass
class Interrupted:
    """Runs of one collection under faults. `held` is what the source held at the end of each layer; a table that is left
    out there is not compared."""

    backup: Backup
    tables: tuple[str, ...]
    faults: Faults = field(default_factory=Faults)
    held: dict[LayerKey, Rows] = field(default_factory=dict)

    @property
    def context(self) -> Context:
        """A context whose storage and steps reach the points of `faults`."""
        return Context(
            settings=Settings(wait_for_writers=self.backup.wait),
            progress=self.backup.progress,
            wrap=lambda storage: FaultyStorage(storage, self.faults),
            reached=self.faults.reach,
        )

    def clock(self) -> datetime:
        """The source's clock."""
        found: datetime = self.backup.database.execute("select clock_timestamp()")[0][0]
        return found.astimezone(UTC)

    def layer(
        self, run_key: str, due: datetime, times: Sequence[datetime] = (), *, upto: datetime | None = None, **options: object
    ) -> Manifest:
        """A run, or a try of it again, that brings the newest chain up to the last of `times`, or to `upto` of them, with a
        layer for each; or up to now."""
        request = self.backup.request.model_copy(
            update={"append": "LATEST", "options": self.backup.options.model_copy(update=options)}
        )
        plan = plan_scheduled(
            self.context,
            self.backup.database.cluster,
            request,
            run_key=run_key,
            due=due,
            interval_end=upto or (times[-1] if times else None),
            missed=lambda after, until: [moment for moment in times if after < moment <= until],
            full_every=timedelta(days=7),
        )
        return self.finish(plan)

    def full(self, run_key: str, due: datetime) -> Manifest:
        """A run, or a try of it again, that takes a full."""
        request = self.backup.request
        return self.finish(plan_backup(self.context, self.backup.database.cluster, request, run_key=run_key, due=due))

    def finish(self, plan: Plan) -> Manifest:
        """All that comes after the plan."""
        context, cluster, into = self.context, self.backup.database.cluster, self.backup.uri
        for batch in plan.batches:
            export_batch(context, cluster, into, plan, batch.index)
        manifest = write_manifest(context, into, plan, seal_backup(context, cluster, into, plan))
        advance_protection(context, cluster, manifest)
        return manifest

    def committed(self) -> set[LayerKey]:
        """The layers that are there."""
        found = self.backup.folder.glob("*/*/*/chain/??????.json")
        return {(str(path.parent.parent.relative_to(self.backup.folder)), int(path.stem)) for path in found}

    def note(self) -> set[LayerKey]:
        """Layers that appeared since the last call hold what the source holds now; returns them."""
        new = self.committed() - self.held.keys()
        if new:
            rows = {table: self.backup.source_rows(table) for table in self.tables}
            self.held.update(dict.fromkeys(new, rows))
        return new

    def sweep(self) -> int:
        """Remove everything that a sweep calls garbage, as if all of it were old; how many objects that were."""
        later = replace(self.backup.context, clock=lambda: now() + timedelta(days=30))
        swept = sweep(later, self.backup.uri, dry_run=False, older_than=timedelta(0))
        removed = swept.dicts()[0]["objects"]
        assert isinstance(removed, int)
        return removed

    def check(self, level: str = "checksums", *, ends: bool = True) -> None:
        """The collection is sound, its chains are contiguous, and every layer's end holds what the source held (unless the
        rows at the `ends` are not to be looked at)."""
        collection_check(self.backup.context, self.backup.uri, level)
        assert {key for key in self.held if key[1] == 0} == {(subdir, 0) for subdir in complete_subdirs(self.backup.storage)}
        assert self.held.keys() == self.committed()
        for subdir in complete_subdirs(self.backup.storage):
            for layer in original_layers(self.backup.storage, subdir, open_location=self.backup.context.storage):
                where = f"the end of layer {layer.manifest.number} of {subdir}"
                held = self.held[subdir, layer.manifest.number] if ends else {}
                assert self._rows(subdir, layer.end.lsn, held) == held, where

    def _rows(self, subdir: str, end: Lsn, names: Iterable[str]) -> Rows:
        """What a chain holds of these tables at a layer's end, loaded into PostgreSQL and printed by it, sorted."""
        database = self.backup.database
        resolved = self.backup.resolved(subdir, end)
        wanted = {table.oid: table.name for table in resolved.manifest.databases[0].database.tables if table.name in names}
        found = {}
        with connect(database.endpoint, purpose="test") as session:
            for (_, oid), history in histories(self.backup.storage, resolved, lambda _, oid: oid in wanted).items():
                columns = history.table.data_columns
                types = ", ".join(f"{quote(column.name)} {column.type_name}" for column in columns)
                session.execute(f"CREATE TEMP TABLE held ({types})".encode())
                copy_batches(session, "pg_temp.held", columns, table_at(history, None))
                found[wanted[oid]] = [row[0] for row in session.execute("SELECT held::text FROM pg_temp.held ORDER BY 1")]
                session.execute("DROP TABLE held")
        return found


def sample(found: Sequence[Moment], size: int) -> list[Moment]:
    """A fixed choice of moments, among it one of each kind."""
    chance = random.Random(size)
    kinds = list(dict.fromkeys(moment.kind for moment in found))
    each = [chance.choice([moment for moment in found if moment.kind == kind]) for kind in kinds]
    return each + chance.sample([moment for moment in found if moment not in each], max(0, size - len(each)))


def crash_all(places: Iterable[Moment], crash: Callable[[int, Moment], None]) -> None:
    """Call `crash` for each place; a failure says which it was."""
    for number, place in enumerate(places):
        try:
            crash(number, place)
        except Exception as error:
            error.add_note(f"at {place}")
            raise


def objects_below(folder: Path) -> int:
    """How many files lie there, those of unfinished writes too."""
    return sum(path.is_file() for path in folder.rglob("*"))
