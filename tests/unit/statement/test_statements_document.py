"""docs/statements.md says what is true: examples parse, and every option stands there with its default."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

from spanvault.model.cut import Lsn
from spanvault.model.request import BackupRequest, EncryptionOptions, RestoreRequest
from spanvault.model.units import format_bytes
from spanvault.statement import refuse
from spanvault.statement.options import BYTE_OPTIONS, ENCRYPTED, FIELDS, KEY_OPTIONS
from spanvault.statement.parse import _grammar, parse
from spanvault.statement.render import render

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "statements.md").read_text()
LATER = datetime(2027, 1, 1, tzinfo=UTC)
EXAMPLES = [
    statement.strip()
    for block in re.findall(r"^```sql\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    for statement in block.splitlines()
]


def section(heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
    assert found, heading
    return found[1]


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_is_a_statement(example: str) -> None:
    request = parse(example, clock=lambda: LATER)
    assert parse(render(request), clock=lambda: LATER) == request


def test_every_statement_has_examples() -> None:
    kinds = [parse(example, clock=lambda: LATER).kind for example in EXAMPLES]
    assert {kind: kinds.count(kind) >= 2 for kind in kinds} == dict.fromkeys(
        ("backup", "restore", "show_backup", "show_backups", "alter_backup"), True
    )


@pytest.mark.parametrize(
    ("statement", "name", "field"),
    [(statement, name, field) for statement, fields in FIELDS.items() for name, field in fields.items()],
)
def test_every_option_is_documented_with_its_default(statement: str, name: str, field: FieldInfo) -> None:
    row = re.search(rf"^\| `{name}` \| [^|]+ \| ([^|]+) \| [^|]{{10,}}", section(statement), re.MULTILINE)
    assert row, f"{statement} {name}"
    value = field.get_default()
    if value is None or value == "":
        assert row[1] == "none"
    elif isinstance(value, bool):
        assert row[1] == f"`{str(value).lower()}`"
    else:
        assert row[1] == f"`{format_bytes(value) if name in BYTE_OPTIONS else value}`"


@pytest.mark.parametrize("statement", sorted(ENCRYPTED))
@pytest.mark.parametrize("name", sorted(KEY_OPTIONS))
def test_every_option_of_encryption_is_documented(statement: str, name: str) -> None:
    assert re.search(rf"^\| `{name}` \| [^|]+ \| none \| [^|]{{10,}}", section(statement), re.MULTILINE)
    assert not EncryptionOptions().given


@pytest.mark.parametrize("name", [token.name for token in _grammar().terminals if token.name.startswith(("NEW_", "OLD_"))])
def test_every_key_of_an_alteration_is_documented(name: str) -> None:
    assert f"{name} =" in section("ALTER BACKUP")


def test_no_option_is_documented_that_does_not_exist() -> None:
    for statement, fields in FIELDS.items():
        tables = [table for table in section(statement).split("\n\n") if table.startswith("| Option |")]
        documented = {name for table in tables for name in re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)}
        assert documented == {*fields, *(KEY_OPTIONS if statement in ENCRYPTED else ())}


def test_every_refused_option_is_documented() -> None:
    text = section("What CockroachDB has and this version has not").lower()
    names = {name for options in refuse.OPTIONS.values() for name in options}
    assert {name for name in names - {"strict", "strip_localities"} if name not in text} == set()


@pytest.mark.parametrize(
    ("words", "form"),
    [
        ("INTO 'uri'", "BACKUP INTO 'file:///b'"),
        ("INTO LATEST IN 'uri'", "BACKUP INTO LATEST IN 'file:///b'"),
        ("INTO 'path' IN 'uri'", "BACKUP INTO '2026/11/22-143000.00' IN 'file:///b'"),
    ],
)
def test_every_place_of_a_backup_is_told_and_shown(words: str, form: str) -> None:
    assert f"`{words}`" in section("BACKUP")
    shown = [parse(example, clock=lambda: LATER) for example in EXAMPLES]
    meant = parse(form)
    assert isinstance(meant, BackupRequest)
    assert any(isinstance(request, BackupRequest) and request.append == meant.append for request in shown)


def test_every_form_of_a_time_is_read_as_the_table_says() -> None:
    table = section("How statements are written").partition("### Times\n")[2].partition("\n### ")[0]
    times = [text for row in re.findall(r"^\| (`'.*?) \|", table, re.MULTILINE) for text in re.findall(r"`'(.*?)'`", row)]
    read = []
    for text in times:
        request = parse(f"RESTORE FROM LATEST IN 'file:///b' AS OF SYSTEM TIME '{text}'", clock=lambda: LATER)
        assert isinstance(request, RestoreRequest)
        read.append(request.as_of)
    half_past_two = datetime(2026, 11, 22, 14, 30, tzinfo=UTC)
    assert read == [
        half_past_two,
        datetime(2026, 11, 22, tzinfo=UTC),
        half_past_two,
        half_past_two.replace(microsecond=123456),
        LATER - timedelta(minutes=10),
        LATER - timedelta(minutes=90),
        Lsn(0x16_B374D848),
    ]


def test_the_scheduled_backups_are_named_where_schedules_are_refused() -> None:
    files = (Path(__file__).resolve().parents[3] / "dags").glob("*.py")
    scheduled = {file.stem for file in files if re.search(r'= backup_dag\([^)]*schedule="', file.read_text())}
    assert len(scheduled) == 4
    reason = refuse.statement("CREATE SCHEDULE s")
    assert reason is not None
    row = next(line for line in TEXT.splitlines() if line.startswith("| schedules ("))
    for said in (reason, row):
        assert set(re.findall(r"\w+_backup", said)) == scheduled
