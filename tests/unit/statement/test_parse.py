"""Statements that are read, and into what."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from spanvault.model.cut import Lsn
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

AFTERNOON = datetime(2026, 11, 22, 15, 0, tzinfo=UTC)


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
    options = "protection='1h30m', revision_history, without_identity=skip, on_broken_chain='fail', max_clock_skew='30s', "
    options += "fingerprint, rate_limit='50MB', span_bytes='128MiB', workers=4, detached = false"
    expected = BackupOptions(
        protection="1h30m",
        revision_history=True,
        without_identity="skip",
        on_broken_chain="fail",
        max_clock_skew="30s",
        fingerprint=True,
        rate_limit=50_000_000,
        span_bytes=134_217_728,
        workers=4,
        detached=False,
    )
    for form in (f"WITH {options}", f"WITH OPTIONS ({options})"):
        assert parse(f"BACKUP INTO 'file:///b' {form}") == BackupRequest(into="file:///b", options=expected)


def test_every_restore_option() -> None:
    text = (
        "RESTORE TABLE t FROM '2026/11/22-143000.00' IN 'file:///b' WITH into_db = 'copy', schema_only, strict, "
        "skip_unrestorable_tables, skip_missing_foreign_keys, skip_missing_sequences, skip_missing_sequence_owners = true, "
        "skip_missing_views, skip_missing_udfs, incremental_location = 's3://layers/shop?AUTH=implicit', "
        "verify_backup_table_data, "
        "grants = true, workers = '3', detached, on_failure = 'clean'"
    )
    assert parse(text) == RestoreRequest(
        target=TableTarget(patterns=(TablePattern(name="t"),)),
        subdir="2026/11/22-143000.00",
        collection="file:///b",
        options=RestoreOptions(
            strict=True,
            skip_unrestorable_tables=True,
            skip_missing_foreign_keys=True,
            skip_missing_sequences=True,
            skip_missing_sequence_owners=True,
            skip_missing_views=True,
            skip_missing_udfs=True,
            incremental_location="s3://layers/shop?AUTH=implicit",
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
    ("text", "append"),
    [
        ("LATEST", "LATEST"),
        ("latest", "LATEST"),
        ("'Latest'", "LATEST"),
        ("'2026/11/22-143000.00'", "2026/11/22-143000.00"),
        ("'/2026/11/22-143000.00/'", "2026/11/22-143000.00"),
    ],
)
def test_incremental_backups(text: str, append: str) -> None:
    assert parse(f"BACKUP INTO {text} IN 'file:///b'") == BackupRequest(append=append, into="file:///b")
    target = DatabaseTarget(names=("shop",))
    options = BackupOptions(incremental_location="s3://layers?AUTH=implicit", workers=3)
    given = "WITH incremental_location = 's3://layers?AUTH=implicit', workers = 3"
    request = parse(f"backup database shop into {text} in ('file:///b') as of system time '-1h' {given}", clock=lambda: AFTERNOON)
    expected = AFTERNOON - timedelta(hours=1)
    assert request == BackupRequest(target=target, append=append, into="file:///b", as_of=expected, options=options)


def test_a_path_named_latest_is_no_collection() -> None:
    assert parse("BACKUP INTO 'LATEST'") == BackupRequest(append=None, into="LATEST")


@pytest.mark.parametrize(
    ("text", "position"),
    [("16/B374D848", 0x16_B374D848), ("0/0", 0), ("ffffffff/FFFFFFFF", 2**64 - 1), ("2026/11", 0x2026_00000011)],
)
def test_a_restore_at_a_log_position(text: str, position: int) -> None:
    request = parse(f"RESTORE FROM LATEST IN 'file:///b' AS OF SYSTEM TIME '{text}'")
    assert isinstance(request, RestoreRequest)
    assert type(request.as_of) is Lsn
    assert int(request.as_of) == position


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-22 14:30:00", datetime(2026, 11, 22, 14, 30, tzinfo=UTC)),
        ("2026-11-22 14:30:00.123456+00", datetime(2026, 11, 22, 14, 30, 0, 123456, tzinfo=UTC)),
        ("2026-11-22T14:30:00Z", datetime(2026, 11, 22, 14, 30, tzinfo=UTC)),
        ("2026-11-22 14:30:00+02:00", datetime(2026, 11, 22, 14, 30, tzinfo=timezone(timedelta(hours=2)))),
        ("2026-11-22", datetime(2026, 11, 22, tzinfo=UTC)),
        ("-90s", AFTERNOON - timedelta(seconds=90)),
        ("-1h30m", AFTERNOON - timedelta(minutes=90)),
    ],
)
def test_times_of_a_backup_and_of_a_restore(text: str, moment: datetime) -> None:
    restore = parse(f"RESTORE FROM LATEST IN 'file:///b' AS OF SYSTEM TIME '{text}'", clock=lambda: AFTERNOON)
    backup = parse(f"BACKUP INTO LATEST IN 'file:///b' AS OF SYSTEM TIME '{text}'", clock=lambda: AFTERNOON)
    assert restore == RestoreRequest(collection="file:///b", as_of=moment)
    assert backup == BackupRequest(append="LATEST", into="file:///b", as_of=moment)
    for request in (restore, backup):
        assert isinstance(request, RestoreRequest | BackupRequest)
        assert isinstance(request.as_of, datetime)
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


def test_show_backup_schemas() -> None:
    request = parse("show backup schemas from '20261122-143000.00-000003' in 'file:///b' with debug_ids, privileges")
    assert request == ShowBackupRequest(
        subdir="20261122-143000.00-000003", collection="file:///b", schemas=True, debug_ids=True, privileges=True
    )


@pytest.mark.parametrize(
    ("rest", "newer", "older"),
    [
        ("NEWER THAN '7d'", timedelta(days=7), None),
        ("OLDER THAN '-90m'", None, timedelta(minutes=90)),
        ("older than '1h30m' newer than '1d'", timedelta(days=1), timedelta(minutes=90)),
    ],
)
def test_the_ages_of_show_backups_are_counted_back_from_now(rest: str, newer: timedelta | None, older: timedelta | None) -> None:
    now = datetime(2026, 11, 22, 15, tzinfo=UTC)
    assert parse(f"SHOW BACKUPS IN 'file:///b' {rest}", clock=lambda: now) == ShowBackupsRequest(
        collection="file:///b", newer_than=now - newer if newer else None, older_than=now - older if older else None
    )


def test_show_backups_takes_times_also_to_come_and_options() -> None:
    now = datetime(2026, 11, 22, 15, tzinfo=UTC)
    text = "SHOW BACKUPS IN 'file:///b' NEWER THAN '2026-11-22 16:00+02:00' OLDER THAN '2027-01-01' WITH ids, REVISION START TIME"
    assert parse(text, clock=lambda: now) == ShowBackupsRequest(
        collection="file:///b",
        newer_than=datetime(2026, 11, 22, 14, tzinfo=UTC),
        older_than=datetime(2027, 1, 1, tzinfo=UTC),
        ids=True,
        revision_start_time=True,
    )
