"""A collection over several places: what goes where, what a restore asks for, what moved files and exchanged URIs do."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from spanvault.collection.files import read_files
from spanvault.collection.layout import path_kind
from spanvault.config.clusters import Cluster
from spanvault.config.settings import Settings
from spanvault.engine.context import Context
from spanvault.engine.execute import execute
from spanvault.engine.local import run_backup
from spanvault.engine.locks import extend_lock
from spanvault.engine.maintenance import collection_check, compact_backups, expire_backups, rebuild_index, restorable, sweep
from spanvault.engine.protections import all_held
from spanvault.engine.restore_local import run_restore
from spanvault.errors import BrokenChain, Damaged, NotFound, Refused
from spanvault.model.locality import Locality
from spanvault.model.manifest import DataFile, Manifest
from spanvault.model.request import (
    BackupOptions,
    BackupRequest,
    EncryptionOptions,
    RestoreOptions,
    RestoreRequest,
    ShowBackupRequest,
    ShowBackupsRequest,
)
from spanvault.model.result import DamagedInPart, Incomplete
from spanvault.model.target import DatabaseTarget
from tests.kit.harness import Notes
from tests.kit.servers import TestDatabase, drop_database

pytestmark = pytest.mark.slow
TABLES = ("t", "keyless")
TIERS = ("region=eu", "region=us")
PLAIN = EncryptionOptions()
PASSPHRASE = EncryptionOptions(passphrase=SecretStr("five words of no use"))


@dataclass
class Spread:
    """One database on a node in region=eu, and a folder for each place."""

    database: TestDatabase
    folder: Path
    keys: EncryptionOptions = PLAIN
    progress: Notes = field(default_factory=Notes)

    @property
    def context(self) -> Context:
        return Context(settings=Settings(wait_for_writers=20), progress=self.progress)

    @property
    def cluster(self) -> Cluster:
        (node,) = self.database.cluster.endpoints
        return Cluster(name="c", endpoints=(node.model_copy(update={"locality": Locality.parse("region=eu,zone=a")}),))

    def uri(self, *tiers: str) -> str:
        """The places' URIs: the default and these tiers, in folders of their own names."""
        tagged = [f"file://{self.folder / tier}?COCKROACH_LOCALITY={tier.replace('=', '%3D')}" for tier in ("default", *tiers)]
        return "\n".join(tagged)

    def backup(self, into: str, append: str | None = None, **options: object) -> Manifest:
        request = BackupRequest(
            target=DatabaseTarget(names=(self.database.name,)),
            into=into,
            append=append,
            options=BackupOptions.model_validate({"span_bytes": 65536, "workers": 1, **options}),
            encryption=self.keys,
        )
        return run_backup(self.context, self.cluster, request, processes=False)

    def restored(self, collection: str, **options: object) -> dict[str, list[tuple[object, ...]]]:
        """The rows of all tables in a new database."""
        name = f"{self.database.name}_restored"
        request = RestoreRequest(
            target=DatabaseTarget(names=(self.database.name,)),
            collection=collection,
            options=RestoreOptions.model_validate({"new_db_name": name, **options}),
            encryption=self.keys,
        )
        try:
            run_restore(self.context, self.cluster, request, processes=False)
            return rows_of(replace(self.database, name=name))
        finally:
            drop_database(self.database.server, name)

    def files(self, tier: str) -> dict[str, list[str]]:
        """The paths within chains that a place holds, by their kind; others by name."""
        found: dict[str, list[str]] = {}
        for path in sorted((self.folder / tier).rglob("*")):
            if path.is_file():
                name = path.relative_to(self.folder / tier).as_posix()
                inside = name.split("/", 3)[-1] if name[:2] == "20" else ""
                found.setdefault(path_kind(inside) or name, []).append(inside)
        return found


def rows_of(database: TestDatabase) -> dict[str, list[tuple[object, ...]]]:
    return {table: sorted(database.execute(f"select x::text from {table} x")) for table in TABLES}


@pytest.fixture
def spread(database: TestDatabase, tmp_path: Path) -> Iterator[Spread]:
    database.execute(
        "create table t (id int primary key, v text); insert into t select i, md5(i::text) from generate_series(1, 4000) i;"
        "create table keyless (v text); insert into keyless select md5(i::text) from generate_series(1, 90) i"
    )
    yield Spread(database, tmp_path)


def change(database: TestDatabase) -> None:
    database.execute(
        "update t set v = md5(v) where id % 3 = 0; delete from t where id % 50 = 1;"
        " insert into t select max(id) + 1, 'new' from t; insert into keyless values ('more')"
    )


@pytest.mark.parametrize("keys", [PLAIN, PASSPHRASE], ids=["plain", "encrypted"])
def test_files_lie_where_the_node_is_and_come_back(spread: Spread, keys: EncryptionOptions) -> None:
    spread.keys = keys
    into = spread.uri(*TIERS)
    manifests = [spread.backup(into)]
    change(spread.database)
    manifests.append(spread.backup(into, "LATEST"))
    change(spread.database)
    manifests.append(spread.backup(into, "LATEST", revision_history=True))
    assert set(spread.files("region=eu")) == {"PLACE.json", "data", "part"}
    assert set(spread.files("region=us")) == {"PLACE.json", "part"}
    assert "data" not in spread.files("default")
    assert len(spread.files("region=us")["part"]) == 3
    assert all(path.split("/")[2] == "region=eu" for path in spread.files("region=eu")["data"])
    assert {part.locality for manifest in manifests for part in manifest.parts} == set(TIERS)
    assert [held.owner.collection for held in all_held(spread.cluster) if held.owner] == [into.splitlines()[0]]
    assert spread.restored(into) == rows_of(spread.database)
    assert json.loads((spread.folder / "region=us" / "PLACE.json").read_text())["locality"] == "region=us"
    context = spread.context.unlocking(keys)
    for level in ("check_files", "checksums"):
        assert collection_check(context, into, level).rows


def test_a_place_that_is_not_given_is_asked_for(spread: Spread) -> None:
    into = spread.uri(*TIERS)
    spread.backup(into)
    for given, missing in ((spread.uri("region=eu"), "region=us"), (spread.uri("region=us"), "region=eu")):
        with pytest.raises(NotFound, match=rf"BACKUP_PART_.* not found in the locations given: .*COCKROACH_LOCALITY={missing}"):
            spread.restored(given)
        notes = Notes()
        context = replace(spread.context, progress=notes)
        (listed,) = execute(context, ShowBackupsRequest(collection=given, ids=True), cluster=None).dicts()
        shown = ShowBackupRequest(collection=given, subdir=str(listed["id"]), schemas=True)
        assert execute(context, shown, cluster=None).rows
        assert [note for note in notes.notes if "not in the locations given" in note and missing in note]


def test_a_check_names_the_place_that_is_not_given_and_shows_the_rest(spread: Spread) -> None:
    """Two chains, of which one has its region=us in a folder of its own."""
    into, first = spread.uri(*TIERS), spread.uri(*TIERS).replace("/region=us?", "/old_us?")
    chains = [spread.backup(places).subdir for places in (first, into)]
    default = spread.uri()
    for level in ("check_files", "checksums"):
        with pytest.raises(Incomplete) as found:
            collection_check(spread.context, default.replace("?COCKROACH_LOCALITY=default", ""), level)
        assert not isinstance(found.value, Damaged)
        assert found.value.result.dicts()[0]["outcome"] == "could not verify"
        for tier in TIERS:
            sentence = f"The files of {tier} of {chains[0]}, {chains[1]} were not looked at, because their place is not given"
            assert str(found.value).count(sentence) == 1
        assert "missing" not in str(found.value)
        assert ".parquet" not in str(found.value)
    lost = next((spread.folder / "region=eu" / chains[1]).rglob("*.parquet"))
    lost.unlink()
    with pytest.raises(DamagedInPart, match="The following files are missing from the backup:") as damaged:
        collection_check(spread.context, spread.uri("region=eu"), "check_files")
    assert f"\t{chains[1]}/000000/data/region=eu/{lost.name}\n" in str(damaged.value)
    assert str(damaged.value).count("parquet") == 1
    assert f"Not all could be looked at: The files of region=us of {chains[0]}, {chains[1]} were not" in str(damaged.value)
    assert damaged.value.result.dicts()[0]["outcome"] == "fail"
    with pytest.raises(DamagedInPart) as elsewhere:
        collection_check(spread.context, into, "check_files")
    written = f"and all other files of region=us; they were written to file://{spread.folder}/old_us?COCKROACH_LOCALITY="
    assert f"\t{chains[0]}/000000/BACKUP_PART_region=us-" in str(elsewhere.value)
    assert written in str(elsewhere.value)
    assert str(elsewhere.value).count(chains[0]) == 1


def test_a_sweep_says_which_places_it_did_not_look_at(spread: Spread) -> None:
    into = spread.uri(*TIERS)
    spread.backup(into)
    for given, sentence in (
        (spread.uri().replace("?COCKROACH_LOCALITY=default", ""), "1 of 3 places of the collection was"),
        (spread.uri("region=us"), "2 of 3 places of the collection were"),
        (into, None),
    ):
        notes = Notes()
        sweep(replace(spread.context, progress=notes), given)
        told = [note for note in notes.notes if "places of the collection" in note]
        assert bool(told) == (sentence is not None)
        if sentence is not None:
            assert told[0].startswith(sentence)
            assert "region=eu" in told[0]
            assert ("region=us" in told[0]) == ("region=us" not in given and "region%3Dus" not in given)


def test_files_may_be_moved_and_gathered(spread: Spread) -> None:
    """All in one folder, and all but the default's in another place than they were."""
    into = spread.uri(*TIERS)
    spread.backup(into)
    change(spread.database)
    spread.backup(into, "LATEST")
    wanted = rows_of(spread.database)
    moved = spread.folder / "region=us"
    shutil.copytree(spread.folder / "region=eu", moved, dirs_exist_ok=True)
    shutil.rmtree(spread.folder / "region=eu")
    assert spread.restored(into) == wanted
    shutil.copytree(moved, spread.folder / "default", dirs_exist_ok=True)
    shutil.rmtree(moved)
    assert spread.restored(f"file://{spread.folder / 'default'}") == wanted


def test_a_chain_keeps_its_localities(spread: Spread) -> None:
    spread.backup(spread.uri("region=eu"))
    for other in (spread.uri(), spread.uri(*TIERS)):
        with pytest.raises(BrokenChain, match="has URIs for the localities default, region=eu, and default"):
            spread.backup(other, "LATEST", on_broken_chain="fail")
    change(spread.database)
    fresh = spread.backup(spread.uri(*TIERS), "LATEST")
    assert fresh.kind == "full"
    (told,) = [note for note in spread.progress.notes if "A full backup is taken instead" in note]
    assert ": region=us is new. A chain keeps its localities" in told
    assert "reads all tables" in told
    assert "on_broken_chain = 'fail'" in told
    with pytest.raises(BrokenChain, match="there is none for region=us any more, and zone=a is new"):
        spread.backup(spread.uri("region=eu", "zone=a"), "LATEST", on_broken_chain="fail")
    assert spread.restored(spread.uri(*TIERS)) == rows_of(spread.database)
    spread.backup(spread.uri(*TIERS).replace("/region=us?", "/other?"), "LATEST")
    (told,) = [note for note in spread.progress.notes if "The place of" in note]
    assert f"of region=us was file://{spread.folder}/region%3Dus?" in told
    assert f"is file://{spread.folder}/other?" in told


def test_exchanged_and_foreign_places_are_refused(spread: Spread, tmp_path: Path) -> None:
    into = spread.uri(*TIERS)
    spread.backup(into)
    exchanged = into.replace("region%3Deu", "x").replace("region%3Dus", "region%3Deu").replace("=x", "=region%3Dus")
    for append in (None, "LATEST"):
        with pytest.raises(Refused, match=r"is the place of region=eu in this collection.*region=us: the URIs seem"):
            spread.backup(exchanged, append)
    other = into.replace(str(spread.folder / "default"), str(tmp_path / "second"))
    with pytest.raises(Refused, match="a place is for one collection"):
        spread.backup(other)
    spread.backup(f"file://{tmp_path / 'second'}")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    reading: tuple[Callable[[str], object], ...] = (
        spread.restored,
        lambda uri: collection_check(spread.context, uri, "check_files"),
        lambda uri: restorable(spread.context, uri),
        lambda uri: rebuild_index(spread.context, uri),
    )
    deleting: tuple[Callable[[str], object], ...] = (
        lambda uri: sweep(spread.context, uri, dry_run=False),
        lambda uri: expire_backups(spread.context, uri, keep_last=1, window=None, dry_run=False),
    )
    for work in deleting:
        with pytest.raises(Refused, match="the URIs seem to be exchanged"):
            work(exchanged)
    for work in (*reading, *deleting):
        with pytest.raises(Refused, match="a place is for one collection"):
            work(other)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert spread.restored(exchanged) == rows_of(spread.database), "what is read is verified, wherever it lies"


def test_a_part_of_another_backup_is_refused(spread: Spread) -> None:
    into = spread.uri("region=eu")
    first = spread.backup(into)
    second = spread.backup(into)
    place = spread.folder / "region=eu"
    ((own, other),) = [tuple(place / manifest.subdir / manifest.parts[0].document.path for manifest in (first, second))]
    other.write_bytes(own.read_bytes())
    with pytest.raises(Damaged, match="is not that of this backup: it was written by the run"):
        spread.restored(into)


def test_compacted_and_expired(spread: Spread) -> None:
    """Merged layers keep what lies at localities; an expired chain leaves nothing anywhere."""
    into = spread.uri(*TIERS)
    old = spread.backup(into)
    for _ in range(3):
        change(spread.database)
        spread.backup(into, "LATEST")
    wanted = rows_of(spread.database)
    compact_backups(spread.context, into, "LATEST", first=0, number=None)
    assert spread.restored(into) == wanted
    spread.backup(into)
    default = spread.uri().replace("?COCKROACH_LOCALITY=default", "")
    decisions = expire_backups(spread.context, default, keep_last=1, window=None, dry_run=False).dicts()
    (failed,) = [decision for decision in decisions if decision["decision"] != "keep"]
    assert (failed["decision"], failed["path"]) == ("failed", old.subdir)
    assert "is not deleted: it has files at the URIs of region=eu, region=us" in str(failed["reason"])
    with pytest.raises(NotFound, match="is not protected any longer: it has files at the URIs of region=eu, region=us"):
        extend_lock(spread.context, default, old.subdir, days=1)
    assert list((spread.folder / "region=eu" / old.subdir).rglob("*.parquet"))
    expire_backups(spread.context, into, keep_last=1, window=None, dry_run=False)
    left = [path for tier in ("default", *TIERS) for path in (spread.folder / tier / old.subdir).rglob("*") if path.is_file()]
    assert left == []
    assert spread.restored(into) == wanted


def test_what_a_dead_run_left_at_localities_is_swept(spread: Spread) -> None:
    into = spread.uri("region=eu")
    manifest = spread.backup(into)
    folder = spread.folder / "region=eu" / manifest.subdir / "000000"
    for left in (folder / "data" / "region=eu" / f"{uuid.uuid4()}.parquet", folder / "BACKUP_PART_region=eu-0123abcd.json"):
        left.write_bytes(b"left")
    sweep(spread.context, into, dry_run=False, older_than=timedelta(0))
    assert not list(folder.rglob("*0123abcd*"))
    assert len(list(folder.rglob("*.parquet"))) == sum(file.locality == "region=eu" for file in listed(spread, into, manifest))
    assert spread.restored(into) == rows_of(spread.database)


def listed(spread: Spread, into: str, manifest: Manifest) -> list[DataFile]:
    return list(read_files(spread.context.storage(into), manifest.subdir, manifest.files))


def test_incremental_locations_have_places_too(spread: Spread) -> None:
    into = spread.uri("region=eu")
    layers = into.replace(str(spread.folder), str(spread.folder / "layers"))
    spread.backup(into)
    change(spread.database)
    manifest = spread.backup(into, "LATEST", incremental_location=layers)
    own = list((spread.folder / "layers" / "region=eu").rglob("*.parquet"))
    assert len(own) == manifest.totals.files > 0
    assert spread.restored(into) == rows_of(spread.database)
