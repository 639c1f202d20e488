"""What cannot be done is refused with one line, and nothing of it stays: no object, slot, publication or database."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from spanvault.cli.main import run
from spanvault.embedded.postgres import PostgresServer
from spanvault.embedded.seaweed import SeaweedServer
from tests.kit.command_line import answer, refusal
from tests.kit.servers import SOURCE_SETTINGS, TestDatabase, fresh_database

Captured = pytest.CaptureFixture[str]
NOBODY = 65534


@dataclass(frozen=True)
class Shop:
    """A database with a full backup and an incremental in `folder`."""

    database: TestDatabase
    folder: Path

    @property
    def uri(self) -> str:
        return f"file://{self.folder}"

    def state(self) -> list[object]:
        """All that a command could leave behind."""
        catalogs = [
            "select slot_name, confirmed_flush_lsn::text from pg_replication_slots order by 1",
            "select datname from pg_database order by 1",
            "select pubname, puballtables from pg_publication order by 1",
            "select relnamespace::regnamespace::text, relname from pg_class where oid >= 16384 order by 1, 2",
            "select nspname from pg_namespace order by 1",
        ]
        listing = sorted((path.as_posix(), path.stat().st_mtime_ns) for path in self.folder.rglob("*") if path.is_file())
        return [*(self.database.execute(query) for query in catalogs), listing]

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        before = self.state()
        yield
        assert self.state() == before


@pytest.fixture(scope="module")
def shop(servers_folder: Path) -> Iterator[Shop]:
    """On a server with a free slot more than a backup needs."""
    settings = {**SOURCE_SETTINGS, "max_replication_slots": "8"}
    with PostgresServer(servers_folder / "shop", settings=settings) as server, fresh_database(server, "shop") as database:
        database.execute("create table item (id int primary key, name text); insert into item values (1, 'tea')")
        shop = Shop(database, servers_folder / "collection")
        for place in ("INTO", "INTO LATEST IN"):
            assert run(["sql", "--url", database.url, f"BACKUP DATABASE {database.name} {place} '{shop.uri}'"]) == 0
        yield shop


def refused(capsys: Captured, code: int, *arguments: str) -> str:
    """As `refusal`, of commands that may say what they do before."""
    message = refusal(capsys, code, *arguments)
    assert message.count("\n") == 0
    return message


STATEMENTS: dict[str, tuple[str, int, str]] = {
    "unknown option": ("BACKUP DATABASE {name} INTO '{uri}' WITH detach", 2, "detach"),
    "misspelt option": ("BACKUP DATABASE {name} INTO '{uri}' WITH revision_histori", 2, "revision_histori"),
    "unknown restore option": ("RESTORE DATABASE {name} FROM LATEST IN '{uri}' WITH new_name = 'x'", 2, "new_name"),
    "unknown table": ("BACKUP TABLE itm INTO '{uri}'", 2, "itm"),
    "unknown table to restore": ("RESTORE TABLE itm FROM LATEST IN '{uri}' WITH into_db = '{name}'", 2, "itm"),
    "unknown database to restore": ("RESTORE DATABASE shpo FROM LATEST IN '{uri}'", 2, "shpo"),
    "existing database": ("RESTORE DATABASE {name} FROM LATEST IN '{uri}'", 2, "is not empty"),
    "existing table": ("RESTORE TABLE item FROM LATEST IN '{uri}'", 2, "item"),
    "unknown chain": ("RESTORE DATABASE {name} FROM '2020/01/01-000000.00' IN '{uri}' WITH new_db_name = 'n'", 2, "2020/01/01"),
    "unknown parameter": ("BACKUP DATABASE {name} INTO '{uri}?FOO=1'", 2, "file:// takes COCKROACH_LOCALITY"),
    "empty kms": ("BACKUP DATABASE {name} INTO '{uri}' WITH kms = ''", 2, "kms"),
    "key of nobody": (
        "RESTORE DATABASE {name} FROM LATEST IN '{uri}' WITH encryption_passphrase = 'x', new_db_name = 'n'",
        1,
        "enc",
    ),
    "no folders there": ("BACKUP DATABASE {name} INTO 'file:///proc/backups'", 2, "no folder can be made in /proc"),
    "a file in the way": ("BACKUP DATABASE {name} INTO '{uri}/COLLECTION.json/x'", 2, "not a folder"),
}


@pytest.mark.parametrize(("statement", "code", "part"), STATEMENTS.values(), ids=STATEMENTS)
def test_a_statement_that_cannot_be_carried_out(statement: str, code: int, part: str, shop: Shop, capsys: Captured) -> None:
    with shop.unchanged():
        text = statement.format(name=shop.database.name, uri=shop.uri)
        assert part in refused(capsys, code, "sql", "--url", shop.database.url, text)


def test_no_free_replication_slot(shop: Shop, capsys: Captured) -> None:
    taken = "select pg_create_physical_replication_slot('taken_' || i) from generate_series(1, 7) i"
    shop.database.execute(taken)
    try:
        with shop.unchanged():
            other = f"BACKUP DATABASE {shop.database.name} INTO '{shop.uri}-other'"
            assert "max_replication_slots" in refused(capsys, 2, "sql", "--url", shop.database.url, other)
    finally:
        shop.database.execute("select pg_drop_replication_slot('taken_' || i) from generate_series(1, 7) i")
    assert not Path(f"{shop.folder}-other").exists()


def test_a_transaction_that_does_not_end(shop: Shop, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPANVAULT_WAIT_FOR_WRITERS", "1")
    with shop.database.connect(autocommit=False) as idle:
        idle.execute("insert into item values (2, 'salt')")
        pid = idle.info.backend_pid
        slots, databases, _, relations, *rest = shop.state()
        other = f"BACKUP DATABASE {shop.database.name} INTO '{shop.uri}-blocked'"
        assert str(pid) in refused(capsys, 1, "sql", "--url", shop.database.url, other)
        idle.rollback()
    # A publication without a slot keeps no log. The next try takes it over; if none comes it expires as protections do.
    after = shop.state()
    assert [after[0], after[1], *after[3:]] == [slots, databases, relations, *rest]
    listed = answer(capsys, "protection", "list", "--url", shop.database.url)
    assert sorted(row["expires_at"] != "" for row in listed) == [True, True]
    assert list(Path(f"{shop.folder}-blocked").rglob("PLAN.json")) == []


def test_half_a_chain(shop: Shop, capsys: Captured) -> None:
    (manifest,) = shop.folder.glob("*/*/*/chain/000000.json")
    data = manifest.read_bytes()
    manifest.unlink()
    try:
        with shop.unchanged():
            restore = f"RESTORE DATABASE {shop.database.name} FROM LATEST IN '{shop.uri}' WITH new_db_name = 'half'"
            refused(capsys, 2, "sql", "--url", shop.database.url, restore)
            message = refusal(capsys, 1, "collection", "check", shop.uri, shows=True)
            assert "missing" in message
    finally:
        manifest.write_bytes(data)


S3_MISTAKES: dict[str, tuple[Callable[[str], str], str]] = {
    "missing bucket": (lambda uri: uri.replace("s3://there/", "s3://not-there/"), "not-there"),
    "wrong secret": (lambda uri: uri.replace("AWS_SECRET_ACCESS_KEY=", "AWS_SECRET_ACCESS_KEY=x"), "there"),
    "unknown key": (lambda uri: uri.replace("AWS_ACCESS_KEY_ID=", "AWS_ACCESS_KEY_ID=x"), "there"),
}


@pytest.mark.parametrize(("mistake", "part"), S3_MISTAKES.values(), ids=S3_MISTAKES)
def test_a_bucket_that_cannot_be_used(
    mistake: Callable[[str], str], part: str, shop: Shop, seaweed: SeaweedServer, capsys: Captured
) -> None:
    client = seaweed.client()
    if "there" not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
        seaweed.create_bucket("there")
    uri = mistake(seaweed.uri("there", "collection"))
    with shop.unchanged():
        message = refused(capsys, 2, "sql", "--url", shop.database.url, f"BACKUP DATABASE {shop.database.name} INTO '{uri}'")
    assert part in message
    assert seaweed.secret_key not in message
    assert client.list_objects_v2(Bucket="there").get("KeyCount", 0) == 0


@contextmanager
def as_nobody() -> Iterator[None]:
    """Rights do not bind root; another user they do."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_folder_without_rights(shop: Shop, servers_folder: Path, capsys: Captured) -> None:
    closed = servers_folder / "closed"
    closed.mkdir(mode=0o555)
    backup = f"BACKUP DATABASE {shop.database.name} INTO 'file://{closed}/b'"
    with shop.unchanged():
        with as_nobody():
            message = refused(capsys, 2, "sql", "--url", shop.database.url, backup)
        assert "cannot be written: Permission denied; let the user" in message
        closed.chmod(0o000)
        with as_nobody():
            message = refused(capsys, 2, "collection", "windows", f"file://{closed}/b")
        assert "cannot be read: Permission denied; let the user" in message
    closed.chmod(0o755)
    assert list(closed.iterdir()) == []
