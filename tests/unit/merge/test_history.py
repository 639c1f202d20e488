"""Which layers and files make up a table."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from spanvault.collection.chain import Layer, Resolved
from spanvault.collection.files import write_files
from spanvault.errors import Damaged
from spanvault.merge.history import TableHistory, histories
from spanvault.model.cut import Cut, Lsn
from spanvault.model.manifest import (
    DataFile,
    Manifest,
    ManifestDatabase,
    ManifestTable,
    ObjectReference,
    Protection,
    SourceIdentity,
    Totals,
)
from spanvault.model.request import BackupRequest
from spanvault.model.schema import Database, Table
from spanvault.model.target import ClusterTarget
from spanvault.storage.local import LocalStorage
from tests.unit.merge.history_kit import NOW, SUBDIR, column

OBJECT = ObjectReference(path="x", sha256="0" * 64, bytes=0)
START = datetime(2026, 11, 22, tzinfo=UTC)


def shape(oid: int, name: str = "t") -> Table:
    return Table(oid=oid, schema_name="public", name=name, columns=(column(1, name),), key=(1,), capture="log")


def cut(number: int) -> Cut:
    return Cut(lsn=Lsn(100 * number), time=START + timedelta(minutes=number))


def entry(oid: int, basis: int | None = 0, since: int = 0) -> ManifestTable:
    return ManifestTable(oid=oid, rows=0, bytes=0, as_of=Lsn(0), basis=basis, since=Lsn(since))


def data_file(number: int, name: str, oid: int = 1, database: str = "shop", **more: Any) -> DataFile:
    path = f"{number:06d}/data/{name}.parquet"
    what = {"role": "change", **more}
    return DataFile(path=path, sha256="0" * 64, bytes=1, rows=1, database=database, table_oid=oid, **what)


class Chain:
    """Layers whose manifests and file lists are there; data files are only names."""

    def __init__(self, root: Path) -> None:
        self.storage = LocalStorage(root, f"file://{root}")
        self.elsewhere = LocalStorage(root / "elsewhere", f"file://{root}/elsewhere")
        self.layers: list[Layer] = []

    def add(
        self, number: int, tables: Sequence[ManifestTable], files: Sequence[DataFile], first: int | None = None, **more: Any
    ) -> None:
        names = {"shop": 50} | more.pop("databases", {})
        shapes = tuple(shape(table.oid, f"t{number}") for table in tables)
        manifest = Manifest(
            number=number,
            first=number if first is None else first,
            subdir=SUBDIR,
            collection_id="c",
            run_key="r",
            request=BackupRequest(into="file:///backups", target=ClusterTarget()),
            request_text="BACKUP",
            source=SourceIdentity(cluster="c", system_identifier="1", timeline=1, server_version="18"),
            start=cut(number),
            end=cut(number + 1),
            captured=cut(number + 1),
            databases=tuple(self._database(name, oid, shapes, tables) for name, oid in names.items() if oid),
            files=write_files(self.storage, SUBDIR, number, files),
            totals=Totals(tables=0, rows=0, file_bytes=0, files=0, source_bytes=0),
            planned_at=NOW,
            committed_at=NOW,
        )
        self.layers.append(Layer(manifest, "0" * 64, self.elsewhere if number else self.storage))

    @staticmethod
    def _database(name: str, oid: int, shapes: tuple[Table, ...], tables: Sequence[ManifestTable]) -> ManifestDatabase:
        whole = Database(name=name, oid=oid, encoding="UTF8", collate="C", ctype="C", owner="o", tables=shapes)
        protection = Protection(database=name, slot="s", publication="p", publication_oid=1, publication_xmin=1, start=Lsn(0))
        return ManifestDatabase(
            database=whole,
            protection=protection,
            captured=Lsn(0),
            catalogs="",
            types_version="",
            schema_dump=OBJECT,
            tables=tuple(tables),
        )

    def histories(self, *wanted: tuple[str, int], inner: Cut | None = None) -> dict[tuple[str, int], TableHistory]:
        last = self.layers[-1].manifest
        resolved = Resolved(tuple(self.layers), last if inner else None, inner or last.end, inner is not None)
        return histories(self.storage, resolved, lambda database, oid: not wanted or (database, oid) in wanted)


def names(history: TableHistory) -> list[tuple[int, list[str]]]:
    return [(layer.number, [file.path[-9] for file in layer.files]) for layer in history.layers]


def test_a_table_begins_with_its_basis(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    chain.add(0, [entry(1), entry(2)], [data_file(0, "a", role="base"), data_file(0, "b", oid=2, role="base")])
    chain.add(1, [entry(1), entry(2, basis=1)], [data_file(1, "c"), data_file(1, "d", oid=2, role="exact")])
    chain.add(2, [entry(1), entry(2, basis=1)], [data_file(2, "f"), data_file(2, "e", sequence=1)])
    found = chain.histories()
    assert {key: names(history) for key, history in found.items()} == {
        ("shop", 1): [(0, ["a"]), (1, ["c"]), (2, ["e", "f"])],
        ("shop", 2): [(1, ["d"]), (2, [])],
    }
    one = found["shop", 1]
    assert [layer.table.name for layer in one.layers] == ["t0", "t1", "t2"]
    assert (one.table.name, one.upto) == ("t2", None)
    assert [layer.storage for layer in one.layers] == [chain.storage, chain.elsewhere, chain.elsewhere]


def test_only_wanted_tables_and_needed_lists_are_read(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    chain.add(0, [entry(1)], [data_file(0, "a", role="base")])
    chain.add(1, [entry(1), entry(2, basis=1)], [data_file(1, "b"), data_file(1, "c", oid=2, role="base")])
    chain.storage.delete(f"{SUBDIR}/{chain.layers[0].manifest.files.path}")
    assert list(chain.histories(("shop", 2))) == [("shop", 2)]
    with pytest.raises(Damaged, match="is missing"):
        chain.histories(("shop", 1))
    assert chain.histories(("shop", 3)) == {}


def test_a_compacted_layer_holds_what_any_of_its_layers_held(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    chain.add(0, [entry(1)], [data_file(0, "a", role="base")])
    chain.add(3, [entry(1, basis=2)], [data_file(3, "b", role="exact")], first=1)
    chain.add(4, [entry(1, basis=2)], [data_file(4, "c")])
    assert names(chain.histories()["shop", 1]) == [(3, ["b"]), (4, ["c"])]


def test_a_basis_that_no_layer_holds_means_damage(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    chain.add(1, [entry(1)], [])
    with pytest.raises(Damaged, match=r"OID 1 of database 'shop' is held whole by layer 0"):
        chain.histories()


def test_a_table_without_basis_or_whole_only_behind_the_cut_is_left_out(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    chain.add(0, [entry(1), entry(2, since=150), entry(3, since=151), entry(4, basis=None)], [])
    inside = Cut(lsn=Lsn(150), time=START)
    assert list(chain.histories(inner=inside)) == [("shop", 1), ("shop", 2)]
    assert chain.histories(inner=inside)["shop", 1].upto == 150
    assert list(chain.histories()) == [("shop", 1), ("shop", 2), ("shop", 3)]


def test_a_database_is_followed_through_a_new_name(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    chain.add(
        0, [entry(1)], [data_file(0, "a", database="old", role="base"), data_file(0, "b")], databases={"shop": 9, "old": 50}
    )
    chain.add(1, [entry(1)], [data_file(1, "c")])
    assert names(chain.histories()["shop", 1]) == [(0, ["a"]), (1, ["c"])]


def test_a_layer_that_does_not_know_the_table_means_damage(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    chain.add(0, [entry(1)], [])
    chain.add(1, [], [])
    chain.add(2, [entry(1)], [])
    with pytest.raises(Damaged, match=r"Layer 1 .* does not describe the table with OID 1 of database 'shop'"):
        chain.histories()
