"""Statements that are not read: the place, what was expected, the reason; and never a secret."""

from __future__ import annotations

import pytest

from spanvault.errors import BadInput
from spanvault.statement import refuse
from spanvault.statement.parse import parse


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
        ("SELECT 1", "Line 1, column 1", "BACKUP, RESTORE or SHOW", "'SELECT'"),
        ("BACKUP INTO 'a' WITH", "Line 1, column 21", "OPTIONS or a name", "the end of the statement"),
        ("BACKUP DATABASE INTO 'a'", "Line 1, column 17", "a name", "'INTO'"),
        ("BACKUP INTO 'a' 'b'", "Line 1, column 17", "WITH or the end of the statement", "a string"),
        ("SHOW BACKUPS", "Line 1, column 13", "IN", "the end of the statement"),
        ("RESTORE LATEST IN 'a'", "Line 1, column 16", "',', '.' or FROM", "'IN'"),
        ("BACKUP INTO 'a", "Line 1, column 13", "a string in single quotes", "' that is never closed"),
        ("BACKUP INTO file", "Line 1, column 13", "a string in single quotes", "'file' (a string needs single quotes)"),
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
    ],
)
def test_names_and_times_of_a_wrong_form(text: str, sentence: str) -> None:
    assert message(text).startswith(sentence)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ("workrs = 2", ["column 22", "no option 'workrs'", "did you mean workers", "detached, fingerprint, protection"]),
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
    ],
)
def test_parts_that_contradict_each_other(text: str, part: str) -> None:
    assert part in message(text)


@pytest.mark.parametrize(
    ("text", "column", "reason"),
    [
        ("BACKUP DATABASE a TO 'x' INCREMENTAL FROM 'y' WITH detached", 19, refuse.BACKUP_TO),
        ("BACKUP INTO LATEST IN 'x'", 8, refuse.APPEND),
        ("BACKUP DATABASE a INTO '2026/11/22-143000.00' IN 'x'", 19, refuse.APPEND),
        ("BACKUP INTO ('x', 'y')", 19, refuse.ONE_URI),
        ("BACKUP INTO 'x' AS OF SYSTEM TIME '-10s'", 17, refuse.BACKUP_AS_OF),
        ("RESTORE FROM 'x'", 9, refuse.RESTORE_FROM_URI),
        ("RESTORE TABLE t FROM ('x', 'y') AS OF SYSTEM TIME '-1s'", 17, refuse.RESTORE_FROM_URI),
        ("RESTORE FROM LATEST IN ('x', 'y')", 30, refuse.ONE_URI),
        ("RESTORE SYSTEM USERS FROM LATEST IN 'x'", 9, refuse.SYSTEM_USERS),
        ("SHOW BACKUP IN 'x'", 6, refuse.SHOW_BACKUP_IN),
        ("SHOW BACKUP 'x' WITH check_files", 6, refuse.SHOW_BACKUP_IN),
        ("SHOW BACKUP SCHEMAS FROM LATEST IN 'x'", 13, refuse.SHOW_SCHEMAS),
        ("SHOW BACKUPS IN 'x' OLDER THAN '1d' NEWER THAN '2d'", 21, refuse.SHOW_FILTERS),
    ],
)
def test_what_this_version_does_not_do_is_told_with_its_reason(text: str, column: int, reason: str) -> None:
    assert message(text).splitlines()[0] == f"Line 1, column {column}: {reason}."


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("BACKUP INTO 'x' WITH revision_history", "cannot keep revision history yet"),
        ("BACKUP INTO 'x' WITH encryption_passphrase = 'p'", "cannot encrypt"),
        ("BACKUP INTO 'x' WITH kms = ('aws:///k', 'gcp:///k')", "cannot encrypt"),
        ("BACKUP INTO 'x' WITH EXECUTION LOCALITY = 'region=a'", "cannot restrict where"),
        ("BACKUP INTO 'x' WITH STRICT STORAGE LOCALITY", "one URI"),
        ("BACKUP INTO 'x' WITH include_all_virtual_clusters = true", "no virtual clusters"),
        ("BACKUP INTO 'x' WITH incremental_location = 'y'", "removed from CockroachDB"),
        ("RESTORE FROM LATEST IN 'x' WITH EXPERIMENTAL COPY", "no counterpart in PostgreSQL"),
        ("RESTORE FROM LATEST IN 'x' WITH EXPERIMENTAL DEFERRED COPY", "no counterpart in PostgreSQL"),
        ("RESTORE FROM LATEST IN 'x' WITH remove_regions", "no regions"),
        ("RESTORE FROM LATEST IN 'x' WITH skip_missing_views", "missing objects"),
        ("RESTORE FROM LATEST IN 'x' WITH kms = 'y'", "no encrypted backups"),
        ("SHOW BACKUP LATEST IN 'x' WITH debug_ids", "as_json"),
        ("SHOW BACKUP LATEST IN 'x' WITH SKIP SIZE", "cost nothing"),
        ("SHOW BACKUPS IN 'x' WITH REVISION START TIME", "revision history"),
        ("CREATE SCHEDULE s FOR BACKUP INTO 'x' RECURRING '@daily'", "schedule in Airflow"),
        ("SHOW SCHEDULES", "schedule in Airflow"),
        ("ALTER BACKUP SCHEDULE 1 EXECUTE IMMEDIATELY", "schedule in Airflow"),
        ("SHOW JOBS", "in Airflow"),
        ("pause job 12", "in Airflow"),
        ("ALTER BACKUP LATEST IN 'x' ADD NEW_KMS = 'y' WITH OLD_KMS = 'z'", "no keys to change"),
        ("CREATE EXTERNAL CONNECTION c AS 's3://b'", "conn_id"),
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
        "BACKUP INTO 'x' WITH encryption_passphrase = 'hunter2'",
        "BACKUP INTO 'x' WITH encryption_passphrase = hunter2",
        "BACKUP INTO 'x' WITH encryption_passphrase = 'hunter2",
        "BACKUP INTO 'x' 'hunter2'",
        "BACKUP INTO 's3://b\n?AWS_SECRET_ACCESS_KEY=hunter2' WITH !",
        "BACKUP INTO x' WITH encryption_passphrase = 'hunter2'",
        "RESTORE FROM LATEST IN 'x' WITH kms = hunter2",
    ],
)
def test_no_error_shows_a_secret(text: str) -> None:
    assert "hunter2" not in message(text)


def test_the_path_of_a_uri_stays_readable() -> None:
    assert "INT 's3://bucket/path···" in message("BACKUP DATABASE a INT 's3://bucket/path?AWS_SECRET_ACCESS_KEY=hunter2'")
