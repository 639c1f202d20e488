"""Small real collections, made once and copied for each case that harms them, with what their source held at every end."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from pydantic import SecretStr

from spanvault.collection.chain import resolve
from spanvault.collection.files import read_files
from spanvault.config.clusters import Cluster
from spanvault.config.settings import Settings
from spanvault.engine.context import Context
from spanvault.engine.local import run_backup
from spanvault.merge.history import histories
from spanvault.merge.table import table_at
from spanvault.model.cut import Lsn
from spanvault.model.locality import Locality
from spanvault.model.manifest import Manifest
from spanvault.model.request import BackupOptions, BackupRequest, EncryptionOptions
from spanvault.model.target import DatabaseTarget
from spanvault.storage.base import Storage
from tests.kit.servers import TestDatabase

TABLES = ("t", "keyless")
TIER = "region=eu"
PLAIN = EncryptionOptions()
Rows = dict[str, list[tuple[object, ...]]]


def make_source(database: TestDatabase) -> None:
    """A table with a key, of several spans, and one without."""
    database.execute(
        "create table t (id int primary key, v text); insert into t select i, md5(i::text) from generate_series(1, 1500) i;"
        " create table keyless (a int, b text); insert into keyless select i % 7, md5(i::text) from generate_series(1, 30) i"
    )


def change_source(database: TestDatabase) -> None:
    """Updates, deletions, insertions and a changed key."""
    database.execute(
        "update t set v = md5(v) where id % 300 = 0; delete from t where id = (select min(id) from t where id > 0);"
        " update t set id = -id where id = (select min(id) from t where id > 0);"
        " insert into t select max(id) + 1, 'new' from t; insert into keyless values (1, 'more')"
    )


def source_rows(database: TestDatabase) -> Rows:
    """What the source holds now."""
    return {table: sorted(database.execute(f"select * from {table}")) for table in TABLES}


@dataclass(frozen=True)
class Prepared:
    """A collection in `folder` (of a localities' one, a folder for each place). `held` are the states that it must give, by
    position or time; `objects` are, by class, paths below `folder` of the newest chain: the first is harmed, the second is
    of its class too, if there are two; `others` are the same of an older chain, below `aside`, which is the
    collection as it was with that chain."""

    folder: Path
    subdir: str
    keys: EncryptionOptions = PLAIN
    places: bool = False
    history: bool = False
    held: tuple[tuple[Lsn | datetime, Rows], ...] = ()
    objects: dict[str, list[str]] = field(default_factory=dict)
    others: dict[str, list[str]] = field(default_factory=dict)
    aside: Path = Path()

    @property
    def uris(self) -> list[str]:
        """The collection's URI, and those of its localities."""
        if not self.places:
            return [f"file://{self.folder}"]
        tier = TIER.replace("=", "%3D")
        return [f"file://{self.folder}/default?COCKROACH_LOCALITY=default", f"file://{self.folder}/eu?COCKROACH_LOCALITY={tier}"]

    @property
    def uri(self) -> str:
        """All of them, as the engine takes them."""
        return "\n".join(self.uris)

    @property
    def main(self) -> Path:
        """The folder of the collection itself."""
        return self.folder / "default" if self.places else self.folder

    @property
    def context(self) -> Context:
        """The engine's context with the keys."""
        return Context(settings=Settings(wait_for_writers=20)).unlocking(self.keys)

    @property
    def storage(self) -> Storage:
        """The collection, decrypted."""
        return self.context.storage(self.uri)

    def key(self, path: str) -> str:
        """The key of the object at a path below `folder`."""
        return path.partition("/")[2] if self.places else path

    def copy(self, folder: Path) -> Prepared:
        """The same in another folder, by hard links: who harms an object there must put a new file in its place."""
        shutil.copytree(self.folder, folder, copy_function=os.link)
        return replace(self, folder=folder)

    def rows(self, at: Lsn | datetime) -> Rows:
        """The state at a position or time of the newest chain, as a restore reads it."""
        context = self.context
        storage, found = context.storage(self.uri), {}
        resolved = resolve(storage, self.subdir, at, open_location=context.locations(self.uri))
        (entry,) = resolved.manifest.databases
        for (_, oid), history in histories(storage, resolved, lambda _, oid: True).items():
            table = next(table for table in entry.database.tables if table.oid == oid)
            names = [column.name for column in table.data_columns]
            stored = [column.stored_as for column in table.data_columns]
            assert len(names) == 2
            batches = (batch.select(stored) for batch in table_at(history, None))
            found[table.name] = sorted(tuple(row.values()) for batch in batches for row in batch.to_pylist())
        return found


@dataclass
class Making:
    """Runs backups of one database into one collection."""

    database: TestDatabase
    prepared: Prepared

    @property
    def cluster(self) -> Cluster:
        """The server as a node in region=eu."""
        (node,) = self.database.cluster.endpoints
        return Cluster(name="c", endpoints=(node.model_copy(update={"locality": Locality.parse(TIER)}),))

    def backup(self, append: str | None = None, *, history: bool = False) -> Manifest:
        """A backup in this process."""
        options = {"span_bytes": 65536, "workers": 1, "revision_history": history and append is not None}
        request = BackupRequest(
            target=DatabaseTarget(names=(self.database.name,)),
            into=self.prepared.uri,
            append=append,
            options=BackupOptions.model_validate(options),
            encryption=self.prepared.keys,
        )
        return run_backup(Context(settings=Settings(wait_for_writers=20)), self.cluster, request, processes=False)


def make_collection(
    database: TestDatabase,
    folder: Path,
    *,
    increments: int = 1,
    history: bool = False,
    secret: str | None = None,
    places: bool = False,
) -> Prepared:
    """Two chains: a full with one incremental, and then a full with `increments`."""
    keys = PLAIN if secret is None else EncryptionOptions(passphrase=SecretStr(secret))
    making = Making(database, Prepared(folder, "", keys, places, history))
    first = making.backup()
    change_source(database)
    making.backup("LATEST", history=history)
    change_source(database)
    last = making.backup()
    held: list[tuple[Lsn | datetime, Rows]] = [(last.end.lsn, source_rows(database))]
    database.execute("create index on t (v)")  # a layer has a schema of its own
    for _ in range(increments):
        change_source(database)
        # Inside a layer only what the log carries is known.
        inside = database.execute("select clock_timestamp()")[0][0], {"t": source_rows(database)["t"]}
        change_source(database)
        last = making.backup("LATEST", history=history)
        held += [inside] * history + [(last.end.lsn, source_rows(database))]
    made = replace(making.prepared, subdir=last.subdir, held=tuple(held))
    made = replace(made, objects=objects_of(made, last.subdir), others=objects_of(made, first.subdir))
    made = replace(made, aside=folder.with_name(f"{folder.name} with the older chain"))
    _move_away(made, first.subdir)
    return made


def _move_away(made: Prepared, subdir: str) -> None:
    """Take a chain out of the collection, so that a check of the rest is quick."""
    shutil.copytree(made.folder, made.aside, copy_function=os.link)
    for chain in (*made.folder.glob(subdir), *made.folder.glob(f"*/{subdir}")):
        shutil.rmtree(chain)
    for entry in made.main.glob(f"metadata/index/*{subdir.replace('/', '')}_*"):
        entry.unlink()


_PATTERNS = {
    "collection": ("COLLECTION.json",),
    "readme": ("README.txt",),
    "place": ("PLACE.json",),
    "encryption": ("{chain}/ENCRYPTION-INFO-000000.json",),
    "plan": ("{chain}/PLAN.json",),
    "layer_plan": ("{chain}/000001/PLAN-*.json",),
    "manifest": ("{chain}/chain/000000.json", "{chain}/chain/000001.json"),
    "layer_manifest": ("{chain}/chain/000001.json", "{chain}/chain/000000.json"),
    "last_manifest": ("{chain}/chain/000002.json", "{chain}/chain/000001.json"),
    "compacted_manifest": ("{chain}/chain/000001-000002.json", "{chain}/chain/000002.json"),
    "marker": ("{chain}/chain/000002.invalid.json",),
    "index": ("metadata/index/*{name}_000000.json", "metadata/index/*{name}_000001.json"),
    "layer_index": ("metadata/index/*{name}_000001.json", "metadata/index/*{name}_000000.json"),
    "files": ("{chain}/000000/files-*.parquet", "{chain}/000001/files-*.parquet"),
    "layer_files": ("{chain}/000001/files-*.parquet", "{chain}/000000/files-*.parquet"),
    "dump": ("{chain}/000000/schema-*.dump", "{chain}/000001/schema-*.dump"),
    "layer_dump": ("{chain}/000001/schema-*.dump", "{chain}/000000/schema-*.dump"),
    "commits": ("{chain}/000001/commits-*.parquet", "{chain}/000002/commits-*.parquet"),
    "receipt": ("{chain}/000000/progress/*.json",),
    "seal": ("{chain}/000000/seal-*.json", "{chain}/000001/seal-*.json"),
    "part": ("{chain}/000000/BACKUP_PART_*.json", "{chain}/000001/BACKUP_PART_*.json"),
}


def objects_of(made: Prepared, subdir: str) -> dict[str, list[str]]:
    """The paths below the collection's folder of a chain's objects, by class."""
    found: dict[str, list[str]] = {}
    for name, patterns in _PATTERNS.items():
        for pattern in patterns:
            glob = pattern.format(chain=subdir, name=subdir.replace("/", ""))
            paths = sorted([*made.folder.glob(glob), *made.folder.glob(f"*/{glob}")] if made.places else made.folder.glob(glob))
            found.setdefault(name, []).extend(path.relative_to(made.folder).as_posix() for path in paths)
    for number in range(len(list((made.main / subdir / "chain").glob("00000?.json")))):
        manifest = Manifest.from_json(made.storage.get(f"{subdir}/chain/{number:06d}.json"), "a manifest")
        for file in read_files(made.storage, subdir, manifest.files):
            name = {"base": "data", "change": "change", "exact": "exact"}[file.role]
            (path,) = made.folder.rglob(f"{subdir}/{file.path}")
            found.setdefault(name, []).append(path.relative_to(made.folder).as_posix())
    return found


def compacted(made: Prepared, folder: Path, first: int, number: int) -> Prepared:
    """A copy in which layers are compacted into one."""
    from spanvault.engine.maintenance import compact_backups

    copy = made.copy(folder)
    compact_backups(copy.context, copy.uri, copy.subdir, first=first, number=number)
    return replace(copy, objects=objects_of(copy, copy.subdir))
