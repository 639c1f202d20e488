"""Results as a table, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json

import pytest

from spanvault.cli.output import Format, show
from spanvault.model.result import Result

RESULT = Result(
    columns=("name", "rows", "full", "share"),
    rows=(('a "b", c', 1204, True, 0.5), ("[red]über\nzwei[/red]", None, False, None), ("x" * 300, 0, None, 1.0)),
)
Captured = pytest.CaptureFixture[str]


def test_json_is_columns_and_rows(capsys: Captured) -> None:
    show(RESULT, Format.json)
    assert json.loads(capsys.readouterr().out) == {
        "columns": ["name", "rows", "full", "share"],
        "rows": [['a "b", c', 1204, True, 0.5], ["[red]über\nzwei[/red]", None, False, None], ["x" * 300, 0, None, 1.0]],
    }


def test_csv_reads_back(capsys: Captured) -> None:
    show(RESULT, Format.csv)
    assert list(csv.reader(io.StringIO(capsys.readouterr().out, newline=""))) == [
        ["name", "rows", "full", "share"],
        ['a "b", c', "1204", "true", "0.5"],
        ["[red]über\nzwei[/red]", "", "false", ""],
        ["x" * 300, "0", "", "1.0"],
    ]


def test_a_table_in_a_pipe_shows_every_value_whole(capsys: Captured) -> None:
    show(RESULT, Format.table)
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert [cell.strip() for cell in lines[0].split("|")] == ["name", "rows", "full", "share"]
    assert [cell.strip() for cell in lines[2].split("|")] == ['a "b", c', "1204", "true", "0.5"]
    assert "[red]über" in text
    assert "NULL" in text
    assert "x" * 300 in text
    assert "\x1b" not in text


def test_a_table_without_rows_has_its_columns(capsys: Captured) -> None:
    show(Result(columns=("path",)), Format.table)
    assert capsys.readouterr().out.splitlines()[0].strip() == "path"


def test_a_table_on_a_narrow_terminal_folds_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "dumb")
    show(RESULT, Format.table)
    assert terminal.getvalue().count("x") == 300
