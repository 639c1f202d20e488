"""Checks of a place: a good one is found good on real backends, each broken property is found and named, nothing stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
import unicodedata
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from spanvault.cli.main import run
from spanvault.config.settings import Settings
from spanvault.embedded.seaweed import SeaweedServer
from spanvault.engine.context import Context
from spanvault.engine.storage_check import storage_check
from spanvault.errors import BadInput, Locked, NotFound, Retryable
from spanvault.storage.base import ObjectInfo, Storage, Unfinished, Writer
from spanvault.storage.s3 import S3Storage
from tests.kit.command_line import PROGRAM, environment, hear_ctrl_c, refusal
from tests.kit.faults import Faults, FaultyStorage

Captured = pytest.CaptureFixture[str]
ALWAYS = [
    "write, read and list",
    "delete",
    "conditional create",
    "read after write",
    "list after write",
    "listing order",
    "unicode keys",
    "interrupted stream",
    "unfinished writes",
    "write speed",
    "read speed",
    "clean-up",
]
SHORT = 8.0
# SeaweedFS lists buckets that keep versions in the order of encoded names: a fault that a check finds.
VERSIONED = {"unicode keys": "warning"}


def checked(uri: str, wrap: type[FaultyStorage] | None = None, **options: object) -> dict[str, tuple[str, str]]:
    """Status and sentence of each property."""
    context = Context(settings=Settings(), wrap=lambda storage: wrap(storage, Faults()) if wrap else storage)
    rows = storage_check(context, uri, transfer="3MiB", **options).dicts()  # type: ignore[arg-type]
    return {str(row["check"]): (str(row["status"]), str(row["detail"])) for row in rows}


def wrong(found: dict[str, tuple[str, str]]) -> dict[str, str]:
    """What is not ok, and how."""
    return {name: status for name, (status, _) in found.items() if status != "ok"}


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture
def local(tmp_path: Path) -> str:
    return f"file://{tmp_path}"


@pytest.fixture(autouse=True)
def _fresh_counts() -> None:
    """What the broken storages remember is of one check; its storages share it."""
    TwoWinners.creations.clear()
    StaleRead.first.clear()
    LaggingList.seen.clear()
    Leftover.left.clear()


def test_a_good_place_is_found_good_and_left_as_it_was(storage_uri: str, storage: Storage) -> None:
    storage.put("COLLECTION.json", b"a collection's own")
    found = checked(storage_uri)
    assert list(found) == ALWAYS
    assert wrong(found) == {}
    assert [info.key for info in storage.list()] == ["COLLECTION.json"]
    assert list(storage.list_unfinished()) == []
    assert storage.get("COLLECTION.json") == b"a collection's own"


def test_speeds_are_those_of_the_bytes_that_were_asked_for(local: str) -> None:
    rows = storage_check(Context(settings=Settings()), local, transfer="1500KB").dicts()
    speeds = {row["check"]: row["mb_per_second"] for row in rows}
    assert {name for name, speed in speeds.items() if speed is not None} == {"write speed", "read speed"}
    assert all(isinstance(speed, float) and speed > 0 for speed in speeds.values() if speed is not None)
    assert str(next(row["detail"] for row in rows if row["check"] == "write speed")).startswith(
        "1500000 bytes in one stream took "
    )


class TwoWinners(FaultyStorage):
    """Lets the first two creators of an object win."""

    creations: ClassVar[Counter[str]] = Counter()
    lock = threading.Lock()

    def put(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        with self.lock:
            self.creations[key] += create_only
            super().put(key, data, create_only=create_only and self.creations[key] != 2)


class NoWinner(FaultyStorage):
    """Fails each creation."""

    def put(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        if create_only:
            raise BadInput("The store knows no If-None-Match.")
        super().put(key, data)


class CreatesAgain(FaultyStorage):
    """Takes a creation for done if the same bytes are there."""

    def put(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        if create_only and self.head(key) and self.get(key) == data:
            return
        super().put(key, data, create_only=create_only)


class StaleRead(FaultyStorage):
    """Goes on giving the first content of an object."""

    first: ClassVar[dict[str, bytes]] = {}

    def get(self, key: str) -> bytes:
        return self.first.setdefault(key, super().get(key)) if "/read/" in key else super().get(key)


class LaggingList(FaultyStorage):
    """Shows an object in the second listing after it was written."""

    seen: ClassVar[set[str]] = set()

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        for info in super().list(prefix):
            if info.key in self.seen or "/list/" not in info.key:
                yield info
            self.seen.add(info.key)


class Unordered(FaultyStorage):
    """Lists in descending order."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        infos = list(super().list(prefix))
        return iter(infos[::-1] if "/order/" in prefix else infos)


class Normalising(FaultyStorage):
    """Lists names in Unicode's composed form, as some file systems keep them."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        for info in super().list(prefix):
            yield info.model_copy(update={"key": unicodedata.normalize("NFC", info.key)})


class Truncating(FaultyStorage):
    """Publishes what an interrupted writer had written."""

    @contextmanager
    def open_write(self, key: str) -> Iterator[Writer]:
        error: BaseException | None = None
        with super().open_write(key) as writer:
            try:
                yield writer
            except BaseException as raised:
                error = raised
        if error is not None:
            raise error


class Early(FaultyStorage):
    """Shows an empty object while it is written."""

    @contextmanager
    def open_write(self, key: str) -> Iterator[Writer]:
        self.put(key, b"")
        with super().open_write(key) as writer:
            yield writer


class Leftover(FaultyStorage):
    """Leaves an unfinished upload for each interrupted stream, until it is removed."""

    left: ClassVar[list[Unfinished]] = []

    @contextmanager
    def open_write(self, key: str) -> Iterator[Writer]:
        try:
            with super().open_write(key) as writer:
                yield writer
        except BaseException:
            self.left.append(Unfinished(key=key, started=0, handle=str(len(self.left))))
            raise

    def list_unfinished(self) -> Iterator[Unfinished]:
        return iter([*self.left, Unfinished(key="000001/data/of-another", started=0, handle="another's")])

    def remove_unfinished(self, unfinished: Unfinished) -> None:
        self.left.remove(unfinished)


class Garbling(FaultyStorage):
    """Gives back other bytes than were streamed."""

    def read_chunks(self, key: str, chunk_size: int = 1 << 20) -> Iterator[bytes]:
        for chunk in super().read_chunks(key, chunk_size):
            yield chunk[:-1] + bytes([chunk[-1] ^ 1]) if key.endswith("/speed") else chunk


class Undeletable(FaultyStorage):
    """Refuses each deletion."""

    def delete(self, key: str) -> None:
        raise Locked(f"{key!r} is protected.")


class DeafToDeletion(FaultyStorage):
    """Answers a deletion with success the first time, and does it the second time."""

    def delete(self, key: str) -> None:
        if self._faults.count("deleted", key):
            super().delete(key)
        self._faults.reach("deleted", key)


@pytest.mark.parametrize(
    ("broken", "name", "status", "words"),
    [
        (TwoWinners, "conditional create", "failed", "2 of 16 writers at once were told that they alone created"),
        (NoWinner, "conditional create", "failed", "None of 16 writers at once could create an object: The store knows no"),
        (CreatesAgain, "conditional create", "failed", "was created again, with the same bytes"),
        (StaleRead, "read after write", "failed", "Object 1 of 20 had its old bytes for another reader"),
        (LaggingList, "list after write", "failed", "A listing right after object 1 of 20 was written left out 1 of them"),
        (Unordered, "listing order", "failed", "not complete and in the order"),
        (Normalising, "unicode keys", "warning", "are listed otherwise than they were written"),
        (Truncating, "interrupted stream", "failed", "an object is visible (1024 bytes)"),
        (Early, "interrupted stream", "failed", "visible before its end"),
        (Leftover, "unfinished writes", "warning", "left 3 unfinished uploads"),
        (Garbling, "read speed", "failed", "Of 3145728 bytes that were streamed 3145728 came back, and they are not those"),
    ],
)
def test_a_broken_property_is_found_and_named(
    local: str, tmp_path: Path, broken: type[FaultyStorage], name: str, status: str, words: str
) -> None:
    found = checked(local, broken)
    assert wrong(found) == {name: status}
    assert words in found[name][1]
    assert files(tmp_path) == []
    assert Leftover.left == []


def test_where_nothing_can_be_deleted_little_is_written_unless_it_may_stay(local: str, tmp_path: Path) -> None:
    found = checked(local, Undeletable)
    untried = dict.fromkeys(ALWAYS[2:-1], "not checked")
    assert wrong(found) == {"delete": "warning", **untried, "clean-up": "warning"}
    assert found["delete"][1].endswith("/first' is protected.")
    assert found["clean-up"][1].startswith("2 objects that the check wrote stay below spanvault-check-")
    assert {path.name for path in files(tmp_path)} == {"first", "empty"}
    assert wrong(checked(local, Undeletable, leave_behind=True)) == {"delete": "warning", "clean-up": "warning"}


def test_a_deletion_that_does_nothing_is_a_failure(local: str) -> None:
    found = checked(local, DeafToDeletion)
    assert found["delete"] == ("failed", "A deletion was answered with success, and the object is still there.")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a defect")], ids=["ctrl-c", "defect"])
@pytest.mark.parametrize(
    "point",
    ["storage.put.after", "storage.open_write.write", "storage.open_write.after", "storage.list.before", "storage.delete.before"],
)
def test_nothing_stays_however_a_check_ends(local: str, tmp_path: Path, point: str, error: BaseException) -> None:
    faults = Faults()
    faults.add_fault(point, action=error, nth=1 if point == "storage.open_write.after" else 2)
    context = Context(settings=Settings(), wrap=lambda storage: FaultyStorage(storage, faults))
    with pytest.raises(type(error)):
        storage_check(context, local, transfer="3MiB")
    assert files(tmp_path) == []


def test_a_place_that_fails_for_a_while_is_cleaned_and_the_failure_named(local: str, tmp_path: Path) -> None:
    faults = Faults()
    faults.add_fault("storage.put.before", key="*/list/*", action=Retryable("The store is down."), nth=3)
    context = Context(settings=Settings(), wrap=lambda storage: FaultyStorage(storage, faults))
    rows = storage_check(context, local, transfer="3MiB").dicts()
    assert [(row["check"], row["detail"]) for row in rows if row["status"] != "ok"] == [
        ("list after write", "The store is down.")
    ]
    assert files(tmp_path) == []


def test_each_of_several_places_is_tried(tmp_path: Path) -> None:
    for name in ("us", "eu"):
        (tmp_path / name).mkdir()
    uris = [
        f"file://{tmp_path}/us?COCKROACH_LOCALITY=default",
        f"file://{tmp_path}/eu?COCKROACH_LOCALITY=region%3Deu",
    ]

    def wrap(storage: Storage) -> Storage:
        return DeafToDeletion(storage, Faults()) if "/eu" in storage.display_uri else storage

    result = storage_check(Context(settings=Settings(), wrap=wrap), "\n".join(uris), transfer="1MiB", leave_behind=True)
    assert result.columns == ("locality", "check", "status", "detail", "mb_per_second")
    rows = result.dicts()
    for locality in ("default", "region=eu"):
        assert [row["check"] for row in rows if row["locality"] == locality] == ALWAYS
    assert {row["locality"] for row in rows if row["status"] == "failed"} == {"region=eu"}
    assert files(tmp_path / "us") == []


def test_a_mistake_in_one_of_several_places_is_found_before_anything_is_tried(tmp_path: Path) -> None:
    uris = [f"file://{tmp_path}/us?COCKROACH_LOCALITY=default", f"file://{tmp_path}/eu"]
    with pytest.raises(BadInput, match="does not say which locality it is for"):
        storage_check(Context(settings=Settings()), "\n".join(uris), transfer="1MiB")
    assert files(tmp_path) == []


@contextmanager
def _writing(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The command in the middle of its long stream."""
    # 20 MB a second: the stream of 8 GiB is never done.
    more = {"SPANVAULT_STORAGE_RATE_LIMIT": "20MB"}
    arguments = [PROGRAM, "storage", "check", f"file://{folder}", "--transfer", "8GiB"]
    with subprocess.Popen(
        arguments,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(more),
        preexec_fn=hear_ctrl_c,  # noqa: PLW1509 - it does no more than that
    ) as process:
        assert process.stderr is not None
        assert any("Checking write speed" in line for line in process.stderr)
        yield process


def _killed_while_it_writes(folder: Path) -> None:
    with _writing(folder) as process:
        process.kill()


@pytest.mark.slow
def test_ctrl_c_at_the_command_line(tmp_path: Path) -> None:
    with _writing(tmp_path) as process:
        os.kill(process.pid, signal.SIGINT)
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(60) == 130
    assert "What the check wrote was removed" in said
    assert files(tmp_path) == []


@pytest.mark.slow
def test_what_a_killed_check_left_goes_a_day_later(local: str, tmp_path: Path) -> None:
    stranger = "spanvault-check-of-mine/first"
    (tmp_path / stranger).parent.mkdir()
    (tmp_path / stranger).write_bytes(b"")
    _killed_while_it_writes(tmp_path)
    left = [path for path in files(tmp_path) if ".spanvault-tmp" not in path.parts and path != tmp_path / stranger]
    assert len(left) > 50
    for path in left[1:]:
        _make_old(path)
    _make_old(tmp_path / stranger)
    _make_old(tmp_path / "COLLECTION.json")
    assert wrong(checked(local)) == {}
    assert all(path.exists() for path in left), "one of its objects is new, so that check may be at work"
    _make_old(left[0])
    assert f"of what killed checks had left, too: {len(left)}." in checked(local)["clean-up"][1]
    stays = {path for path in files(tmp_path) if ".spanvault-tmp" not in path.parts}
    assert stays == {tmp_path / stranger, tmp_path / "COLLECTION.json"}


def _make_old(path: Path) -> None:
    path.touch()
    day_before = time.time() - 86_500
    os.utime(path, (day_before, day_before))


def test_old_leftovers_that_cannot_be_removed_are_a_warning(local: str, tmp_path: Path) -> None:
    left = tmp_path / f"spanvault-check-{uuid.uuid4()}" / "first"
    left.parent.mkdir()
    _make_old(left)
    faults = Faults()
    faults.add_fault("storage.delete.before", key=f"{left.parent.name}/*", action=Locked("It is protected."))
    context = Context(settings=Settings(), wrap=lambda storage: FaultyStorage(storage, faults))
    *_, last = storage_check(context, local, transfer="1MiB").dicts()
    sentence = "Of what earlier checks left, as they were killed, some stays: It is protected."
    assert (last["check"], last["status"], last["detail"]) == ("clean-up", "warning", sentence)
    assert files(tmp_path) == [left]


def test_old_unfinished_uploads_of_killed_checks_go_too(local: str) -> None:
    old, now = time.time() - 86_500, time.time()
    folder = f"spanvault-check-{uuid.uuid4()}"
    Leftover.left += [
        Unfinished(key=f"{folder}/speed", started=old, handle="old"),
        Unfinished(key=f"{folder}/data/x", started=now, handle="new"),
        Unfinished(key="000001/data/x", started=old, handle="of a backup"),
    ]
    assert "of what killed checks had left, too: 1." in checked(local, Leftover)["clean-up"][1]
    assert {left.handle for left in Leftover.left} == {"new", "of a backup"}


def test_the_command_line_shows_the_table_and_fails_after_it(
    local: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["storage", "check", local, "--transfer", "1MiB", "--format", "json"]
    assert run(command) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["columns"] == ["check", "status", "detail", "mb_per_second"]
    assert [row[0] for row in answer["rows"]] == ALWAYS
    monkeypatch.setattr("spanvault.engine.storage_check.Context.stored", lambda self, uri: TwoWinners(_real(self, uri), Faults()))
    assert run(command) == 1
    captured = capsys.readouterr()
    assert [row[:2] for row in json.loads(captured.out)["rows"] if row[1] != "ok"] == [["conditional create", "failed"]]
    assert "Error: The place was not found fit for backups: conditional create; the table says why." in captured.err


def test_the_command_line_names_the_place_that_fails(local: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def stored(self: Context, uri: str) -> Storage:
        return TwoWinners(_real(self, uri), Faults()) if "/eu" in uri else _real(self, uri)

    monkeypatch.setattr("spanvault.engine.storage_check.Context.stored", stored)
    other = f"{local}/eu?COCKROACH_LOCALITY=region%3Deu"
    assert run(["storage", "check", f"{local}/us?COCKROACH_LOCALITY=default", "--place", other, "--transfer", "1MiB"]) == 1
    assert "not found fit for backups: conditional create (region=eu); the table says why." in capsys.readouterr().err


_real: Callable[[Context, str], Storage] = Context.stored


def test_a_place_that_cannot_be_used_is_one_sentence(
    capsys: Captured, seaweed: SeaweedServer, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = seaweed.uri(bucket, str(uuid.uuid4()))
    assert "There is no bucket 'absent'" in refusal(capsys, 2, "storage", "check", seaweed.uri("absent", "path"))
    secret = good.partition("AWS_SECRET_ACCESS_KEY=")[2].partition("&")[0]
    message = refusal(capsys, 2, "storage", "check", good.replace(f"KEY={secret}", "KEY=wrong-wrong-wrong"))
    assert "the secret key does not belong to the access key" in message
    assert "wrong-wrong" not in message
    assert "1MiB to 64GiB" in refusal(capsys, 2, "storage", "check", good, "--transfer", "1")
    assert "is not" in refusal(capsys, 2, "storage", "check", good, "--transfer", "much")
    assert "unknown scheme" in refusal(capsys, 2, "storage", "check", "ftp://host/path")
    monkeypatch.setenv("SPANVAULT_ALLOWED_DESTINATIONS", "s3://elsewhere/")
    assert "is not below any of SPANVAULT_ALLOWED_DESTINATIONS" in refusal(capsys, 2, "storage", "check", f"file://{tmp_path}/x")
    assert not (tmp_path / "x").exists()


@pytest.fixture
def only_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the properties that are tried only what the URI asks for: all of them are in the tests of good places."""
    monkeypatch.setattr("spanvault.storage.check._PROPERTIES", ())


def test_the_storage_class_is_tried(seaweed: SeaweedServer, bucket: str, only_asked_for: None) -> None:
    uri = seaweed.uri(bucket, str(uuid.uuid4()))
    found = checked(f"{uri}&S3_STORAGE_CLASS=STANDARD_IA")
    assert wrong(found) == {}
    assert found["storage class"][1] == "The store takes data in the class STANDARD_IA and gives it back at once."
    assert "must be brought back" in checked(f"{uri}&S3_STORAGE_CLASS=GLACIER")["storage class"][1]


@pytest.fixture(scope="module")
def lock_bucket(seaweed: SeaweedServer) -> str:
    client = seaweed.client()
    client.create_bucket(Bucket="check-locked", ObjectLockEnabledForBucket=True)
    client.close()
    return "check-locked"


def kept(seaweed: SeaweedServer, bucket: str) -> int:
    """How many versions and markers a bucket holds."""
    client = seaweed.client()
    answer = client.list_object_versions(Bucket=bucket)
    client.close()
    return len(answer.get("Versions", ())) + len(answer.get("DeleteMarkers", ()))


@pytest.mark.slow
def test_a_lock_is_tried_for_seconds_and_nothing_stays(seaweed: SeaweedServer, lock_bucket: str, only_asked_for: None) -> None:
    """Both modes at once, since each check waits for its locks' end."""

    def found(mode: str) -> dict[str, tuple[str, str]]:
        uri = seaweed.uri(lock_bucket, str(uuid.uuid4())) + f"&OBJECT_LOCK_MODE={mode}&OBJECT_LOCK_DAYS=365"
        return checked(uri, lock_seconds=SHORT)

    modes = ("GOVERNANCE", "COMPLIANCE")
    with ThreadPoolExecutor(2) as threads:
        for mode, answer in zip(modes, threads.map(found, modes), strict=True):
            assert wrong(answer) == {}
            assert answer["object lock"][1] == (
                f"A {mode} lock of 8 s was set on writing, and deletion was refused. Backups get 365 days."
            )
    assert kept(seaweed, lock_bucket) == 0


@pytest.mark.slow
def test_ctrl_c_while_something_is_locked_leaves_nothing(
    seaweed: SeaweedServer, lock_bucket: str, only_asked_for: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def stop(_: S3Storage, key: str) -> None:
        asked.append(key)
        raise KeyboardInterrupt

    monkeypatch.setattr(S3Storage, "lock_of", stop)
    with pytest.raises(KeyboardInterrupt):
        checked(seaweed.uri(lock_bucket, str(uuid.uuid4())) + "&OBJECT_LOCK_MODE=COMPLIANCE&OBJECT_LOCK_DAYS=9", lock_seconds=3)
    assert [key.partition("/")[2] for key in asked] == ["lock/put"]
    assert kept(seaweed, lock_bucket) == 0


@pytest.mark.slow
def test_a_hold_is_not_tried_and_that_is_said(seaweed: SeaweedServer, lock_bucket: str) -> None:
    found = checked(seaweed.uri(lock_bucket, str(uuid.uuid4())) + "&OBJECT_LOCK_LEGAL_HOLD=true")
    assert wrong(found) == {**VERSIONED, "object lock": "warning"}
    assert "stays until somebody takes it off" in found["object lock"][1]
    assert kept(seaweed, lock_bucket) == 0


def test_a_lock_in_a_bucket_without_locks_is_a_failure(seaweed: SeaweedServer, bucket: str, only_asked_for: None) -> None:
    uri = seaweed.uri(bucket, str(uuid.uuid4())) + "&OBJECT_LOCK_MODE=GOVERNANCE&OBJECT_LOCK_DAYS=1"
    found = checked(uri, lock_seconds=2)
    assert wrong(found) == {"object lock": "failed"}
    assert "needs a bucket that was created with it" in found["object lock"][1]


def test_a_bucket_that_locks_everything_is_noticed_before_much_is_written(seaweed: SeaweedServer) -> None:
    client = seaweed.client()
    client.create_bucket(Bucket="check-default-lock", ObjectLockEnabledForBucket=True)
    rule = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}}
    client.put_object_lock_configuration(
        Bucket="check-default-lock",
        ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule},  # type: ignore[typeddict-item]
    )
    client.close()
    found = checked(seaweed.uri("check-default-lock", "path"))
    assert "is protected until" in found["delete"][1]
    assert found["conditional create"][0] == "not checked"
    assert kept(seaweed, "check-default-lock") <= 4


def test_a_missing_bucket_raises_before_anything_is_tried(seaweed: SeaweedServer) -> None:
    with pytest.raises(NotFound, match="There is no bucket"):
        checked(seaweed.uri("absent", "path"))
