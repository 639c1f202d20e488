"""Times that a chain does not hold, or holds already: one sentence with the times that can be had, and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from spanvault.embedded.postgres import PostgresServer
from spanvault.model.cut import Lsn, format_time
from tests.kit.command_line import answer, refusal, spanvault
from tests.kit.servers import TestDatabase, fresh_database

Captured = pytest.CaptureFixture[str]
SECOND = timedelta(seconds=1)


@dataclass(frozen=True)
class Chain:
    """A full backup and two layers: the first with the last change of each row, the second with every change."""

    shop: TestDatabase
    uri: str
    layers: tuple[dict[str, str], ...]

    def end(self, layer: int) -> datetime:
        """When a layer ends."""
        return datetime.fromisoformat(self.layers[layer]["end_time"])

    def backup(self, options: str) -> tuple[str, ...]:
        """The command of an incremental backup."""
        return ("sql", "--url", self.shop.url, f"BACKUP DATABASE {self.shop.name} INTO LATEST IN '{self.uri}' {options}")

    def restore(self, options: str) -> tuple[str, ...]:
        """The command of a restore under another name."""
        statement = f"RESTORE DATABASE {self.shop.name} FROM LATEST IN '{self.uri}' {options}"
        return ("sql", "--url", self.shop.url, f"{statement} WITH new_db_name = 'never'")


@pytest.fixture(scope="module")
def chain(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """The chain of a database with one small table."""
    uri = f"file://{tmp_path_factory.mktemp('times')}"
    with fresh_database(postgres) as shop:
        shop.execute("create table item (id int primary key, name text); insert into item values (1, 'tea')")
        taken = []
        for place, options in (("INTO", ""), ("INTO LATEST IN", ""), ("INTO LATEST IN", "WITH revision_history")):
            shop.execute("insert into item select max(id) + 1, 'salt' from item")
            statement = f"BACKUP DATABASE {shop.name} {place} '{uri}' {options}"
            done = spanvault("sql", "--url", shop.url, "--format", "json", statement)
            assert done.returncode == 0, done.stderr
            result = json.loads(done.stdout)
            taken.append({name: str(cell) for name, cell in zip(result["columns"], result["rows"][0], strict=True)})
        yield Chain(shop, uri, tuple(taken))


def test_a_backup_s_row_says_which_layer_of_which_chain_it_is(chain: Chain) -> None:
    assert [(row["layer"], row["kind"]) for row in chain.layers] == [("0", "full"), ("1", "incremental"), ("2", "incremental")]
    assert len({row["path"] for row in chain.layers}) == 1
    assert [row["start_time"] for row in chain.layers[1:]] == [row["end_time"] for row in chain.layers[:-1]]


@pytest.mark.parametrize(("layer", "by"), [(2, "the layer 2 of"), (1, "the layer 1 of"), (0, "the full backup")])
def test_a_backup_up_to_a_time_that_is_covered(layer: int, by: str, chain: Chain, capsys: Captured) -> None:
    before = answer(capsys, "sql", f"SHOW BACKUP LATEST IN '{chain.uri}'")
    moment = format_time(chain.end(layer))
    message = refusal(capsys, 1, *chain.backup(f"AS OF SYSTEM TIME '{moment}'"))
    assert f"{moment} is covered by {by}" in message
    assert answer(capsys, "sql", f"SHOW BACKUP LATEST IN '{chain.uri}'") == before


def test_a_backup_up_to_a_time_to_come(chain: Chain, capsys: Captured) -> None:
    later = format_time(datetime.now(UTC) + timedelta(hours=1))
    assert "lies in the future" in refusal(capsys, 2, *chain.backup(f"AS OF SYSTEM TIME '{later}'"))


def test_a_backup_up_to_a_log_position(chain: Chain, capsys: Captured) -> None:
    assert "takes a time, not a log position" in refusal(capsys, 2, *chain.backup("AS OF SYSTEM TIME '0/15'"))


def test_a_restore_at_a_time_before_the_chain(chain: Chain, capsys: Captured) -> None:
    message = refusal(capsys, 2, *chain.restore(f"AS OF SYSTEM TIME '{format_time(chain.end(0) - SECOND)}'"))
    assert f"the nearest restorable time is {format_time(chain.end(0))} after it" in message


def test_a_restore_at_a_time_after_the_chain(chain: Chain, capsys: Captured) -> None:
    # Before the last layer's end any time will do; what came after nobody backed up.
    message = refusal(capsys, 2, *chain.restore(f"AS OF SYSTEM TIME '{format_time(datetime.now(UTC))}'"))
    assert f"the nearest restorable time is {format_time(chain.end(2))} before it" in message


def test_a_restore_inside_a_layer_that_has_the_last_changes_only(chain: Chain, capsys: Captured) -> None:
    inside = chain.end(0) + (chain.end(1) - chain.end(0)) / 2
    message = refusal(capsys, 2, *chain.restore(f"AS OF SYSTEM TIME '{format_time(inside)}'"))
    assert f"{format_time(chain.end(0))} before it and {format_time(chain.end(1))} after it" in message
    position = Lsn(Lsn.parse(chain.layers[1]["end_lsn"]) - 1)
    message = refusal(capsys, 2, *chain.restore(f"AS OF SYSTEM TIME '{position}'"))
    assert f"{chain.layers[0]['end_lsn']} before it and {chain.layers[1]['end_lsn']} after it" in message


def test_the_windows_are_the_times_that_restores_name(chain: Chain, capsys: Captured) -> None:
    path = chain.layers[0]["path"]
    windows = answer(capsys, "collection", "windows", chain.uri)
    ends, positions = ([row[name] for row in chain.layers] for name in ("end_time", "end_lsn"))
    assert [tuple(row.values()) for row in windows] == [
        (path, ends[0], ends[0], positions[0], "false"),
        (path, ends[1], ends[2], positions[2], "true"),
    ]


@pytest.mark.parametrize("options", [("--to", "3"), ("--from", "2"), ("--from", "7", "--to", "9"), ("--full", "--to", "3")])
def test_layers_to_merge_that_the_chain_has_not(options: tuple[str, ...], chain: Chain, capsys: Captured) -> None:
    assert "has the layers 0 to 2" in refusal(capsys, 2, "collection", "compact", chain.uri, *options)


def test_a_merge_takes_no_time_away_and_answers_as_documented(chain: Chain, capsys: Captured) -> None:
    windows = ("collection", "windows", chain.uri)
    before = answer(capsys, *windows)
    (merged,) = answer(capsys, "collection", "compact", chain.uri, chain.layers[0]["path"], "--full", "--to", "2")
    assert (merged["path"], merged["first"], merged["last"], merged["kind"]) == (chain.layers[0]["path"], "0", "2", "full")
    assert answer(capsys, *windows) == before
    page = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text()
    for name, row in (("compact", merged), ("windows", before[0])):
        assert f"| `{name}` | {', '.join(f'`{column}`' for column in row)} |" in page


def test_nothing_was_restored_by_any_of_them(chain: Chain) -> None:
    assert chain.shop.execute("select count(*) from pg_database where datname = 'never'") == [(0,)]
