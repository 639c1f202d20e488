"""Passphrases that cannot be used, from the environment and from a person, at the command line."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.kit.command_line import PROGRAM, environment, spanvault

NO_UTF8 = b"\xff\xfehidden"


def said(output: str) -> str:
    """The one message of a command, which shows neither a traceback nor the passphrase."""
    assert "Traceback" not in output
    assert "hidden" not in output
    (message,) = (line for line in output.splitlines() if line.startswith("Error: "))
    return message


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (NO_UTF8, "The passphrase from env:OF_BACKUPS holds bytes or characters that are no UTF-8; give one in UTF-8."),
        (b"", "The passphrase from env:OF_BACKUPS is empty."),
        (b" \t", "The passphrase from env:OF_BACKUPS is empty."),
    ],
)
@pytest.mark.parametrize("statement", [False, True])
def test_an_environment_variable(tmp_path: Path, statement: bool, value: bytes, sentence: str) -> None:
    uri = f"file://{tmp_path}"
    command = ["collection", "sweep", uri, "--passphrase-from", "env:OF_BACKUPS"]
    if statement:
        command = ["sql", f"SHOW BACKUP LATEST IN '{uri}' WITH encryption_passphrase_from = 'env:OF_BACKUPS'"]
    ended = spanvault(*command, more={"OF_BACKUPS": os.fsdecode(value)})
    assert (ended.returncode, said(ended.stderr)) == (2, f"Error: {sentence}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("typed", "errors", "sentence"),
    [
        # The terminal's text is decoded strictly or not, by the machine's locale.
        (NO_UTF8 + b"\n", "strict", "The passphrase that was typed holds bytes or characters that are no UTF-8"),
        (NO_UTF8 + b"\n", "surrogateescape", "The passphrase that was typed holds bytes or characters that are no UTF-8"),
        (b"\n", "strict", "The passphrase that was typed is empty."),
        (b"\x04", "strict", "The input ended where the passphrase was asked for"),
    ],
)
def test_a_prompt(tmp_path: Path, typed: bytes, errors: str, sentence: str) -> None:
    """A session without a terminal of its own, so that getpass asks on standard input, which is one."""
    terminal, inside = os.openpty()
    try:
        with subprocess.Popen(
            [PROGRAM, "collection", "sweep", f"file://{tmp_path}", "--passphrase-from", "prompt"],
            stdin=inside,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment({"PYTHONIOENCODING": f"utf-8:{errors}"}),
            start_new_session=True,
        ) as process:
            assert process.stderr is not None
            asked = b""
            while not asked.endswith(b"Passphrase of the backup: "):
                asked += (read := process.stderr.read(1))
                assert read, asked
            os.write(terminal, typed)
            output = process.stderr.read().decode()
            assert process.wait(60) == 2
    finally:
        os.close(terminal)
        os.close(inside)
    assert said(output.lstrip()).startswith(f"Error: {sentence}")
