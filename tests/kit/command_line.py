"""The `spanvault` command in tests: in this process, or as a process of its own where signals and environment matter."""

from __future__ import annotations

import csv
import io
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from spanvault.cli.main import run

PROGRAM = str(Path(sys.executable).with_name("spanvault"))
# What would lead the command elsewhere than a test means.
_LEADING = ("PGPASSWORD", "PGPASSFILE", "SPANVAULT_CLUSTERS_FILE")


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what would lead the command elsewhere, and with `more`."""
    return {name: value for name, value in os.environ.items() if name not in _LEADING} | dict(more or {})


def hear_ctrl_c() -> None:
    """For `preexec_fn`: a shell lets what it begins in the background ignore Ctrl-C, and so all that tests begin there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def spanvault(*arguments: str, more: Mapping[str, str] | None = None, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command to its end as a process of its own."""
    return subprocess.run(
        [PROGRAM, *arguments], capture_output=True, text=True, check=False, env=environment(more), input=stdin, timeout=240
    )


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, str]]:
    """Run the command in this process, which must succeed; its rows."""
    capsys.readouterr()
    code = run([*arguments, "--format", "csv"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return list(csv.DictReader(io.StringIO(captured.out)))


def refusal(capsys: pytest.CaptureFixture[str], code: int, *arguments: str, shows: bool = False) -> str:
    """Run the command in this process, which must fail with `code` and one message without a traceback; the message. Only a
    command that `shows` has rows all the same."""
    capsys.readouterr()
    given = run(list(arguments))
    captured = capsys.readouterr()
    assert given == code, captured.err
    assert bool(captured.out) == shows
    assert "Traceback" not in captured.err
    messages = [line for line in captured.err.splitlines() if line.startswith("Error: ")]
    assert len(messages) == 1, captured.err
    assert "unexpected" not in messages[0]
    return messages[0]
