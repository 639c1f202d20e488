"""What the Backups page shows of real collections, and what it says when there is nothing to show."""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from spanvault.collection.layout import index_key
from spanvault.collection.markers import mark_invalid
from spanvault.crypto.keyring import Credentials, Keyring
from spanvault.crypto.storage import decrypted
from spanvault.errors import NotFound
from spanvault.model.cut import Cut, Lsn
from spanvault.model.manifest import IndexedTable, IndexEntry, Manifest
from spanvault.storage.local import LocalStorage
from spanvault_airflow.ui import views
from spanvault_airflow.ui.app import create_app
from tests.kit.collections import at, write_collection, write_compacted, write_layer

Base = Callable[[str], LocalStorage]
RUN = "revision_history_backup/scheduled__2026-11-22T15:07:00+00:00"
RUN_LINK = "/dags/revision_history_backup/runs/scheduled__2026-11-22T15%3A07%3A00%2B00%3A00"


def text_of(page: str) -> str:
    """What a reader reads: no tags, single spaces, one kind of dash."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split()).replace("\N{EN DASH}", "-")


def rows_of(page: str) -> list[str]:
    """The text of each line of the tables' bodies."""
    return [text_of(row) for body in re.findall(r"<tbody>(.*?)</tbody>", page, re.DOTALL) for row in body.split("</tr>")[:-1]]


def write_chain(storage: LocalStorage, layers: int = 2) -> Manifest:
    """A full at 14:30:30.12 and hourly layers after it; the last with revision history, by a run of Airflow."""
    manifest = write_collection(storage)
    for number in range(1, layers + 1):
        end = Cut(lsn=Lsn(0x200 + 0x100 * number), time=at(3600 * number))
        last = number == layers
        commits = {"shop": [(int(end.lsn) - 1, end.time)]}
        manifest = write_layer(storage, manifest, end=end, commits=commits, history=last, run_key=RUN if last else None)
    return manifest


def rewrite(storage: LocalStorage, subdir: str, number: int, **fields: object) -> IndexEntry:
    """Change an index entry, for what the small collection has not got."""
    key = index_key(subdir, number)
    entry = IndexEntry.from_json(storage.get(key), key).model_copy(update=fields)
    storage.put(key, entry.to_json())
    return entry


def test_first_page_names_each_collection_with_its_restorable_times(pages: TestClient, base: Base) -> None:
    write_chain(base("hourly"))
    write_collection(base("full"))
    answer = pages.get("/")
    assert answer.status_code == 200
    full, hourly = rows_of(answer.text)
    assert full.startswith("full 2026-11-22 14:30:30 .120000 2 h ago 2026-11-22 14:30:30 .120000 1 1 ")
    assert hourly.startswith("hourly 2026-11-22 16:30:00 .120000 59 min ago 2026-11-22 14:30:30 .120000 1 3 ")
    assert "nodelocal://self/backups" in answer.text
    assert 'href="/backups/collections/hourly"' in answer.text


def test_newest_and_earliest_come_from_the_newest_and_oldest_chain(pages: TestClient, base: Base) -> None:
    for days in (0, 1, 2):
        write_collection(base("full"), planned_at=at(-86400 * days), run_key=f"run-{days}")
    [row] = rows_of(pages.get("/").text)
    assert row.startswith("full 2026-11-22 14:30:30 .120000 2 h ago 2026-11-20 14:30:30 .120000 3 3 ")
    chains = rows_of(pages.get("/collections/full").text)
    assert [row.split()[0] for row in chains] == ["2026/11/22-143000.12", "2026/11/21-143000.12", "2026/11/20-143000.12"]


def test_chain_shows_its_layers_newest_first(pages: TestClient, base: Base) -> None:
    storage = base("hourly")
    manifest = write_chain(storage)
    answer = pages.get(f"/collections/hourly/{manifest.subdir}")
    assert answer.status_code == 200
    two, one, full, *_ = rows_of(answer.text)
    assert two.startswith("2 incremental 2026-11-22 15:30:00 .120000 2026-11-22 16:30:00 .120000 0/00000400 any time")
    assert one.startswith("1 incremental 2026-11-22 14:30:30 .120000 2026-11-22 15:30:00 .120000 0/00000300 its end")
    assert full.startswith("0 full - 2026-11-22 14:30:30 .120000 0/00000200 its end")
    assert "any time revision_history_backup 5 " in two
    assert "its end command line 5 " in full
    assert f'href="{RUN_LINK}"' in answer.text


def test_of_an_encrypted_chain_the_pages_say_that_it_is_and_name_no_tables(pages: TestClient, base: Base) -> None:
    storage = base("secret")
    key = Credentials(passphrase=SecretStr("of these tests"))
    subdir = write_collection(decrypted(storage, Keyring(storage, lambda: key))).subdir
    plain = write_collection(storage, planned_at=at(-86400), run_key="plain")
    [row] = rows_of(pages.get("/").text)
    assert " encrypted " in row
    newest, oldest = rows_of(pages.get("/collections/secret").text)
    assert "encrypted" in newest
    assert "encrypted" not in oldest
    page = pages.get(f"/collections/secret/{subdir}").text
    assert "Encrypted: tables are shown by SHOW BACKUP with the key." in text_of(page)
    assert 'name="find"' not in page
    [layer] = rows_of(page)
    assert "command line encrypted" in layer
    assert "shop" not in page
    assert "shop.public.orders" in pages.get(f"/collections/secret/{plain.subdir}").text
    newest, oldest = rows_of(pages.get("/collections/secret/table?table=shop.public.orders").text)
    assert "encrypted" in newest
    assert " 3 " in oldest
    answer = pages.get("/collections/secret/table?table=shop.public.other")
    assert answer.status_code == 404
    assert "holds a table shop.public.other; encrypted ones do not tell." in text_of(answer.text)


def test_links_stand_below_the_address_of_airflow(base: Base) -> None:
    manifest = write_chain(base("hourly"))
    with TestClient(create_app(lambda: None), root_path="/team/airflow/backups") as pages:
        page = pages.get(f"/collections/hourly/{manifest.subdir}").text
    assert f'href="/team/airflow{RUN_LINK}"' in page
    assert 'href="/team/airflow/backups/collections/hourly"' in page


def test_compacted_layers_are_marked_and_do_not_count_as_layers(pages: TestClient, base: Base) -> None:
    storage = base("hourly")
    manifest = write_chain(storage, layers=3)
    write_compacted(storage, manifest.subdir, 1, 3)
    write_compacted(storage, manifest.subdir, 0, 2)
    answer = pages.get(f"/collections/hourly/{manifest.subdir}")
    layers = [row.split(" 2026")[0] for row in rows_of(answer.text)[:6]]
    assert [layer for layer in layers if "-" in layer.split()[0]] == ["1-3 compacted", "0-2 synthetic full -"]
    assert "Layers 4 + 2 compacted" in text_of(answer.text)


def test_invalid_layer_and_what_follows_are_not_restorable(pages: TestClient, base: Base) -> None:
    storage = base("hourly")
    manifest = write_chain(storage, layers=3)
    mark_invalid(storage, manifest.subdir, 2, "a file is gone", at(0))
    page = pages.get(f"/collections/hourly/{manifest.subdir}").text
    three, two, one, *_ = rows_of(page)
    assert "follows a failed layer" in three
    assert "failed its validation" in two
    assert "its end" in one
    assert "Layer 2 failed its validation: only layers up to 1 are restorable." in text_of(page)
    assert "Newest restorable 2026-11-22 15:30:00 .120000" in text_of(page)
    assert rows_of(pages.get("/").text)[0].startswith("hourly 2026-11-22 15:30:00 .120000")


def test_chain_whose_full_is_invalid_has_no_restorable_time(pages: TestClient, base: Base) -> None:
    storage = base("full")
    older = write_collection(storage, planned_at=at(-86400), run_key="older")
    newer = write_collection(storage)
    mark_invalid(storage, newer.subdir, 0, "a file is gone", at(0))
    assert rows_of(pages.get("/").text)[0].startswith("full 2026-11-21 14:30:30 .120000")
    assert "none of its times is restorable" in pages.get("/collections/full").text
    mark_invalid(storage, older.subdir, 0, "a file is gone", at(0))
    assert "No restorable backup" in pages.get("/").text


def test_layer_that_the_index_lost_ends_what_is_shown_as_restorable(pages: TestClient, base: Base) -> None:
    storage = base("hourly")
    manifest = write_chain(storage, layers=3)
    storage.delete(index_key(manifest.subdir, 2))
    page = pages.get(f"/collections/hourly/{manifest.subdir}").text
    assert "a layer before it is missing" in rows_of(page)[0]
    assert "The index does not name layer 2" in page and "rebuild-index" in page
    assert "Newest restorable 2026-11-22 15:30:00 .120000" in text_of(page)


def test_entry_that_cannot_be_read_is_said_to_be(pages: TestClient, base: Base) -> None:
    storage = base("hourly")
    manifest = write_chain(storage)
    storage.put(index_key(manifest.subdir, 1), b"{")
    answer = pages.get(f"/collections/hourly/{manifest.subdir}")
    assert answer.status_code == 200
    assert "Its index entry cannot be read" in rows_of(answer.text)[1]


def test_entry_of_a_newer_version_hides_only_its_collection(pages: TestClient, base: Base) -> None:
    write_collection(base("full"))
    manifest = write_collection(base("newer"))
    rewrite(base("newer"), manifest.subdir, 0, format_version=99)
    full, newer = rows_of(pages.get("/").text)
    assert "14:30:30" in full
    assert "newer" in newer and "14:30:30" not in newer
    assert pages.get("/collections/newer").status_code == 503


def test_table_over_the_layers(pages: TestClient, base: Base) -> None:
    storage = base("hourly")
    manifest = write_chain(storage)
    rewrite(storage, manifest.subdir, 2, tables=(IndexedTable(name="shop.public.orders", rows=1203, bytes=81_920_000),))
    page = pages.get("/collections/hourly/table", params={"table": "shop.public.orders"}).text
    newest, middle, full = rows_of(page)
    assert newest.startswith("2026-11-22 16:30:00 .120000 2026/11/22-143000.12 2 1,203 +1,200 81.9 MB")
    assert middle.startswith("2026-11-22 15:30:00 .120000 2026/11/22-143000.12 1 3 = 16.4 kB")
    assert full.startswith("2026-11-22 14:30:30 .120000 2026/11/22-143000.12 0 3 16.4 kB")
    assert 'aria-label="Rows from 3 in the oldest to 1,203 in the newest of these layers"' in page
    gone = pages.get("/collections/hourly/table", params={"table": "shop.public.none"})
    assert gone.status_code == 404
    assert "None of the backups on this page holds a table shop.public.none" in gone.text


def test_tables_are_found_by_a_part_of_their_name(pages: TestClient, base: Base) -> None:
    manifest = write_collection(base("full"))
    path = f"/collections/full/{manifest.subdir}"
    everything = rows_of(pages.get(path).text)
    assert [row.split()[0] for row in everything[1:]] == ["shop.audit.events", "shop.public.orders"]
    assert [row.split()[0] for row in rows_of(pages.get(path, params={"find": "ORD"}).text)[1:]] == ["shop.public.orders"]
    assert "No table's name contains “x”" in html.unescape(pages.get(path, params={"find": "x"}).text)


def test_a_page_has_a_bounded_number_of_layers(pages: TestClient, base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = base("hourly")
    manifest = write_collection(storage)
    key = index_key(manifest.subdir, 0)
    full = IndexEntry.from_json(storage.get(key), key)
    for number in range(1, 230):
        entry = full.model_copy(update={"kind": "incremental", "number": number, "first": number})
        storage.put(index_key(manifest.subdir, number), entry.to_json())
    monkeypatch.setattr(views, "_READ_FOR_SIZES", 150)
    path = f"/collections/hourly/{manifest.subdir}"
    shown = [rows_of(pages.get(path, params={"page": page}).text) for page in (1, 2, 3, 4)]
    numbers = [[int(row.split()[0]) for row in rows if row.split()[0].isdigit()] for rows in shown]
    assert numbers == [list(range(229, 129, -1)), list(range(129, 29, -1)), list(range(29, -1, -1)), list(range(29, -1, -1))]
    assert "Page 2 of 3: 100 of 230 layers." in pages.get(path, params={"page": 2}).text
    table = pages.get("/collections/hourly/table", params={"table": "shop.public.orders", "page": 3}).text
    assert len(rows_of(table)) == 30


def test_sizes_of_many_layers_are_read_bit_by_bit(pages: TestClient, base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "_READ_FOR_SIZES", 2)
    storage = base("full")
    totals = [
        write_collection(storage, planned_at=at(-86400 * days), run_key=f"run-{days}").totals.file_bytes for days in range(5)
    ]
    first, second, third = (pages.get("/").text for _ in range(3))
    assert "The sizes of 1 layer are not read yet" in first  # the newest and the earliest were read for their times
    for page in (second, third):
        assert "not read yet" not in page
        assert f"{sum(totals) / 1000:.1f} kB" in page


def test_no_collection_yet(pages: TestClient) -> None:
    answer = pages.get("/")
    assert answer.status_code == 200
    assert "There is no collection yet" in answer.text


def test_collection_without_a_finished_backup(pages: TestClient, base: Base) -> None:
    storage = base("full")
    manifest = write_collection(storage)
    storage.delete(index_key(manifest.subdir, 0))
    assert "No finished backup yet" in pages.get("/").text
    assert "There is no finished backup yet" in pages.get("/collections/full").text


def test_folder_that_is_no_collection_is_not_shown(pages: TestClient, base: Base) -> None:
    base("notes").put("a.txt", b"x")
    assert "There is no collection yet" in pages.get("/").text
    assert pages.get("/collections/notes").status_code == 404


@pytest.mark.parametrize(
    "name",
    [
        "nothing",
        "..",
        "%2E%2E",
        "%2e%2e%2ffull",
        "..%5Cfull",
        "full%00",
        "file:%2F%2F%2Fetc",
        "full%3Fconn_id=x",
        ".spanvault-tmp",
    ],
)
def test_no_name_leads_out_of_the_base(pages: TestClient, base: Base, name: str, tmp_path: Path) -> None:
    write_collection(base("full"))
    write_collection(LocalStorage(tmp_path / "extern", "file:///outside"))  # what `..` would be
    for path in (f"/collections/{name}", f"/collections/{name}/2026/11/22-143000.12", f"/collections/{name}/table?table=x"):
        answer = pages.get(path)
        # A client resolves plain dots itself, so they may lead to another page of ours, but to no backup.
        assert answer.status_code == 404 or "<h1>Collections</h1>" in answer.text
        assert "<tbody>" not in answer.text or rows_of(answer.text)[0].startswith("full "), answer.text


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/collections/full/2026/11/22-143000.13", 404),
        ("/collections/full/2026/11/yesterday", 404),
        ("/collections/full/2026/11/22-143000.12?page=0", 400),
        ("/collections/full/2026/11/22-143000.12?page=many", 400),
        ("/collections/full/table", 400),
        ("/static/../app.py", 404),
        ("/static/app.py", 404),
        ("/openapi.json", 404),
        ("/docs", 404),
    ],
)
def test_wrong_addresses_get_a_sentence(pages: TestClient, base: Base, path: str, status: int) -> None:
    write_collection(base("full"))
    answer = pages.get(path)
    assert answer.status_code == status
    assert answer.headers["content-type"].startswith("text/html")
    assert "<h1>" in answer.text


def test_unreachable_storage_is_a_sentence_without_secrets(pages: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "SPANVAULT_COLLECTION_BASE", "s3://bucket/backups?AUTH=implicit&AWS_ENDPOINT=http://127.0.0.1:9&AWS_REGION=x"
    )
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-not-to-be-seen")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-not-to-be-seen")
    answer = pages.get("/")
    assert answer.status_code == 503
    assert "The backups cannot be read now" in answer.text
    assert "127.0.0.1:9" in answer.text
    assert "not-to-be-seen" not in answer.text


def test_connection_that_is_missing_is_no_missing_page(pages: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoConnections:
        def resolve(self, conn_id: str) -> None:
            raise NotFound(f"There is no connection {conn_id!r}: add it.")

    double = SimpleNamespace(AirflowConnections=NoConnections)
    monkeypatch.setitem(sys.modules, "spanvault_airflow.hooks.connections", double)
    monkeypatch.setenv("SPANVAULT_COLLECTION_BASE", "s3://bucket/backups?conn_id=backup_s3")
    answer = pages.get("/")
    assert answer.status_code == 503
    assert "The backups cannot be read now" in answer.text
    assert "There is no connection 'backup_s3': add it." in html.unescape(answer.text)


def test_settings_that_cannot_be_used_are_a_sentence(pages: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPANVAULT_COLLECTION_BASE", "s3://b/x?AWS_ACCESS_KEY_ID=k&AWS_SECRET_ACCESS_KEY=secret-not-to-be-seen")
    answer = pages.get("/")
    assert answer.status_code == 503
    assert "SPANVAULT_COLLECTION_BASE cannot be used" in answer.text
    assert "not-to-be-seen" not in answer.text


def test_what_nobody_foresaw_is_a_sentence_too(pages: TestClient, base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("detail-not-to-be-seen")

    monkeypatch.setattr(views, "collections", broken)
    answer = pages.get("/")
    assert answer.status_code == 503
    assert "This page could not be made" in answer.text
    assert "not-to-be-seen" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_names_from_the_source_are_escaped(pages: TestClient, base: Base) -> None:
    storage = base("full")
    evil = "<script>alert(1)</script>\"'&"
    manifest = write_collection(storage)
    rewrite(
        storage,
        manifest.subdir,
        0,
        tables=(IndexedTable(name=evil, rows=1, bytes=1),),
        target=evil,
        run_key=f"dag/{evil}",
    )
    chain = f"/collections/full/{manifest.subdir}"
    for path, params in (
        ("/", {}),
        ("/collections/full", {}),
        (chain, {"find": evil}),
        ("/collections/full/table", {"table": evil}),
    ):
        page = pages.get(path, params=params)
        assert page.status_code == 200
        assert "<script>alert" not in page.text
        assert "&lt;script&gt;" in page.text
        assert not re.search(r'="[^"<>]*<', page.text)
    assert "<script>alert" not in pages.get("/collections/" + evil.replace("/", "")).text


def test_every_page_says_what_may_be_loaded(pages: TestClient, base: Base) -> None:
    write_collection(base("full"))
    for path in ("/", "/collections/full", "/collections/none", "/static/backups.css"):
        headers = pages.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
    page = pages.get("/collections/full").text
    assert not re.search(r"(?:src|href|action)=\"(?!/)", page), "everything is loaded from this server"
    assert " style=" not in page and "onclick" not in page, "what the policy forbids"
    for name, media in (("backups.css", "text/css"), ("backups.js", "text/javascript"), ("icon.svg", "image/svg+xml")):
        assert pages.get(f"/static/{name}").headers["content-type"].startswith(media)
