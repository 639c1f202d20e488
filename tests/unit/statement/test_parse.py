"""Statements that are read, and into what."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from spanvault.model.request import (
    BackupOptions,
    BackupRequest,
    RestoreOptions,
    RestoreRequest,
    ShowBackupRequest,
    ShowBackupsRequest,
)
from spanvault.model.target import ClusterTarget, DatabaseTarget, SchemaTarget, TablePattern, TableTarget
from spanvault.statement.parse import parse

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def test_backup_of_the_cluster() -> None:
    assert parse("BACKUP INTO 's3://bucket/path'") == BackupRequest(target=ClusterTarget(), into="s3://bucket/path")


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("DATABASE shop", DatabaseTarget(names=("shop",))),
        ("DATABASE a, b , c", DatabaseTarget(names=("a", "b", "c"))),
        ("SCHEMA sales", SchemaTarget(names=((None, "sales"),))),
        ("SCHEMA shop.sales, b.c", SchemaTarget(names=(("shop", "sales"), ("b", "c")))),
        ("TABLE orders", TableTarget(patterns=(TablePattern(name="orders"),))),
        ("orders", TableTarget(patterns=(TablePattern(schema_name="public", name="orders"),))),
        ("sales.orders", TableTarget(patterns=(TablePattern(schema_name="sales", name="orders"),))),
        ("shop.sales.orders", TableTarget(patterns=(TablePattern(database="shop", schema_name="sales", name="orders"),))),
        ("TABLE sales.*", TableTarget(patterns=(TablePattern(schema_name="sales", name=None),))),
        ("shop.sales.*", TableTarget(patterns=(TablePattern(database="shop", schema_name="sales", name=None),))),
        (
            "TABLE a.b, c.*",
            TableTarget(patterns=(TablePattern(schema_name="a", name="b"), TablePattern(schema_name="c", name=None))),
        ),
    ],
)
def test_targets_of_backup_and_restore(text: str, target: object) -> None:
    backup, restore = parse(f"BACKUP {text} INTO 'file:///b'"), parse(f"RESTORE {text} FROM LATEST IN 'file:///b'")
    assert isinstance(backup, BackupRequest)
    assert isinstance(restore, RestoreRequest)
    assert backup.target == target
    assert restore.target == target


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("Orders", "orders"),
        ('"Orders"', "Orders"),
        ('"with ""quotes"""', 'with "quotes"'),
        ('"into"', "into"),
        ("Übersicht", "Übersicht"),
        ("ÜBERSICHT", "Übersicht"),
        ("database", "database"),
        ("latest", "latest"),
        ("options", "options"),
        ("backups", "backups"),
        ("order$1", "order$1"),
        ('"a.b"', "a.b"),
    ],
)
def test_names_are_folded_as_postgresql_folds_them(written: str, name: str) -> None:
    request = parse(f"BACKUP TABLE s.{written} INTO 'file:///b'")
    assert isinstance(request, BackupRequest)
    assert request.target == TableTarget(patterns=(TablePattern(schema_name="s", name=name),))


def test_keywords_in_any_case_with_comments_lines_and_a_final_semicolon() -> None:
    text = """-- nightly
    backup /* the shop */ Database shop -- only
      InTo 'file:///b' wItH detached ; """
    expected = BackupRequest(target=DatabaseTarget(names=("shop",)), into="file:///b", options=BackupOptions(detached=True))
    assert parse(text) == expected


def test_strings_hold_quotes_and_comment_marks() -> None:
    request = parse("SHOW BACKUPS IN 'file:///it''s--here/*too*/'")
    assert request == ShowBackupsRequest(collection="file:///it's--here/*too*/")


def test_every_backup_option() -> None:
    options = "protection='1h30m', fingerprint, rate_limit='50MB', span_bytes='128MiB', workers=4, detached = false"
    expected = BackupOptions(
        protection="1h30m", fingerprint=True, rate_limit=50_000_000, span_bytes=134_217_728, workers=4, detached=False
    )
    for form in (f"WITH {options}", f"WITH OPTIONS ({options})"):
        assert parse(f"BACKUP INTO 'file:///b' {form}") == BackupRequest(into="file:///b", options=expected)


def test_every_restore_option() -> None:
    text = (
        "RESTORE TABLE t FROM '2026/11/22-143000.00' IN 'file:///b' WITH into_db = 'copy', schema_only, "
        "verify_backup_table_data, grants = true, workers = '3', detached, on_failure = 'clean'"
    )
    assert parse(text) == RestoreRequest(
        target=TableTarget(patterns=(TablePattern(name="t"),)),
        subdir="2026/11/22-143000.00",
        collection="file:///b",
        options=RestoreOptions(
            into_db="copy",
            schema_only=True,
            verify_backup_table_data=True,
            grants=True,
            workers=3,
            detached=True,
            on_failure="clean",
        ),
    )


def test_restore_under_a_new_name_with_proof() -> None:
    request = parse("RESTORE DATABASE shop FROM latest IN 'file:///b' WITH new_db_name = \"Shop 2\", verify_fingerprint")
    assert request == RestoreRequest(
        target=DatabaseTarget(names=("shop",)),
        collection="file:///b",
        options=RestoreOptions(new_db_name="Shop 2", verify_fingerprint=True),
    )


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-22 14:30:00", datetime(2026, 11, 22, 14, 30, tzinfo=UTC)),
        ("2026-11-22 14:30:00.123456+00", datetime(2026, 11, 22, 14, 30, 0, 123456, tzinfo=UTC)),
        ("2026-11-22T14:30:00Z", datetime(2026, 11, 22, 14, 30, tzinfo=UTC)),
        ("2026-11-22 14:30:00+02:00", datetime(2026, 11, 22, 14, 30, tzinfo=timezone(timedelta(hours=2)))),
        ("2026-11-22", datetime(2026, 11, 22, tzinfo=UTC)),
        ("-90s", NOON - timedelta(seconds=90)),
        ("-1h30m", NOON - timedelta(minutes=90)),
    ],
)
def test_times_of_a_restore(text: str, moment: datetime) -> None:
    request = parse(f"RESTORE FROM LATEST IN 'file:///b' AS OF SYSTEM TIME '{text}'", clock=lambda: NOON)
    assert request == RestoreRequest(collection="file:///b", as_of=moment)
    assert isinstance(request, RestoreRequest)
    assert request.as_of is not None
    assert request.as_of.utcoffset() == timedelta(0)


@pytest.mark.parametrize("start", ["SHOW BACKUP", "SHOW BACKUP FROM", "show backup from"])
def test_show_backup(start: str) -> None:
    assert parse(f"{start} LATEST IN 'file:///b'") == ShowBackupRequest(collection="file:///b")
    assert parse(f"{start} 'latest' IN ('file:///b') WITH check_files, as_json") == ShowBackupRequest(
        collection="file:///b", check_files=True, as_json=True
    )
    assert parse(f"{start} '2026/11/22-143000.00' IN 'file:///b'") == ShowBackupRequest(
        subdir="2026/11/22-143000.00", collection="file:///b"
    )
