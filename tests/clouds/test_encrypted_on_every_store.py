"""A whole life of an encrypted chain on every kind of store: keys of two services, another one added, one of them lost.

One chain per store is made once: a full, and two incrementals with all history, of a source that changes all the time. What
the source held at each moment is what a restore is compared with. The keys are one of moto's AWS KMS, one of FakeGoogleKms
and, added later, one of FakeKeyVault.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime

import pytest
from pydantic import SecretStr

from spanvault.config.settings import Settings
from spanvault.crypto.stream import MAGIC
from spanvault.embedded.postgres import PostgresServer
from spanvault.engine.alter import alter_backup
from spanvault.engine.context import Context
from spanvault.engine.execute import execute
from spanvault.engine.local import run_backup
from spanvault.engine.maintenance import collection_check
from spanvault.engine.restore_local import run_restore
from spanvault.errors import KeyMismatch, Retryable, SpanvaultError
from spanvault.model.manifest import Manifest
from spanvault.model.request import (
    AlterBackupRequest,
    BackupOptions,
    BackupRequest,
    EncryptionOptions,
    RestoreOptions,
    RestoreRequest,
)
from spanvault.model.target import DatabaseTarget
from spanvault.statement.parse import parse
from tests.clouds.conftest import Services
from tests.kit.harness import Notes
from tests.kit.servers import TestDatabase, drop_database, fresh_database
from tests.kit.stores import Store

MARK = "unmistakable"
TABLES = ("t", "counted", "keyless", '"Other Schema"."T 2"')
FOLLOWED = tuple(table for table in TABLES if table != "keyless")  # whose changes the log tells
BIG = f"(select '{MARK}' || string_agg(md5(random()::text), '') from generate_series(1, 120) where {{0}} is not null)"
_SOURCE = f"""
    create table t (id int primary key, mark text, n int, big text);
    alter table t alter big set storage external;
    insert into t select i, '{MARK}' || i, 0, {BIG.format("i")} from generate_series(1, 120) i;
    create table counted (mark text, n int); alter table counted replica identity full;
    insert into counted select '{MARK}' || i % 5, i % 3 from generate_series(1, 60) i;
    create table keyless (mark text);
    insert into keyless select '{MARK}' || i % 7 from generate_series(1, 40) i;
    create schema "Other Schema";
    create table "Other Schema"."T 2" (id bigint generated always as identity primary key, at timestamptz, j jsonb, b bytea);
    insert into "Other Schema"."T 2" (at, j, b) select now(), jsonb_build_object('{MARK}', i), decode(md5(i::text), 'hex')
        from generate_series(1, 50) i
"""
Rows = dict[str, list[str]]


def kms(*uris: str) -> EncryptionOptions:
    return EncryptionOptions(kms=tuple(SecretStr(uri) for uri in uris))


@dataclass(frozen=True)
class Moment:
    """What the source held at a time, of the source's clock."""

    time: datetime
    rows: Rows


@dataclass
class Story:
    """One chain. `said` is all that its making told anybody."""

    store: Store
    services: Services
    database: TestDatabase
    progress: Notes = field(default_factory=Notes)
    moments: list[Moment] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    @property
    def context(self) -> Context:
        settings = Settings(wait_for_writers=20, storage_attempts=2, storage_connect_timeout=5, storage_read_timeout=4)
        return Context(settings=settings, progress=self.progress)

    @property
    def secrets(self) -> tuple[str, ...]:
        return (*self.store.secrets, *self.services.secrets)

    def backup(self, keys: EncryptionOptions, append: str | None = "LATEST", **options: object) -> Manifest:
        request = BackupRequest(
            target=DatabaseTarget(names=(self.database.name,)),
            into=self.store.uri,
            append=append,
            options=BackupOptions.model_validate({"span_bytes": 192 << 10, "workers": 1, **options}),
            encryption=keys,
        )
        return run_backup(self.context, self.database.cluster, request, processes=False)

    def restore(self, keys: EncryptionOptions, as_of: datetime | None = None, *, processes: bool = False) -> Rows:
        """The rows of a new database."""
        name = f"{self.database.name}_restored"
        request = RestoreRequest(
            target=DatabaseTarget(names=(self.database.name,)),
            collection=self.store.uri,
            as_of=as_of,
            options=RestoreOptions(new_db_name=name, verify_backup_table_data=False),
            encryption=keys,
        )
        try:
            self.said.append(repr(run_restore(self.context, self.database.cluster, request, processes=processes)))
            return rows_of(replace(self.database, name=name))
        finally:
            drop_database(self.database.server, name)

    def change(self, step: int) -> None:
        """Rows changed beside large values that stay, large values changed, keys changed, rows gone and new."""
        self.database.execute(
            f"update t set n = n + {step + 1}, mark = '{MARK} {step}' where id % 3 = {step % 3};"
            f"update t set big = {BIG.format('t.id')} where id % 10 = {step % 10};"
            f"update t set id = id + 1000 where id = {step + 5};"
            f"delete from t where id = {step + 50}; insert into t values ({5000 + step}, '{MARK} new', 1, {BIG.format('1')});"
            f"delete from counted where ctid in (select ctid from counted limit {step + 1});"
            f"insert into counted select '{MARK}' || {step}, 1 from generate_series(1, 3);"
            f"""update "Other Schema"."T 2" set j = j || '{{"{MARK}": {step}}}' where id % 4 = {step % 4};"""
            f"""delete from "Other Schema"."T 2" where id = {step + 30}"""
        )

    def pass_by(self, *steps: int) -> None:
        """Change after change, with a moment behind each."""
        for step in steps:
            self.change(step)
            rows = rows_of(self.database)
            (((moment,)),) = self.database.execute("select clock_timestamp()")
            self.moments.append(Moment(moment, rows))


def rows_of(database: TestDatabase) -> Rows:
    """What PostgreSQL prints of all tables' rows, sorted."""
    return {table: sorted(row for (row,) in database.execute(f"select x::text from {table} x")) for table in TABLES}


class Listening(logging.Handler):
    """Keeps every record, as text."""

    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.DEBUG)
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(self.format(record))


@pytest.fixture(scope="module")
def story(store: Store, services: Services, postgres: PostgresServer) -> Iterator[Story]:
    """The chain: a full with two keys, an incremental with both and one with one of them; moments 0 to 2 are in the first,
    3 to 5 in the second, the last of each is its end."""
    with fresh_database(postgres) as database:
        story = Story(store, services, database)
        database.execute(_SOURCE)
        both = kms(services.aws, services.google)
        with heard(story.said):
            manifests = [story.backup(both, append=None)]
            story.pass_by(0, 1)
            database.execute(f"insert into keyless values ('{MARK} more'); delete from keyless where mark like '%3'")
            story.pass_by(2)
            manifests.append(story.backup(both, revision_history=True))
            story.pass_by(3, 4, 5)
            manifests.append(story.backup(kms(services.google), revision_history=True))
        assert [manifest.number for manifest in manifests] == [0, 1, 2]
        assert len({json.dumps(moment.rows) for moment in story.moments}) == 6
        story.said += [repr(manifest) + manifest.model_dump_json() for manifest in manifests]
        yield story


@contextmanager
def heard(said: list[str]) -> Iterator[None]:
    """All that is logged, as text into a list, whatever the level."""
    handler, level = Listening(said), logging.root.level
    logging.root.addHandler(handler)
    logging.root.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logging.root.removeHandler(handler)
        logging.root.setLevel(level)


@pytest.fixture(autouse=True)
def secrets_stay_secret(story: Story, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing that is said or logged while a test runs, or the chain was made, holds a secret."""
    with caplog.at_level(logging.DEBUG):
        yield
    texts = [*story.said, *story.progress.notes, *map(logging.Formatter().format, caplog.get_records("call"))]
    assert len(texts) > 10
    assert_without(story.secrets, texts)


def assert_without(secrets: tuple[str, ...], texts: list[str]) -> None:
    for text in texts:
        for secret in secrets:
            if secret in text:
                where = text.index(secret)
                pytest.fail(f"{secret[:4]}... is shown: {text[max(0, where - 200) : where]}")


def refusal(story: Story, kind: type[SpanvaultError], call: Callable[[], object]) -> str:
    """The sentence that `call` is refused with."""
    with pytest.raises(SpanvaultError) as caught:
        call()
    assert isinstance(caught.value, kind), caught.value
    story.said.append("".join(traceback.format_exception(caught.value)) + repr(caught.value))
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_a_new_key_alone_restores_a_past_time(story: Story) -> None:
    """ALTER BACKUP with one old key adds a third; with that one alone every moment comes back."""
    before = {name: data for name, data in story.store.objects() if "ENCRYPTION-INFO" not in name}
    new = kms(story.services.azure)
    refusal(story, KeyMismatch, lambda: story.restore(new))
    altered = alter_backup(story.context, AlterBackupRequest(collection=story.store.uri, old=kms(story.services.google), new=new))
    story.said.append(repr(altered))
    assert str(altered.dicts()[0]["keys"]).count(":///") == 3
    assert {name: data for name, data in story.store.objects() if "ENCRYPTION-INFO" not in name} == before
    inside = story.moments[4]
    assert story.restore(new, inside.time, processes=True) == inside.rows
    early = story.restore(new, story.moments[1].time)
    assert {table: early[table] for table in FOLLOWED} == {table: story.moments[1].rows[table] for table in FOLLOWED}
    assert story.restore(new) == story.moments[5].rows


def test_one_of_two_services_is_enough(story: Story, all_up: Services) -> None:
    both, inside = kms(story.services.aws, story.services.google), story.moments[3]
    for down in ("aws", "google"):
        all_up.take_down(down)
        assert story.restore(both, inside.time) == inside.rows
        all_up.bring_up()
    all_up.take_down("aws", "google")
    sentence = refusal(story, Retryable, lambda: story.restore(both))
    assert "cannot be decrypted with the keys given" in sentence
    all_up.bring_up()
    assert story.restore(kms(story.services.aws), inside.time) == inside.rows


def test_keys_that_do_not_fit_are_refused(story: Story) -> None:
    stranger = story.services.another_aws_key()
    sentence = refusal(story, KeyMismatch, lambda: story.restore(kms(stranger)))
    assert "needs one of aws:///" in sentence
    assert "gs:///projects/p-1/" in sentence
    assert "give kms with one of" in refusal(story, KeyMismatch, lambda: story.restore(EncryptionOptions()))
    passphrase = EncryptionOptions(passphrase=SecretStr("guessed"))
    assert "guessed" not in refusal(story, KeyMismatch, lambda: story.restore(passphrase))
    before = {name for name, _ in story.store.objects()}
    for keys in (kms(stranger), kms(story.services.google, stranger), EncryptionOptions(), passphrase):
        sentence = refusal(story, KeyMismatch, lambda keys=keys: story.backup(keys))  # type: ignore[misc]
        assert sentence.endswith(".") or "OLD_KMS" in sentence
    known = refusal(story, KeyMismatch, lambda: story.backup(kms(story.services.google, stranger)))
    assert "was not used when the backup" in known
    assert {name for name, _ in story.store.objects()} == before


def test_the_store_holds_neither_rows_nor_secrets(story: Story) -> None:
    """As it lies there, and decrypted: so that no document holds what only the encryption hides."""
    context = story.context.unlocking(kms(story.services.aws))
    seen = context.storage(story.store.uri)
    found, kinds = 0, set()
    for name, data in story.store.objects():
        assert MARK.encode() not in data, name
        if not data.startswith(MAGIC):
            kinds.add(name.split("/")[-1].split("-0")[0] if "/index/" not in name else "index")
        decrypted = seen.get(name)
        found += MARK.encode() in decrypted
        for secret in (*story.secrets, *story.services.names):
            assert secret.encode() not in data, name
        for secret in story.secrets:
            assert secret.encode() not in decrypted, name
    assert found > 3, "the rows are nowhere to be seen, so nothing is shown by not seeing them"
    assert kinds == {"COLLECTION.json", "README.txt", "ENCRYPTION-INFO", "index"}


def test_what_is_shown_of_the_chain(story: Story) -> None:
    """What SHOW prints and what a check finds, from statements with secrets in them."""
    services, uri = story.services, story.store.uri
    shown = f"SHOW BACKUP LATEST IN '{uri}' WITH KMS = '{services.aws}'"
    for statement in (f"SHOW BACKUPS IN '{uri}'", shown, f"{shown}, check_files", f"{shown}, as_json"):
        result = execute(story.context, parse(statement), cluster=None)
        assert result.rows
        story.said.append(repr(result))
    checked = collection_check(story.context.unlocking(kms(services.google)), uri, "checksums")
    story.said.append(repr(checked))
