"""Every object of a collection, harmed in every way: it is named, or it does no harm; and never are wrong rows read.

Collections are made once, and copied for each case. What a state reads as is compared with what the source held, row by row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from spanvault.cli.main import run
from spanvault.collection.markers import mark_invalid
from spanvault.embedded.postgres import PostgresServer
from spanvault.engine.restore_local import run_restore
from spanvault.errors import SpanvaultError
from spanvault.model.clock import now
from spanvault.model.encryption import Argon2Parameters
from spanvault.model.request import RestoreOptions, RestoreRequest
from spanvault.model.target import DatabaseTarget
from tests.kit.prepared import Prepared, compacted, make_collection, make_source, objects_of, source_rows
from tests.kit.servers import TestDatabase, drop_database, fresh_database

Captured = pytest.CaptureFixture[str]
SECRET = "five words of no use"

# What every reader needs: whatever happens to it is found, and named.
NEEDED = ("manifest", "layer_manifest", "files", "layer_files", "dump", "layer_dump", "data", "exact", "change")
# What nobody reads once the layer is committed.
UNREAD = ("readme", "plan", "layer_plan", "receipt", "seal", "place")
MUST_BE_FOUND = {*NEEDED, "commits", "last_manifest", "compacted_manifest", "part", "encryption"}
CLASSES: dict[str, tuple[str, ...]] = {
    "plain": ("collection", "readme", "index", "layer_index", "plan", "layer_plan", "receipt", "seal", *NEEDED),
    "encrypted": ("encryption", "commits", "manifest", "layer_manifest", "files", "dump", "data", "change"),
    "history": ("commits", "change", "last_manifest", "layer_index"),
    "compacted": ("compacted_manifest", "last_manifest", "data"),
    "places": ("part", "place", "data"),
    "marked": ("marker",),
}
DOCUMENTS = {
    "collection",
    "index",
    "layer_index",
    "plan",
    "receipt",
    "manifest",
    "compacted_manifest",
    "encryption",
    "part",
    "marker",
}
PAIRS = {"data", "exact", "receipt", "manifest", "index", "files", "dump", "seal", "part", "change-history", "commits-history"}


def _flipped(data: bytes, place: float) -> bytes:
    """One bit is another; `place` from 0 (first byte) to 1 (last)."""
    position = round(place * (len(data) - 1))
    return data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]


BYTES: dict[str, Callable[[bytes], bytes]] = {
    "flipped_begin": lambda data: _flipped(data, 0),
    "flipped_middle": lambda data: _flipped(data, 0.5),
    "flipped_end": lambda data: _flipped(data, 1),
    "empty": lambda _: b"",
    "half": lambda data: data[: len(data) // 2],
    "last_byte_lost": lambda data: data[:-1],
    "extended": lambda data: data + b"\0",
}


@dataclass(frozen=True)
class Case:
    """What is harmed, in which kind of collection, and how."""

    kind: str
    name: str
    damage: str

    @property
    def id(self) -> str:
        """As the test is called."""
        return f"{self.kind}-{self.name}-{self.damage}"


def _cases() -> Iterator[Case]:
    for kind, names in CLASSES.items():
        for name in names:
            damages = ["missing", *BYTES]
            if name in PAIRS or f"{name}-{kind}" in PAIRS:
                damages.append("swapped")
            if kind != "marked" and name not in {"collection", "readme", "place", "last_manifest", "compacted_manifest"}:
                damages.append("of_another_backup")
            if name in DOCUMENTS:
                damages += ["edited", "newer_format"]
            yield from (Case(kind, name, damage) for damage in damages)


@pytest.fixture(scope="module")
def source(postgres: PostgresServer) -> Iterator[TestDatabase]:
    """What is backed up."""
    with fresh_database(postgres) as database:
        make_source(database)
        yield database


@pytest.fixture(scope="module")
def collections(source: TestDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Prepared]]:
    """The kinds of collections, each made when it is first asked for."""
    made: dict[str, Prepared] = {}
    folder = tmp_path_factory.mktemp("collections")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spanvault.crypto.info.PARAMETERS", Argon2Parameters(memory_kib=8192, iterations=1, lanes=1))
        makers: dict[str, Callable[[], Prepared]] = {
            "plain": lambda: make_collection(source, folder / "plain"),
            "encrypted": lambda: make_collection(source, folder / "encrypted", history=True, secret=SECRET),
            "history": lambda: make_collection(source, folder / "history", increments=2, history=True),
            "places": lambda: make_collection(source, folder / "places", places=True),
            "compacted": lambda: compacted(kind("history"), folder / "compacted", 1, 2),
            "marked": lambda: marked(kind("history"), folder / "marked"),
        }

        def kind(name: str) -> Prepared:
            if name not in made:
                made[name] = makers[name]()
            return made[name]

        yield kind


def marked(made: Prepared, folder: Path) -> Prepared:
    """A copy whose layer 2 was found damaged."""
    copy = made.copy(folder)
    mark_invalid(copy.storage, copy.subdir, 2, "a disk was lost", now())
    return replace(
        copy, objects=objects_of(copy, copy.subdir), held=made.held[:-2]
    )  # what is behind the layer before is not held


def harm(case: Case, made: Prepared) -> list[str]:
    """Do the damage; the paths of the objects that it harmed."""
    path = made.objects[case.name][0]
    victim = made.folder / path
    if case.damage in BYTES:
        put(victim, BYTES[case.damage](victim.read_bytes()))
    elif case.damage == "missing":
        victim.unlink()
    elif case.damage == "swapped":
        partner = made.folder / made.objects[case.name][1]
        first, second = victim.read_bytes(), partner.read_bytes()
        assert first != second
        put(victim, second)
        put(partner, first)
        return [path, made.objects[case.name][1]]
    elif case.damage == "of_another_backup":
        data = victim.read_bytes()
        put(victim, next(other for path in made.others[case.name] if (other := (made.aside / path).read_bytes()) != data))
    else:
        key = made.key(path)
        document = json.loads(made.storage.get(key))
        changed = (
            {**document, "format_version": document["format_version"] + 1} if case.damage == "newer_format" else edited(document)
        )
        assert changed != document
        data = json.dumps(changed, indent=1).encode()
        victim.unlink()
        made.storage.put(key, data)  # Of an encrypted chain by somebody who has the key.
    return [path]


def put(file: Path, data: bytes) -> None:
    """Put a new file in the place of a link."""
    file.unlink()
    file.write_bytes(data)


def edited(document: Any) -> Any:
    """The document with its last number one greater; of one without numbers the identity of the source is another."""
    numbers = [where for where in _numbers(document, ()) if where != ("format_version",)]
    changed = json.loads(json.dumps(document))
    if not numbers:
        changed["source_system_identifier"] = changed["source_system_identifier"][:-1] + "x"
        return changed
    target = changed
    for step in numbers[-1][:-1]:
        target = target[step]
    target[numbers[-1][-1]] += 1
    return changed


def _numbers(value: Any, where: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, int) and not isinstance(value, bool):
        yield where
    elif isinstance(value, dict | list):
        for step, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _numbers(inner, (*where, step))


def checked(made: Prepared, capsys: Captured, command: str = "check", *options: str) -> tuple[int, str, str]:
    """Run a command of `spanvault collection`; its exit code, its results and what it says."""
    default, *places = made.uris
    arguments = [*options, *(part for place in places for part in ("--place", place))]
    if made.keys.given:
        arguments += ["--passphrase-from", "env:DAMAGE_TEST_PASSPHRASE"]
    capsys.readouterr()
    code = run(["collection", command, default, *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def read(made: Prepared) -> list[bool]:
    """Read the newest end, and with history the last moment inside a layer: whether each could be read. What can be read
    equals what the source held."""
    readable = []
    for at, rows in made.held[-2 if made.history else -1 :]:
        try:
            found = made.rows(at)
        except SpanvaultError:
            readable.append(False)
            continue
        assert {table: found.get(table) for table in rows} == rows, f"wrong rows at {at}"
        readable.append(True)
    return readable


def _parameter(case: Case) -> Any:
    return pytest.param(case, id=case.id, marks=[] if case.kind == "plain" else [pytest.mark.slow])


@pytest.mark.parametrize("case", [_parameter(case) for case in _cases()])
def test_damage(
    case: Case, collections: Callable[[str], Prepared], tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAMAGE_TEST_PASSPHRASE", SECRET)
    made = collections(case.kind).copy(tmp_path / "copy")
    harmed = harm(case, made)
    readable = read(made)
    code, out, said = checked(made, capsys, "check", "--level", "checksums")
    assert "Traceback" not in said
    assert "unexpected" not in said
    if case.name in UNREAD:
        assert code == 0, said
    if code == 0:
        assert all(readable), "the check passed"
        # The final newline of an encryption info says nothing.
        assert case.name not in MUST_BE_FOUND or (case.name, case.damage) == ("encryption", "last_byte_lost"), out
        return
    assert code == 1, said
    sentences = [line for line in said.splitlines() if line.startswith("Error: ")]
    assert len(sentences) == 1, said
    names = {Path(path).name for path in harmed} | ({"ENCRYPTION-INFO"} if case.name == "encryption" else set())
    assert any(name in said.partition("Error: ")[2] for name in names), said


@pytest.mark.parametrize("damage", ["missing", "empty", "flipped_begin"])
def test_a_lost_index_is_rebuilt(damage: str, collections: Callable[[str], Prepared], tmp_path: Path, capsys: Captured) -> None:
    made = collections("history").copy(tmp_path / "copy")
    entries = sorted((made.main / "metadata" / "index").iterdir())
    before = [entry.read_bytes() for entry in entries]
    for entry in entries:
        put(entry, BYTES.get(damage, bytes)(entry.read_bytes()))
        if damage == "missing":
            entry.unlink()
    assert all(read(made))
    code, _, said = checked(made, capsys, "rebuild-index")
    assert code == 0, said
    assert [entry.read_bytes() for entry in entries] == before


@pytest.mark.parametrize("kind", ["plain", "encrypted"])
def test_a_lost_identity_keeps_the_backups(
    kind: str,
    collections: Callable[[str], Prepared],
    source: TestDatabase,
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DAMAGE_TEST_PASSPHRASE", SECRET)
    made = collections(kind).copy(tmp_path / "copy")
    identity = made.main / "COLLECTION.json"
    before = json.loads(identity.read_text())
    identity.unlink()
    # A new one would make strangers of the backups.
    assert run(["sql", "--url", source.url, f"BACKUP DATABASE {source.name} INTO '{made.uri}'"]) == 1
    assert "COLLECTION.json is missing" in capsys.readouterr().err
    assert not identity.exists()
    code, _, said = checked(made, capsys, "rebuild-index")
    assert code == 0, said
    after = json.loads(identity.read_text())
    for name in ("id", "source_system_identifier", "format_version"):
        assert after[name] == before[name]
    assert all(read(made))
    assert checked(made, capsys, "check", "--level", "checksums")[0] == 0


def restore_refused_or_right(made: Prepared, source: TestDatabase) -> str | None:
    """Restore the newest end with a real server: its rows are those that the source held, or it is refused with a sentence,
    which is returned, and nothing stays."""
    target = replace(source, name=f"{source.name}_restored")
    request = RestoreRequest(
        target=DatabaseTarget(names=(source.name,)),
        subdir=made.subdir,
        collection=made.uri,
        options=RestoreOptions(new_db_name=target.name, on_failure="clean"),
        encryption=made.keys,
    )
    at, rows = made.held[-1]
    try:
        run_restore(made.context, source.cluster, request, processes=False)
    except SpanvaultError as error:
        assert source.execute("select 1 from pg_database where datname = %s", [target.name]) == []
        return str(error)
    else:
        assert source_rows(target) == rows, f"wrong rows at {at}"
        return None
    finally:
        drop_database(source.server, target.name)


HARMLESS = {kind: [name for name in CLASSES[kind] if name in UNREAD] for kind in ("plain", "places")}


@pytest.mark.parametrize("damage", ["missing", "flipped_middle"])
@pytest.mark.parametrize("kind", HARMLESS)
def test_a_restore_needs_none_of_what_nobody_reads(
    kind: str, damage: str, collections: Callable[[str], Prepared], source: TestDatabase, tmp_path: Path
) -> None:
    made = collections(kind).copy(tmp_path / "copy")
    for name in (*HARMLESS[kind], *(("index", "layer_index") if damage == "missing" else ())):
        for path in made.objects[name]:
            if (made.folder / path).exists():
                harm(Case(kind, name, damage), replace(made, objects={name: [path]}))
    assert restore_refused_or_right(made, source) is None


SAMPLE = [
    Case("plain", "layer_dump", "half"),
    Case("plain", "data", "swapped"),
    Case("plain", "layer_manifest", "edited"),
    Case("encrypted", "layer_dump", "missing"),
    Case("encrypted", "change", "flipped_middle"),
    Case("history", "change", "last_byte_lost"),
    Case("places", "part", "missing"),
]


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in SAMPLE])
def test_a_restore_of_damage_is_refused_or_right(
    case: Case, collections: Callable[[str], Prepared], source: TestDatabase, tmp_path: Path
) -> None:
    made = collections(case.kind).copy(tmp_path / "copy")
    harmed = harm(case, made)
    refusal = restore_refused_or_right(made, source)
    assert refusal is not None
    assert "\n" not in refusal
    assert any(Path(path).name in refusal for path in harmed), refusal
