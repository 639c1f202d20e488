"""Results on standard output: a table for people, JSON or CSV for programs."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from rich.box import ASCII, SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from spanvault.model.result import Cell, Incomplete, Result

# Wider than any line of a result: a table that goes to a file or a pipe is never folded.
_UNBOUNDED = 1_000_000


class Format(StrEnum):
    """How a result is written."""

    table = "table"
    json = "json"
    csv = "csv"


def show(result: Result, form: Format) -> None:
    """Write a result to standard output."""
    if form is Format.json:
        json.dump({"columns": result.columns, "rows": result.rows}, sys.stdout, ensure_ascii=False)
        sys.stdout.write("\n")
    elif form is Format.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(result.columns)
        writer.writerows([["" if cell is None else _text(cell) for cell in row] for row in result.rows])
    else:
        _show_table(result)


@contextmanager
def rest_shown(form: Format) -> Iterator[None]:
    """Of what could be done in part only, the part is shown before the error goes on."""
    try:
        yield
    except Incomplete as error:
        show(error.result, form)
        raise


def _show_table(result: Result) -> None:
    terminal = sys.stdout.isatty()
    table = Table(box=SIMPLE_HEAD if terminal else ASCII, show_edge=False, pad_edge=False)
    for index, name in enumerate(result.columns):
        numbers = any(isinstance(row[index], int | float) and not isinstance(row[index], bool) for row in result.rows)
        table.add_column(Text(name), justify="right" if numbers else "left", overflow="fold")
    for row in result.rows:
        table.add_row(*(Text("NULL", style="dim") if cell is None else Text(_text(cell)) for cell in row))
    Console(file=sys.stdout, width=None if terminal else _UNBOUNDED, highlight=False).print(table)


def _text(cell: Cell) -> str:
    return str(cell).lower() if isinstance(cell, bool) else str(cell)
