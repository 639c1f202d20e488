"""Reading what pg_dump and pg_restore print."""

from __future__ import annotations

from pathlib import Path

import pytest

from spanvault.database.postgres.archive import _first_error, _only_unknown_setting, read_archive
from spanvault.errors import Damaged

OLD_SERVER = """pg_restore: while INITIALIZING:
pg_restore: error: could not execute query: ERROR:  unrecognized configuration parameter "transaction_timeout"
Command was: SET transaction_timeout = 0;
"""
IGNORED = "pg_restore: warning: errors ignored on restore: 1\n"
FAILED = """pg_restore: error: could not execute query: ERROR:  could not create unique index "a_pkey"
DETAIL:  Key (id)=(1) is duplicated.
Command was: ALTER TABLE ONLY public.a ADD CONSTRAINT a_pkey PRIMARY KEY (id);
"""


def test_a_setting_that_an_older_server_lacks_is_no_failure() -> None:
    assert _only_unknown_setting(OLD_SERVER + IGNORED)
    assert not _only_unknown_setting(OLD_SERVER)  # it ended before its end
    assert not _only_unknown_setting(OLD_SERVER + FAILED + IGNORED)
    assert not _only_unknown_setting("")
    # As PostgreSQL 15 answers two jobs: of four such errors two are counted.
    assert _only_unknown_setting(OLD_SERVER * 4 + IGNORED.replace("1", "2"))
    assert not _only_unknown_setting(OLD_SERVER * 4 + FAILED + IGNORED.replace("1", "2"))


def test_the_first_error_is_told_with_its_detail() -> None:
    assert _first_error(FAILED) == (
        'could not execute query: ERROR:  could not create unique index "a_pkey" DETAIL:  Key (id)=(1) is duplicated'
    )
    assert _first_error("") == "no reason given"


def test_what_is_no_archive_is_damaged(tmp_path: Path) -> None:
    file = tmp_path / "x.dump"
    file.write_bytes(b"PGDMP but not more")
    with pytest.raises(Damaged, match="The schema archive cannot be read"):
        read_archive(file)
