"""Exit codes and messages: what a person and a script learn from a command."""

from __future__ import annotations

import io
import re
import shlex
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer

from spanvault import __version__
from spanvault.cli.collection import Level
from spanvault.cli.hints import HINTS
from spanvault.cli.main import app, run
from spanvault.errors import (
    AlreadyCovered,
    AlreadyExists,
    BadInput,
    BrokenChain,
    Busy,
    Damaged,
    NotFound,
    Refused,
    Retryable,
    StateUnknown,
)
from spanvault.model.cut import Lsn
from spanvault.model.request import BackupRequest, RestoreOptions, RestoreRequest, ShowBackupsRequest
from spanvault.model.target import DatabaseTarget
from spanvault.verify.result import BACKUP_LEVELS
from tests.kit.engine_double import EngineDouble

Captured = pytest.CaptureFixture[str]
SHOW = ["sql", "SHOW BACKUPS IN 'file:///b'"]
APPEND = ["sql", "--cluster", "shop", "BACKUP DATABASE shop INTO LATEST IN 'file:///b' AS OF SYSTEM TIME '2026-11-22'"]
BACKUP = ["sql", "--cluster", "shop", "BACKUP DATABASE shop INTO 'file:///b'"]
RESTORE = ["sql", "--cluster", "shop", "RESTORE DATABASE shop FROM LATEST IN 'file:///b'"]
COMMANDS = [
    SHOW,
    BACKUP,
    APPEND,
    RESTORE,
    ["collection", "check", "file:///b"],
    ["collection", "rebuild-index", "file:///b"],
    ["collection", "sweep", "file:///b"],
    ["collection", "windows", "file:///b"],
    ["collection", "compact", "file:///b"],
    ["storage", "check", "file:///b"],
    ["protection", "list", "--cluster", "shop"],
    ["protection", "release", "--cluster", "shop", "slot_1"],
    ["cluster", "preflight", "--cluster", "shop"],
    ["cluster", "uninstall", "--cluster", "shop", "--yes"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_result_is_on_standard_output_and_all_else_on_standard_error(
    command: list[str], engine: EngineDouble, capsys: Captured
) -> None:
    engine.work = lambda progress: progress.step("Working")
    assert run([*command, "--format", "csv"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "path,rows,full\n2026/11/22-143000.00,12,true\n2026/11/23-143000.00,,false\n"
    assert captured.err.startswith("Working ...\nWorking: done in ")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadInput("This is wrong."), 2),
        (NotFound("There is none."), 2),
        (AlreadyExists("It is there."), 2),
        (Retryable("Try again."), 1),
        (Busy("Somebody holds it."), 1),
        (Refused("It would lose data."), 1),
        (Damaged("A file is damaged."), 1),
        (BrokenChain("Take a full backup."), 1),
        (AlreadyCovered("Layer 3 holds that time."), 1),
        (StateUnknown("Look first."), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_is_its_sentence_and_an_exit_code(
    command: list[str], error: Exception, code: int, engine: EngineDouble, capsys: Captured
) -> None:
    engine.answer, engine.work = error, lambda progress: None
    assert run(command) == code
    captured = capsys.readouterr()
    assert captured.err == f"Error: {error}\n"
    assert captured.out == ""


def test_an_unexpected_error_is_a_sentence_and_a_file_with_the_traceback(
    engine: EngineDouble, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    engine.answer, engine.work = ZeroDivisionError("s3://b?AWS_SECRET_ACCESS_KEY=hunter2"), lambda progress: None
    assert run(SHOW) == 1
    message = capsys.readouterr().err
    (file,) = tmp_path.iterdir()
    assert message == f"Error: unexpected ZeroDivisionError, a defect in Spanvault; the traceback is in {file}.\n"
    assert "Traceback" in file.read_text()
    assert "hunter2" not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_an_unexpected_error_without_room_for_a_traceback(
    engine: EngineDouble, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    engine.answer, engine.work = ZeroDivisionError(), lambda progress: None
    assert run(SHOW) == 1
    assert "could not be written to a file (No such file or directory)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "going_on"),
    [
        (BACKUP, "What is on storage stays; run the same statement again and it continues from there."),
        (RESTORE, "What was restored stays; run the same statement again and it continues from there."),
        ([*BACKUP, "--dry-run"], "Nothing was changed."),
        (SHOW, "Nothing was changed."),
        (APPEND, "What is on storage stays; run the same statement again and it continues from there."),
        (["collection", "check", "file:///b"], "Nothing was changed."),
        (["collection", "windows", "file:///b"], "Nothing was changed."),
        (["collection", "compact", "file:///b"], "The chain's layers are as they were; run it again to begin anew."),
        (["collection", "sweep", "file:///b"], "Nothing was changed."),
        (["collection", "sweep", "file:///b", "--delete"], "Part of the garbage is removed; run it again for the rest."),
    ],
)
def test_ctrl_c_ends_with_a_sentence_that_says_how_to_go_on(
    command: list[str], going_on: str, engine: EngineDouble, capsys: Captured
) -> None:
    engine.answer, engine.work = KeyboardInterrupt(), lambda progress: progress.step("Exporting")
    assert run(command) == 130
    assert capsys.readouterr().err == f"Exporting ...\nInterrupted. {going_on}\n"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["colection"], "No such command 'colection'. Did you mean 'collection'"),
        (["collection", "windows"], "Missing argument 'URI'"),
        (["collection", "compact"], "Missing argument 'URI'"),
        (["collection", "compact", "file:///b", "yesterday"], "'yesterday' is not a backup's path; write it as SHOW BACKUPS"),
        (["collection", "compact", "file:///b", "--from", "two"], "Invalid value for '--from'"),
        (["collection", "compact", "file:///b", "--to", "-1"], "Invalid value for '--to'"),
        (["collection", "compact", "file:///b", "--from", "3", "--to", "3"], "--to 3 must be greater than the first layer, 3"),
        (["collection", "compact", "file:///b", "--to", "1"], "--to 1 must be greater than the first layer, 1"),
        (["collection", "compact", "file:///b", "--full", "--to", "0"], "--to 0 must be greater than the first layer, 0"),
        (["collection", "compact", "file:///b", "--full", "--from", "2"], "--from says 2; give one of them"),
        (["sql"], "Missing argument 'STATEMENT'"),
        (["sql", "--fromat", "json", "x"], "No such option"),
        ([*SHOW, "--format", "xml"], "Invalid value for '--format'"),
        (["collection", "check", "file:///b", "--level", "deep"], "Invalid value for '--level'"),
        (["collection", "sweep"], "Missing argument 'URI'"),
        (["protection", "release"], "Missing argument 'SLOT'"),
        (["collection", "sweep", "file:///b", "--older-than", "yesterday"], "'yesterday' is not a duration"),
        (["sql", "BACKUP INTO 'file:///b'"], "BACKUP needs a cluster: give --cluster NAME or --url"),
        (["sql", "RESTORE FROM LATEST IN 'file:///b'"], "RESTORE needs a cluster"),
        (["protection", "list"], "protection list needs a cluster"),
        (["cluster", "preflight", "--cluster", "shop", "--url", "postgresql://h/d"], "not both"),
        (["cluster", "preflight", "--cluster", "shoop"], "no cluster 'shoop'"),
        (["cluster", "preflight", "--url", "mysql://me:hunter2@h/d"], "--url must have the form postgresql://"),
        (["cluster", "uninstall", "--cluster", "shop"], "give --yes"),
        (["sql", "SHOW BACKUPS IN"], "Line 1, column 16: expected a string in single quotes, found the end of the statement"),
        (["sql", "--cluster", "shop", "BACKUP INTO 'file:///b' WITH detached"], "trigger the DAG full_backup in Airflow"),
        (["sql", "BACKUP INTO LATEST IN 'file:///b' WITH detached"], "trigger the DAG incremental_backup in Airflow"),
        (["sql", "RESTORE FROM LATEST IN 'file:///b' WITH detached"], "trigger the DAG restore in Airflow"),
        (["sql", "BACKUP INTO LATEST IN 'file:///b'"], "BACKUP needs a cluster: give --cluster NAME or --url"),
        (["sql", "BACKUP INTO 'file:///b' AS OF SYSTEM TIME '-1m'"], "Line 1, column 25: A full backup reads the present"),
        (["sql", "RESTORE FROM LATEST IN 'x' AS OF SYSTEM TIME '2999-01-01'"], "Line 1, column 46: 2999-01-01 00:00:00"),
    ],
)
def test_bad_input_is_exit_code_2_before_anything_is_done(
    arguments: list[str], part: str, engine: EngineDouble, capsys: Captured
) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert part in re.sub(r"[\s│╭╰─╮╯]+", " ", captured.err)
    assert "Traceback" not in captured.err
    assert "hunter2" not in captured.err
    assert captured.out == ""
    assert engine.calls == []


@pytest.mark.parametrize(
    ("arguments", "word", "right"),
    [
        (["backup", "INTO", "x"], "backup", "spanvault sql \"BACKUP ... INTO 'uri'\""),
        (["BACKUP"], "backup", "spanvault sql \"BACKUP ... INTO 'uri'\""),
        (["BACKUP INTO 's3://b?AWS_SECRET_ACCESS_KEY=hunter2'"], "backup", "spanvault sql \"BACKUP ... INTO 'uri'\""),
        (["incremental"], "incremental", "spanvault sql \"BACKUP ... INTO LATEST IN 'uri'\""),
        (["restore", "--url", "postgresql://me:hunter2@h/d"], "restore", "spanvault sql \"RESTORE ... FROM LATEST IN 'uri'\""),
        (["show"], "show", "spanvault sql \"SHOW BACKUPS IN 'uri'\""),
        (["compact", "file:///b"], "compact", "spanvault collection compact 'uri'"),
        (["preflight"], "preflight", "spanvault cluster preflight --cluster NAME"),
        (["release", "slot"], "release", "spanvault protection release SLOT --cluster NAME"),
    ],
    ids=lambda value: value[0][:12] if isinstance(value, list) else "",
)
def test_a_command_that_stands_elsewhere_is_answered_with_the_right_form(
    arguments: list[str], word: str, right: str, engine: EngineDouble, capsys: Captured
) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err == f"Error: No such command {word!r}; did you mean: {right}\n"
    assert (captured.out, engine.calls) == ("", [])


@pytest.mark.parametrize("hint", HINTS.values())
def test_every_hint_names_a_command_that_there_is(hint: str, engine: EngineDouble, capsys: Captured) -> None:
    _, *words = shlex.split(hint)
    group = typer.main.get_command(app)
    while hasattr(group, "commands") and words:
        group = group.commands[words.pop(0)]
    assert not hasattr(group, "commands")


def test_a_statement_becomes_a_request(engine: EngineDouble) -> None:
    assert run([*BACKUP, "--dry-run"]) == 0
    ((name, (request,), options),) = engine.calls
    assert name == "execute"
    assert request == BackupRequest(target=DatabaseTarget(names=("shop",)), into="file:///b")
    assert options == {"cluster": engine.cluster("shop"), "dry_run": True}


def test_an_incremental_backup_and_a_restore_at_a_log_position_become_requests(engine: EngineDouble) -> None:
    assert run(APPEND) == 0
    assert run(["sql", "--cluster", "shop", "RESTORE FROM LATEST IN 'file:///b' AS OF SYSTEM TIME '0/10' WITH strict"]) == 0
    (_, (backup,), _), (_, (restore,), _) = engine.calls
    midnight = datetime(2026, 11, 22, tzinfo=UTC)
    assert backup == BackupRequest(target=DatabaseTarget(names=("shop",)), append="LATEST", into="file:///b", as_of=midnight)
    assert restore == RestoreRequest(collection="file:///b", as_of=Lsn(16), options=RestoreOptions(strict=True))


def test_every_level_can_be_asked_for() -> None:
    assert tuple(Level) == BACKUP_LEVELS


def test_reading_a_collection_needs_no_cluster(engine: EngineDouble) -> None:
    assert run(SHOW) == 0
    assert engine.calls == [("execute", (ShowBackupsRequest(collection="file:///b"),), {"cluster": None, "dry_run": False})]


def test_a_cluster_may_be_a_url(engine: EngineDouble) -> None:
    assert run(["sql", "--url", "postgresql://me@db.example:6543/shop", "RESTORE FROM LATEST IN 'file:///b'"]) == 0
    ((_, (request,), options),) = engine.calls
    assert request == RestoreRequest(collection="file:///b")
    endpoint = options["cluster"].primary
    assert (endpoint.host, endpoint.port, endpoint.user, endpoint.database) == ("db.example", 6543, "me", "shop")
    assert endpoint.password is None


def test_a_statement_may_come_from_standard_input(engine: EngineDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("-- weekly\nSHOW BACKUPS\nIN 'file:///b';\n"))
    assert run(["sql", "-"]) == 0
    assert engine.calls[0][1] == (ShowBackupsRequest(collection="file:///b"),)


def test_the_commands_hand_over_their_arguments(engine: EngineDouble) -> None:
    shop = engine.cluster("shop")
    assert run(["collection", "check", "file:///b", "--level", "checksums"]) == 0
    assert run(["collection", "check", "file:///b"]) == 0
    assert run(["collection", "check", "file:///b", "--level", "schema_only", "--backup", "LATEST"]) == 0
    assert run(["collection", "rebuild-index", "file:///b"]) == 0
    assert run(["collection", "sweep", "file:///b", "--delete", "--older-than", "2d"]) == 0
    assert run(["collection", "sweep", "file:///b"]) == 0
    assert run(["collection", "windows", "file:///b"]) == 0
    assert run(["collection", "compact", "file:///b"]) == 0
    assert run(["collection", "compact", "file:///b", "/2026/11/22-143000.00", "--from", "2", "--to", "4"]) == 0
    assert run(["collection", "compact", "file:///b", "latest", "--full", "--to", "4"]) == 0
    assert run(["collection", "compact", "file:///b", "--from", "0"]) == 0
    assert run(["collection", "compact", "file:///b", "--full", "--from", "0"]) == 0
    assert run(["protection", "list", "--cluster", "shop"]) == 0
    assert run(["protection", "release", "spanvault_1_shop", "--cluster", "shop"]) == 0
    assert run(["cluster", "preflight", "--cluster", "shop"]) == 0
    assert run(["cluster", "uninstall", "--cluster", "shop", "--yes"]) == 0
    assert engine.calls == [
        ("collection_check", ("file:///b", "checksums", None), {}),
        ("collection_check", ("file:///b", "check_files", None), {}),
        ("collection_check", ("file:///b", "schema_only", "LATEST"), {}),
        ("rebuild_index", ("file:///b",), {}),
        ("sweep", ("file:///b",), {"dry_run": False, "older_than": timedelta(days=2)}),
        ("sweep", ("file:///b",), {"dry_run": True, "older_than": timedelta(hours=24)}),
        ("restorable", ("file:///b",), {}),
        ("compact_backups", ("file:///b", "LATEST"), {"first": 1, "number": None}),
        ("compact_backups", ("file:///b", "2026/11/22-143000.00"), {"first": 2, "number": 4}),
        ("compact_backups", ("file:///b", "LATEST"), {"first": 0, "number": 4}),
        ("compact_backups", ("file:///b", "LATEST"), {"first": 0, "number": None}),
        ("compact_backups", ("file:///b", "LATEST"), {"first": 0, "number": None}),
        ("protection_list", (shop,), {}),
        ("protection_release", (shop, "spanvault_1_shop"), {}),
        ("preflight", (shop,), {}),
        ("uninstall", (shop,), {}),
    ]


DEFAULT = "s3://us/b?AUTH=implicit&COCKROACH_LOCALITY=default"
EU = "s3://eu/b?AUTH=implicit&COCKROACH_LOCALITY=region%3Deu"


@pytest.mark.parametrize(
    "words",
    [
        ["collection", "check"],
        ["collection", "rebuild-index"],
        ["collection", "sweep"],
        ["collection", "windows"],
        ["collection", "compact"],
        ["storage", "check"],
    ],
    ids=" ".join,
)
def test_every_place_of_a_collection_is_handed_over(words: list[str], engine: EngineDouble) -> None:
    assert run([*words, DEFAULT, "--place", EU, "--place", EU.replace("eu", "ap")]) == 0
    assert run([*words, "--place", EU, DEFAULT]) == 0
    assert [arguments[0].split("\n") for _, arguments, _ in engine.calls] == [
        [DEFAULT, EU, EU.replace("eu", "ap")],
        [DEFAULT, EU],
    ]


@pytest.mark.parametrize(
    ("places", "part"),
    [
        (
            [DEFAULT, "--place", "s3://eu/b?AWS_ACCESS_KEY_ID=me&AWS_SECRET_ACCESS_KEY=hunter2"],
            "does not say which locality it is for",
        ),
        ([EU, "--place", EU], "exactly one must have COCKROACH_LOCALITY=default"),
        ([DEFAULT, "--place", EU, "--place", EU], "Several URIs are for the locality region=eu"),
        ([DEFAULT, "--place", ""], "The storage URI has no scheme"),
    ],
)
@pytest.mark.parametrize("words", [["collection", "check"], ["storage", "check"]], ids=" ".join)
def test_places_that_do_not_fit_are_bad_input(
    words: list[str], places: list[str], part: str, engine: EngineDouble, capsys: Captured
) -> None:
    assert run([*words, *places]) == 2
    captured = capsys.readouterr()
    assert part in captured.err
    assert re.fullmatch(r"Error: [A-Z].*\.\n", captured.err)
    assert "hunter2" not in captured.err
    assert engine.calls == []


@pytest.mark.parametrize(("answer", "code", "calls"), [("y\n", 0, ["uninstall"]), ("n\n", 1, []), ("\n", 1, [])])
def test_uninstall_asks_on_a_terminal(
    answer: str, code: int, calls: list[str], engine: EngineDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO(answer)
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    assert run(["cluster", "uninstall", "--cluster", "shop"]) == code
    assert [name for name, _, _ in engine.calls] == calls


def test_the_version(capsys: Captured) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"spanvault {__version__}\n"


def test_help_and_statements_are_read_without_loading_the_engine() -> None:
    heavy = ("pyarrow", "duckdb", "boto3", "psycopg", "asyncpg", "airflow", "spanvault.engine.execute", "spanvault.storage")
    script = f"""
import sys
from spanvault.cli.hints import HINTS
from spanvault.cli.main import app, run
assert run(["--help"]) == 0
assert run(["sql", "SHOW"]) == 2
loaded = [name for name in {heavy!r} if name in sys.modules]
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "protection" in done.stdout


def test_a_closed_pipe_is_no_traceback() -> None:
    script = f"{sys.executable} -c 'from spanvault.cli.main import main; main()' --help"
    done = subprocess.run(["sh", "-c", f"{script} | true"], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_pythons_warnings_are_for_those_who_ask() -> None:
    """After Ctrl-C, for example, of work that was never awaited."""
    script = "import warnings, spanvault.cli.main as m; m.run = lambda _: warnings.warn('noise', RuntimeWarning); m.main()"
    for asked in (), ("-W", "default"):
        done = subprocess.run([sys.executable, *asked, "-c", script], capture_output=True, text=True, check=False)
        assert ("noise" in done.stderr) == bool(asked)
