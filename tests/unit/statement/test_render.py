"""Text and request say the same: what is rendered parses to the request it came from."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanvault.errors import BadInput
from spanvault.model.cut import Lsn, subdir_of
from spanvault.model.request import (
    BackupOptions,
    BackupRequest,
    Request,
    RestoreOptions,
    RestoreRequest,
    ShowBackupRequest,
    ShowBackupsRequest,
)
from spanvault.model.target import ClusterTarget, DatabaseTarget, SchemaTarget, TablePattern, TableTarget
from spanvault.statement.parse import parse
from spanvault.statement.render import render, render_redacted
from spanvault.statement.rules import check
from spanvault.statement.words import in_one_line

# Any text that PostgreSQL can hold as a name, with a taste for what could be mistaken for syntax.
names = st.one_of(
    st.sampled_from(["into", "FROM", "with", 'a"b', "a.b", "a b", "*", "latest", "Ünï", "1a", "--x", "/*", ";", "'"]),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=12),
)
single = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), min_size=1, max_size=40).filter(str.strip)
tiers = st.lists(st.sampled_from(["region=eu", "region=us", "zone=a-1", "rack=x y"]), unique=True, max_size=3)
several = st.builds(
    lambda tiers: "\n".join(
        f"s3://backups/{number}?AUTH=implicit&COCKROACH_LOCALITY={quote(tier)}" for number, tier in enumerate(tiers)
    ),
    tiers.map(lambda found: ["default", *found]),
)
uris = st.one_of(single, several)
localities = st.sampled_from(["", "region=eu", "region=eu,zone=a b"])
LAST = datetime.max.replace(tzinfo=UTC)
WORDS = ["BACKUP", "RESTORE", "SHOW", "INTO", "FROM", "LATEST", "IN", "WITH", "'x'", "a", *"().,*=';", "AS OF SYSTEM TIME", "4h"]
# What every mistake is answered with: a sentence with its place, the line, a caret.
ONE_PLACE = re.compile(r"The statement is empty; .*\.|Line \d+, column \d+: \S.*\.\n  .*\n  …? *\^", re.DOTALL)
WORDS += ["'-10m'", "'16/B374D848'", "'2026/11/22-143000.00'"]
subdirs = st.one_of(st.just("LATEST"), st.text(max_size=20).filter(lambda text: text.upper() != "LATEST"))
schemas = st.tuples(st.none() | names, names)
patterns = st.builds(TablePattern, database=st.none() | names, schema_name=names, name=st.none() | names)


def distinct(items: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    """One to four different ones."""
    return st.lists(items, min_size=1, max_size=4, unique=True).map(tuple)


targets = st.one_of(
    st.just(ClusterTarget()),
    st.builds(DatabaseTarget, names=distinct(names)),
    st.builds(SchemaTarget, names=distinct(schemas)),
    st.builds(TableTarget, patterns=distinct(patterns)),
)
times = st.none() | st.datetimes(min_value=datetime(1970, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
chains = st.datetimes(min_value=datetime(1970, 1, 1), timezones=st.just(UTC)).map(subdir_of)  # noqa: DTZ001
backups = st.builds(
    BackupRequest,
    target=targets,
    append=st.none() | st.just("LATEST") | chains,
    into=uris,
    as_of=times,
    options=st.builds(
        BackupOptions,
        protection=st.sampled_from(["4h", "none", "90s", "7d", "1h30m", "0.5h"]),
        revision_history=st.booleans(),
        incremental_location=st.none() | uris.filter(lambda uri: "\0" not in uri),
        without_identity=st.sampled_from(["full", "skip", "fail"]),
        on_broken_chain=st.sampled_from(["full", "fail"]),
        max_clock_skew=st.sampled_from(["5m", "0s", "1h30m"]),
        fingerprint=st.booleans(),
        rate_limit=st.integers(0, 2**63 - 1) | st.sampled_from([50_000_000, 3 << 30]),
        span_bytes=st.integers(8192, 2**40) | st.just(64 << 20),
        workers=st.integers(1, 256),
        detached=st.booleans(),
        execution_locality=localities,
        strict=st.booleans(),
    ),
)
restores = st.builds(
    RestoreRequest,
    target=targets,
    subdir=subdirs,
    collection=uris,
    as_of=times | st.integers(0, 2**64 - 1).map(Lsn),
    options=st.builds(
        RestoreOptions,
        strict=st.booleans(),
        skip_unrestorable_tables=st.booleans(),
        skip_missing_foreign_keys=st.booleans(),
        skip_missing_sequences=st.booleans(),
        skip_missing_sequence_owners=st.booleans(),
        skip_missing_views=st.booleans(),
        skip_missing_udfs=st.booleans(),
        incremental_location=st.none() | uris.filter(lambda uri: "\0" not in uri),
        new_db_name=st.none() | names,
        into_db=st.none() | names,
        schema_only=st.booleans(),
        verify_backup_table_data=st.booleans(),
        verify_fingerprint=st.booleans(),
        grants=st.booleans(),
        workers=st.integers(1, 256),
        detached=st.booleans(),
        execution_locality=localities,
        on_failure=st.sampled_from(["keep", "clean"]),
    ),
)
shows = st.one_of(
    st.builds(
        ShowBackupsRequest,
        collection=uris,
        newer_than=st.none() | times,
        older_than=st.none() | times,
        ids=st.booleans(),
        revision_start_time=st.booleans(),
    ),
    st.builds(
        ShowBackupRequest,
        subdir=subdirs,
        collection=uris,
        schemas=st.booleans(),
        privileges=st.booleans(),
        debug_ids=st.booleans(),
        check_files=st.booleans(),
        as_json=st.booleans(),
        incremental_location=st.none() | uris.filter(lambda uri: "\0" not in uri),
    ),
)


@settings(deadline=None)  # the first example reads the grammar
@given(st.one_of(backups, restores, shows))
def test_a_rendered_request_parses_to_itself(request: Request) -> None:
    try:
        check(request)
    except BadInput as error:  # such a request has a text, too; reading it says the same
        with pytest.raises(BadInput, match=re.escape(str(error))):
            parse(render(request), clock=lambda: LAST)
    else:
        read = parse(render(request), clock=lambda: LAST)
        assert read == request
        assert read.model_dump_json() == request.model_dump_json()  # an Lsn is equal to a number, but not as text


@settings(deadline=None)
@given(st.text(max_size=80))
def test_any_text_is_a_request_or_bad_input(text: str) -> None:
    try:
        assert parse(render(parse(text)))
    except BadInput as error:
        assert ONE_PLACE.fullmatch(str(error)), str(error)


@settings(deadline=None)
@given(st.lists(st.sampled_from(WORDS)))
def test_any_order_of_words_is_a_request_or_bad_input(words: list[str]) -> None:
    try:
        assert parse(render(parse(" ".join(words))))
    except BadInput as error:
        assert ONE_PLACE.fullmatch(str(error)), str(error)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("backup into 'file:///b' with workers=2", "BACKUP INTO 'file:///b'"),
        ("backup a, B.* into 'file:///b'", "BACKUP TABLE public.a, b.* INTO 'file:///b'"),
        ("backup schema \"In\".x into 'file:///b'", "BACKUP SCHEMA \"In\".x INTO 'file:///b'"),
        (
            "backup database d into 'file:///it''s' with options (rate_limit='50MB', span_bytes='1GiB', detached=true)",
            "BACKUP DATABASE d INTO 'file:///it''s' WITH rate_limit = '50MB', span_bytes = '1GiB', detached",
        ),
        (
            "backup into latest in 'file:///b' as of system time '2026-11-22' with incremental_location='s3://b?AUTH=implicit'",
            "BACKUP INTO LATEST IN 'file:///b' AS OF SYSTEM TIME '2026-11-22 00:00:00.000000+00' "
            "WITH incremental_location = 's3://b?AUTH=implicit'",
        ),
        (
            "backup database d into '2026/11/22-143000.00' in 'file:///b' with revision_history=true, without_identity=full, "
            "max_clock_skew='10s', on_broken_chain=fail",
            "BACKUP DATABASE d INTO '2026/11/22-143000.00' IN 'file:///b' "
            "WITH revision_history, on_broken_chain = 'fail', max_clock_skew = '10s'",
        ),
        (
            "restore table t from latest in 'file:///b' as of system time '16/b374d848' with skip_unrestorable_tables, strict",
            "RESTORE TABLE public.t FROM LATEST IN 'file:///b' AS OF SYSTEM TIME '16/B374D848' "
            "WITH strict, skip_unrestorable_tables",
        ),
        (
            "restore from '2026/11/22-143000.00' in 'file:///b' as of system time '2026-11-22 15:00+01' with on_failure=clean",
            "RESTORE FROM '2026/11/22-143000.00' IN 'file:///b' AS OF SYSTEM TIME '2026-11-22 14:00:00.000000+00' "
            "WITH on_failure = 'clean'",
        ),
        ("show backup latest in 'file:///b' with as_json", "SHOW BACKUP FROM LATEST IN 'file:///b' WITH as_json"),
    ],
)
def test_the_one_form_of_a_statement(text: str, canonical: str) -> None:
    assert render(parse(text, clock=lambda: LAST)) == canonical


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        (
            "backup into ('file:///b?COCKROACH_LOCALITY=region%3Deu', 'file:///a?COCKROACH_LOCALITY=default') with strict",
            "BACKUP INTO ('file:///b?COCKROACH_LOCALITY=region%3Deu', 'file:///a?COCKROACH_LOCALITY=default') "
            "WITH STRICT STORAGE LOCALITY",
        ),
        (
            "backup into latest in ('file:///a?COCKROACH_LOCALITY=default', 'file:///b?COCKROACH_LOCALITY=a%3Db') with "
            "incremental_location=('file:///d?COCKROACH_LOCALITY=a%3Db', 'file:///c?COCKROACH_LOCALITY=default')",
            "BACKUP INTO LATEST IN ('file:///a?COCKROACH_LOCALITY=default', 'file:///b?COCKROACH_LOCALITY=a%3Db') "
            "WITH incremental_location = ('file:///d?COCKROACH_LOCALITY=a%3Db', 'file:///c?COCKROACH_LOCALITY=default')",
        ),
        (
            "restore from latest in 'file:///b' with execution_locality = ' region=eu, zone = a', strict",
            "RESTORE FROM LATEST IN 'file:///b' WITH strict, EXECUTION LOCALITY = 'region=eu,zone=a'",
        ),
    ],
)
def test_the_one_form_of_places_and_localities(text: str, canonical: str) -> None:
    assert render(parse(text)) == canonical
    assert parse(canonical) == parse(text)


def test_each_of_several_uris_is_redacted_on_its_own() -> None:
    good = "s3://b/1?AWS_ACCESS_KEY_ID=me&AWS_SECRET_ACCESS_KEY=hunter2&COCKROACH_LOCALITY=default"
    bad = "s3://b/2?AWS_SECRET_ACCESS_KEY=hunter3&unknown=1&COCKROACH_LOCALITY=region%3Deu"
    shown = render_redacted(RestoreRequest(collection=f"{good}\n{bad}"))
    key = "AWS_SECRET_ACCESS_KEY=redacted"
    assert shown == (
        f"RESTORE FROM LATEST IN ('s3://b/1?AWS_ACCESS_KEY_ID=me&{key}&COCKROACH_LOCALITY=default', "
        f"'s3://b/2?{key}&unknown=1&COCKROACH_LOCALITY=region%3Deu')"
    )


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/path?AWS_ACCESS_KEY_ID=me&AWS_SECRET_ACCESS_KEY=hunter2&AWS_REGION=eu-central-1",
        "s3://bucket/path?AWS_SECRET_ACCESS_KEY=hunter2&unknown=1",
        "weird://me:hunter2@host/path",
    ],
)
def test_the_redacted_form_shows_no_secret(uri: str) -> None:
    requests: list[Request] = [
        BackupRequest(into=uri),
        RestoreRequest(collection=uri),
        BackupRequest(append="LATEST", into="file:///b", options=BackupOptions(incremental_location=uri)),
        RestoreRequest(collection="file:///b", options=RestoreOptions(incremental_location=uri)),
        ShowBackupsRequest(collection=uri),
        ShowBackupRequest(collection=uri),
        ShowBackupRequest(collection="file:///b", check_files=True, incremental_location=uri),
    ]
    for request in requests:
        assert "hunter2" in render(request)
        shown = render_redacted(request)
        assert "hunter2" not in shown
        assert "redacted" in shown
        assert type(parse(shown)) is type(request)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("file:///a", "file:///a"),
        ("file:///a\nfile:///b", "file:///a and 1 more"),
        ("a\nb\nc", "a and 2 more"),
        ("a\n \nb\n", "a and 1 more"),
    ],
)
def test_a_sentence_shows_places_in_one_line(text: str, shown: str) -> None:
    assert in_one_line(text) == shown


def test_empty_lines_between_places_are_none() -> None:
    assert render(ShowBackupsRequest(collection="file:///a\n\nfile:///b\n")) == "SHOW BACKUPS IN ('file:///a', 'file:///b')"
