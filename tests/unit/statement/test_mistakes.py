"""Statements that are not read: the place, what was expected, the reason; and never a secret."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from spanvault.errors import BadInput
from spanvault.model.cut import Lsn
from spanvault.model.request import BackupOptions, BackupRequest, RestoreRequest
from spanvault.statement import refuse
from spanvault.statement.parse import parse
from spanvault.statement.rules import check


def message(text: str) -> str:
    with pytest.raises(BadInput) as caught:
        parse(text)
    return str(caught.value)


def test_a_syntax_error_shows_its_line_and_a_caret_below_the_place() -> None:
    sentence, shown, caret = message("BACKUP\n  DATABASE shop INT 'file:///b'").splitlines()
    assert sentence == "Line 2, column 17: expected ',', '.' or INTO, found 'INT'."
    assert shown[caret.index("^") :].startswith("INT ")


def test_the_caret_stays_under_its_place_in_a_long_line() -> None:
    names = ", ".join(f"name_{number}" for number in range(60))
    _, shown, caret = message(f"BACKUP TABLE {names}, ! , {names} INTO 'file:///b'").splitlines()
    assert shown[caret.index("^")] == "!"
    assert len(shown) < 110


@pytest.mark.parametrize(
    ("text", "place", "expected", "found"),
    [
        ("SELECT 1", "Line 1, column 1", "ALTER, BACKUP, RESTORE or SHOW", "'SELECT'"),
        ("BACKUP INTO 'a' WITH", "Line 1, column 21", "OPTIONS or a name", "the end of the statement"),
        ("BACKUP DATABASE INTO 'a'", "Line 1, column 17", "a name", "'INTO'"),
        ("BACKUP INTO 'a' 'b'", "Line 1, column 17", "AS OF SYSTEM TIME, IN, WITH or the end of the statement", "a string"),
        ("SHOW BACKUPS", "Line 1, column 13", "IN", "the end of the statement"),
        ("RESTORE LATEST IN 'a'", "Line 1, column 16", "',', '.' or FROM", "'IN'"),
        ("BACKUP INTO 'a", "Line 1, column 13", "LATEST or a string in single quotes", "' that is never closed"),
        ("BACKUP INTO file", "Line 1, column 13", "LATEST or a string in single quotes", "'file' (a string needs single quotes)"),
        ("BACKUP INTO 'a'; SHOW BACKUPS IN 'a'", "Line 1, column 18", "the end of the statement", "'SHOW'"),
        ("BACKUP /* a INTO 'b'", "Line 1, column 8", "DATABASE, INTO, SCHEMA, TABLE or a name", "/* that is never closed"),
    ],
)
def test_what_was_expected_and_what_was_found(text: str, place: str, expected: str, found: str) -> None:
    assert message(text).splitlines()[0] == f"{place}: expected {expected}, found {found}."


@pytest.mark.parametrize("text", ["", "   ", ";", "-- only a comment\n", "/* or\nthis */ ;;"])
def test_an_empty_statement(text: str) -> None:
    assert "is empty" in message(text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("BACKUP a.b.c.d INTO 'x'", "Line 1, column 8: expected a table, as 'table', 'schema.table' or 'database.schema.table'."),
        ("BACKUP * INTO 'x'", "Line 1, column 8: expected all tables of a schema, as 'schema.*' or 'database.schema.*'."),
        ("BACKUP TABLE a.*.b INTO 'x'", "Line 1, column 16: expected a table, as"),
        ("BACKUP DATABASE a, b.c INTO 'x'", "Line 1, column 20: expected a database's name."),
        ("BACKUP SCHEMA a.b.c INTO 'x'", "Line 1, column 15: expected a schema, as 'schema' or 'database.schema'."),
        ("BACKUP INTO ' '", "Line 1, column 13: the URI is empty"),
        ("RESTORE FROM LATEST IN 'x' AS OF SYSTEM TIME 'noon'", "Line 1, column 46: expected a time such as"),
        ("RESTORE FROM LATEST IN 'x' AS OF SYSTEM TIME '-99999999d'", "Line 1, column 46: expected a time such as"),
        ("RESTORE FROM LATEST IN 'x' AS OF SYSTEM TIME '16/XYZ'", "Line 1, column 46: expected a time such as"),
        ("RESTORE FROM LATEST IN 'x' AS OF SYSTEM TIME '123456789/0'", "Line 1, column 46: expected a time such as"),
        ("RESTORE FROM LATEST IN 'x' AS OF SYSTEM TIME 12", "Line 1, column 46: expected a time such as"),
        ("BACKUP INTO LATEST IN 'x' AS OF SYSTEM TIME 'noon'", "Line 1, column 45: expected a time such as"),
        ("BACKUP INTO LATEST IN 'x' AS OF SYSTEM TIME '+10m'", "Line 1, column 45: expected a time such as"),
        ("BACKUP INTO LATEST IN ' '", "Line 1, column 23: the URI is empty"),
        ("BACKUP INTO 'yesterday' IN 'x'", "Line 1, column 13: 'yesterday' is not a backup's path; write it as SHOW BACKUPS"),
        ("BACKUP INTO '2026/13/22-143000.00' IN 'x'", "Line 1, column 13: '2026/13/22-143000.00' is not a backup's path"),
        ("BACKUP INTO '' IN 'x'", "Line 1, column 13: '' is not a backup's path"),
    ],
)
def test_names_and_times_of_a_wrong_form(text: str, sentence: str) -> None:
    assert message(text).startswith(sentence)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (
            "workrs = 2",
            ["column 22", "no option 'workrs'", "did you mean workers", "(it has detached, encryption_passphrase, "],
        ),
        ("new_db_name = 'x'", ["no option 'new_db_name'", "it is an option of RESTORE"]),
        ("detached, detached", ["column 32", "given twice"]),
        ("workers", ["Option workers needs a value: a whole number"]),
        ("workers = 0", ["Option workers cannot be '0'", "greater than or equal to 1"]),
        ("workers = 1.5", ["Option workers needs a whole number"]),
        ("fingerprint = maybe", ["Option fingerprint is a switch"]),
        ("rate_limit = '5 apples'", ["'5 apples' is not a size", "'50MB'"]),
        ("rate_limit = '-5MB'", ["'-5MB' is not a size"]),
        ("rate_limit = '1.0001kB'", ["is not a size"]),
        ("span_bytes = 10", ["Option span_bytes cannot be '10'", "8192"]),
        ("protection = 'forever'", ["'forever' is not a duration"]),
        ("max_clock_skew = 'none'", ["column 22", "'none' is not a duration"]),
        ("max_clock_skew", ["Option max_clock_skew needs a value: a duration such as '4h'"]),
        ("protection", ["Option protection needs a value: a duration such as '4h', or 'none'"]),
        ("revision_history = maybe", ["Option revision_history is a switch"]),
        ("without_identity = 'guess'", ["column 22", "Option without_identity cannot be 'guess'", "'full', 'skip' or 'fail'"]),
        ("without_identity", ["Option without_identity needs a value: 'full' or 'skip' or 'fail'"]),
        ("on_broken_chain = 'skip'", ["Option on_broken_chain cannot be 'skip'", "'full' or 'fail'"]),
        ("incremental_location = ''", ["Option incremental_location needs a URI; it is empty"]),
        ("incremental_location", ["Option incremental_location needs a value: a URI"]),
        ("incremental_location = ('s3://abc', 's3://abd')", ["AUTH is set to 'specified' (the default)"]),
        ("skip_unrestorable_tables", ["no option 'skip_unrestorable_tables'", "it is an option of RESTORE"]),
        ("workers = ('1', '2')", ["Option workers needs a value"]),
    ],
)
def test_options_of_a_wrong_name_or_form(options: str, parts: list[str]) -> None:
    text = message(f"BACKUP INTO 'x' WITH {options}")
    assert all(part in text for part in parts), text


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("RESTORE FROM LATEST IN 'x' WITH on_failure = 'hope'", "'keep' or 'clean'"),
        ("RESTORE FROM LATEST IN 'x' WITH new_db_name = ''", "needs a name"),
        ("RESTORE FROM LATEST IN 'x' WITH new_db_name = 'y'", "single target database"),
        ("RESTORE TABLE a.b FROM LATEST IN 'x' WITH new_db_name = 'y'", "single target database"),
        ("RESTORE FROM LATEST IN 'x' WITH into_db = 'y'", "Option into_db is for RESTORE TABLE"),
        ("RESTORE DATABASE a, b FROM LATEST IN 'x' WITH new_db_name = 'y'", "single target database"),
        ("RESTORE DATABASE a FROM LATEST IN 'x' WITH into_db = 'y'", "use new_db_name"),
        ("RESTORE FROM LATEST IN 'x' WITH verify_backup_table_data", "the schema_only option must be set"),
        ("RESTORE FROM LATEST IN 'x' WITH schema_only, verify_fingerprint", "give one of them"),
        ("BACKUP DATABASE a, b, a INTO 'x'", "'a' is named twice"),
        ("BACKUP TABLE t, public.t INTO 'x'", "'public.t' is named twice"),
        ("SHOW BACKUPS IN 'x' WITH check_files", "it is an option of SHOW BACKUP"),
        ("SHOW BACKUPS IN 'x' NEWER THAN '1d' NEWER THAN '2d'", "column 37: NEWER THAN is given twice"),
        ("SHOW BACKUPS IN 'x' OLDER THAN '2d' NEWER THAN '1d'", "exchange the two times"),
        ("SHOW BACKUPS IN 'x' OLDER THAN 7", "expected a time such as"),
        ("SHOW BACKUPS IN 'x' OLDER THAN 'yesterday'", "expected a time such as"),
        ("SHOW BACKUP SCHEMAS LATEST IN 'x' WITH as_json, debug_ids", "no columns for SCHEMAS and debug_ids"),
        ("SHOW BACKUP LATEST IN 'x' WITH incremental_location = 'y'", "is for check_files"),
        ("BACKUP INTO '20261122-143000.00-000003' IN 'x'", "by its path '2026/11/22-143000.00'"),
    ],
)
def test_parts_that_contradict_each_other(text: str, part: str) -> None:
    assert part in message(text)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("RESTORE FROM LATEST IN 'x' WITH workers = 2, new_db_name = 'y'", "Line 1, column 46: Option new_db_name"),
        ("BACKUP DATABASE a, b, a INTO 'x'", "Line 1, column 8: 'a' is named twice"),
        ("BACKUP INTO 'x'\nAS OF SYSTEM TIME '-1m'", "Line 2, column 1: A full backup reads the present"),
    ],
)
def test_what_contradicts_is_pointed_at(text: str, place: str) -> None:
    sentence, _, caret = message(text).splitlines()
    assert sentence.startswith(place)
    assert caret.strip() == "^"


NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize("start", ["BACKUP INTO LATEST IN 'x'", "RESTORE FROM LATEST IN 'x'"])
@pytest.mark.parametrize("time", ["2026-11-22 12:00:00.000001", "2026-11-22 13:00+00:30", "2027-01-01"])
def test_a_time_in_the_future_is_refused(start: str, time: str) -> None:
    with pytest.raises(BadInput, match=r"lies in the future: it is 2026-11-22 12:00:00\.000000\+00 now") as caught:
        parse(f"{start} AS OF SYSTEM TIME '{time}'", clock=lambda: NOON)
    assert str(caught.value).startswith(f"Line 1, column {len(start) + 20}: ")


@pytest.mark.parametrize("start", ["BACKUP INTO LATEST IN 'x'", "RESTORE FROM LATEST IN 'x'"])
def test_the_present_is_not_the_future(start: str) -> None:
    request = parse(f"{start} AS OF SYSTEM TIME '2026-11-22 12:00:00'", clock=lambda: NOON)
    assert isinstance(request, BackupRequest | RestoreRequest)
    assert request.as_of == NOON


def test_requests_that_come_without_a_statement_are_held_to_the_same_rules() -> None:
    full, naive = BackupRequest(into="x"), NOON.replace(tzinfo=None)
    wrong: list[tuple[BackupRequest | RestoreRequest, str]] = [
        (full.model_copy(update={"as_of": NOON}), "A full backup reads the present"),
        (full.model_copy(update={"options": BackupOptions(incremental_location="y")}), "leave the option out"),
        (full.model_copy(update={"options": BackupOptions(max_clock_skew="a bit")}), "'a bit' is not a duration"),
        (full.model_copy(update={"append": "latest"}), "'latest' is not a backup's path"),
        (full.model_copy(update={"append": "LATEST", "as_of": naive}), "has no time zone"),
        (RestoreRequest(collection="x", as_of=naive), "The time 2026-11-22 12:00:00 has no time zone"),
    ]
    for request, sentence in wrong:
        with pytest.raises(BadInput, match=sentence):
            check(request)
    location = BackupOptions(incremental_location="y", revision_history=True)
    check(BackupRequest(append="2026/11/22-143000.00", into="x", as_of=NOON, options=location))
    check(BackupRequest(into="x", options=BackupOptions(revision_history=True)))
    check(RestoreRequest(collection="x", as_of=Lsn(0)))


@pytest.mark.parametrize(
    ("text", "column", "reason"),
    [
        ("BACKUP DATABASE a TO 'x' INCREMENTAL FROM 'y' WITH detached", 19, refuse.BACKUP_TO),
        ("BACKUP INTO 'x' AS OF SYSTEM TIME '-10s'", 17, refuse.FULL_AS_OF),
        ("BACKUP INTO LATEST IN 'x' AS OF SYSTEM TIME '16/B374D848'", 45, refuse.BACKUP_AS_OF_POSITION),
        ("BACKUP INTO 'x' WITH workers = 4, incremental_location = 'y'", 35, refuse.FULL_LOCATION),
        ("RESTORE FROM 'x'", 9, refuse.RESTORE_FROM_URI),
        ("RESTORE TABLE t FROM ('x', 'y') AS OF SYSTEM TIME '-1s'", 17, refuse.RESTORE_FROM_URI),
        ("RESTORE SYSTEM USERS FROM LATEST IN 'x'", 9, refuse.SYSTEM_USERS),
        ("SHOW BACKUP IN 'x'", 6, refuse.SHOW_BACKUP_IN),
        ("SHOW BACKUP 'x' WITH check_files", 6, refuse.SHOW_BACKUP_IN),
        ("SHOW BACKUP SCHEMAS IN 'x'", 6, refuse.SHOW_BACKUP_IN),
    ],
)
def test_what_this_version_does_not_do_is_told_with_its_reason(text: str, column: int, reason: str) -> None:
    assert message(text).splitlines()[0] == f"Line 1, column {column}: {reason}."


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("BACKUP INTO 'x' WITH include_all_virtual_clusters = true", "no virtual clusters"),
        ("RESTORE FROM LATEST IN 'x' WITH EXPERIMENTAL COPY", "no counterpart in PostgreSQL"),
        ("RESTORE FROM LATEST IN 'x' WITH EXPERIMENTAL DEFERRED COPY", "no counterpart in PostgreSQL"),
        ("RESTORE FROM LATEST IN 'x' WITH remove_regions", "no regions"),
        ("SHOW BACKUP LATEST IN 'x' WITH SKIP SIZE", "cost nothing"),
        ("SHOW BACKUP FILES FROM LATEST IN 'x'", "check_files"),
        ("show backup ranges from latest in 'x'", "as_json"),
        ("SHOW BACKUP VALIDATE FROM LATEST IN 'x'", "collection check"),
        ("SHOW BACKUP CONNECTION 'x'", "storage check"),
        ("CREATE SCHEDULE s FOR BACKUP INTO 'x' RECURRING '@daily'", "schedule in Airflow"),
        ("SHOW SCHEDULES", "schedule in Airflow"),
        ("ALTER BACKUP SCHEDULE 1 EXECUTE IMMEDIATELY", "schedule in Airflow"),
        ("SHOW JOBS", "in Airflow"),
        ("pause job 12", "in Airflow"),
        ("CREATE EXTERNAL CONNECTION c AS 's3://b'", "conn_id"),
        ("CHECK EXTERNAL CONNECTION c", "`spanvault storage check` tries a URI"),
        ("BACKUP INTO 'x' WITH updates_cluster_monitoring_metrics", "publishes no metrics"),
        ("EXPLAIN BACKUP INTO 'x'", "--dry-run"),
        ("SET use_backups_with_ids = true", "no session settings"),
    ],
)
def test_cockroachdb_s_other_options_and_statements_are_refused_with_the_reason(text: str, part: str) -> None:
    first = message(text).splitlines()[0]
    assert part in first
    assert "expected" not in first


@pytest.mark.parametrize(
    "text",
    [
        "BACKUP DATABASE a INT 's3://b/p?AWS_SECRET_ACCESS_KEY=hunter2'",
        "BACKUP INTO 's3://b/p?AWS_SECRET_ACCESS_KEY=hunter2",
        "BACKUP INTO s3://b/p?AWS_SECRET_ACCESS_KEY=hunter2",
        'BACKUP INTO "s3://b/p?AWS_SECRET_ACCESS_KEY=hunter2"',
        "BACKUP INTO 's3://me:hunter2@b/p' garbage",
        "BACKUP INTO s3://me:hunter2@b/p",
        "BACKUP INTO 'x' WITH encryption_passphrase = 'hunter2' x",
        "BACKUP INTO 'x' WITH encryption_passphrase = hunter2",
        "BACKUP INTO 'x' WITH encryption_passphrase = 'hunter2",
        "BACKUP INTO 'x' 'hunter2'",
        "BACKUP INTO 's3://b\n?AWS_SECRET_ACCESS_KEY=hunter2' WITH !",
        "BACKUP INTO x' WITH encryption_passphrase = 'hunter2'",
        "RESTORE FROM LATEST IN 'x' WITH kms = hunter2",
        "BACKUP INTO 'x' WITH incremental_location = 's3://b/p?AWS_SECRET_ACCESS_KEY=hunter2'",
        "BACKUP INTO LATEST IN 'x' WITH incremental_location = s3://b/p?AWS_SECRET_ACCESS_KEY=hunter2",
        "BACKUP INTO LATEST IN 'x' WITH workers = 0, incremental_location = 's3://b/p?AWS_SECRET_ACCESS_KEY=hunter2'",
        "BACKUP INTO 'yesterday' IN 's3://b/p?AWS_SECRET_ACCESS_KEY=hunter2'",
    ],
)
def test_no_error_shows_a_secret(text: str) -> None:
    assert "hunter2" not in message(text)


def test_the_path_of_a_uri_stays_readable() -> None:
    assert "INT 's3://bucket/path···" in message("BACKUP DATABASE a INT 's3://bucket/path?AWS_SECRET_ACCESS_KEY=hunter2'")


A, B = "file:///a?COCKROACH_LOCALITY=default", "file:///b?COCKROACH_LOCALITY=region%3Deu"


@pytest.mark.parametrize(
    ("text", "column", "reason"),
    [
        ("BACKUP INTO ('file:///a', 'file:///b')", 14, "file:///a does not say which locality it is for: add COCKROACH_LOCALITY"),
        (f"BACKUP INTO ('{A}', 'file:///b')", 14, "file:///b does not say which locality it is for"),
        (f"RESTORE FROM LATEST IN ('{B}', '{B.replace('eu', 'us')}')", 25, "exactly one must have COCKROACH_LOCALITY=default"),
        (f"SHOW BACKUP LATEST IN ('{A}', '{A}')", 24, "exactly one must have COCKROACH_LOCALITY=default, not 2"),
        (f"BACKUP INTO ('{A}', '{B}', '{B}')", 14, "Several URIs are for the locality region=eu"),
        (f"BACKUP INTO ('{A}', '{B}%2Czone%3Db')", 14, 'must be default or one tier in the form "key=value"'),
        (
            f"BACKUP INTO ('{A}', '{B}', '{B.replace('eu', 'e.u')}', '{B.replace('eu', 'e%20u')}')",
            14,
            "have the same name in files",
        ),
        ("BACKUP INTO 'file:///a\nfile:///b'", 13, "the URI holds a line break; write several URIs as"),
        ("BACKUP INTO 'x' WITH EXECUTION LOCALITY = 'eu'", 22, 'tier must be in the form "key=value"'),
        ("BACKUP INTO 'x' WITH execution_locality = ' ,'", 22, "needs tiers such as 'region=eu'; it is empty"),
        ("BACKUP INTO 'x' WITH EXECUTION LOCALITY = 'a=b', execution_locality = 'a=b'", 50, "given twice"),
        ("BACKUP INTO 'x' WITH strict, STRICT STORAGE LOCALITY", 30, "given twice"),
        ("RESTORE FROM LATEST IN 'x' WITH STRICT STORAGE LOCALITY", 33, "no option 'strict storage locality'"),
        (f"BACKUP INTO LATEST IN '{A}' WITH incremental_location = ('{A}', '{A}')", 67, "exactly one must have"),
        ("RESTORE FROM LATEST IN 'x' WITH EXECUTION LOCALITY", 33, "needs a value: tiers such as 'region=eu'"),
        ("BACKUP INTO 'file:///x' WITH STRICT STORAGE LOCALITY", 30, "there is one: leave it out"),
        (f"BACKUP INTO LATEST IN ('{A}', '{B}') WITH incremental_location = 'file:///c'", 113, "give the same for both"),
        (f"ALTER BACKUP LATEST IN ('a', '{B}') ADD NEW_KMS = 'x' WITH OLD_KMS = 'x'", 25, "has no scheme"),
    ],
)
def test_places_and_localities_that_do_not_fit(text: str, column: int, reason: str) -> None:
    first = message(text).splitlines()[0]
    assert first.startswith(f"Line 1, column {column}: "), first
    assert reason in first
