"""The sample shop, its business, and the proof."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from spanvault.database.postgres.fingerprint import fingerprint_sql
from spanvault.demo.load import WriteLoad, cancel_order, move_customer, place_order, receive_delivery
from spanvault.demo.prove import expected_fingerprints, prove
from spanvault.demo.shop import fill, goods, statements
from spanvault.embedded.postgres import PostgresServer
from spanvault.model.request import BackupOptions
from tests.kit.harness import Backup
from tests.kit.servers import TestDatabase, fresh_database

TABLES = "select schemaname::text, tablename::text from pg_tables where schemaname in ('public', 'logistics') order by 1, 2"


@pytest.fixture(scope="module")
def template(postgres: PostgresServer) -> Iterator[TestDatabase]:
    """A filled shop that nobody changes."""
    with fresh_database(postgres, "shop") as database:
        fill(database.url, 5)
        yield database


@pytest.fixture
def shop(template: TestDatabase) -> Iterator[TestDatabase]:
    """A filled shop."""
    with copy_of(template) as copy:
        yield copy


@contextmanager
def copy_of(original: TestDatabase) -> Iterator[TestDatabase]:
    """A copy of a database that nobody is connected to."""
    copy = TestDatabase(original.server, f"{original.name}_copy")
    with psycopg.connect(original.server.url(), autocommit=True) as control:
        control.execute(f'create database "{copy.name}" template "{original.name}"'.encode())
        try:
            yield copy
        finally:
            control.execute(f'drop database "{copy.name}" with (force)'.encode())


def fingerprints(database: TestDatabase) -> dict[tuple[str, str], tuple[object, ...]]:
    return {(schema, name): database.execute(fingerprint_sql(schema, name))[0] for schema, name in database.execute(TABLES)}


def test_shop_is_the_same_every_time(template: TestDatabase, database: TestDatabase) -> None:
    fill(database.url, 5)
    assert fingerprints(database) == fingerprints(template)


def test_shop_has_what_a_backup_finds_hard(template: TestDatabase) -> None:
    count = "select count(*) from "
    assert template.execute(count + "pg_constraint where contype = 'f' and conparentid = 0") >= [(8,)]
    assert template.execute(count + "pg_class where relkind = 'p' and relnamespace = 'public'::regnamespace") == [(2,)]
    assert template.execute(count + "pg_attribute where atttypid = 'jsonb'::regtype and attnum > 0") >= [(6,)]
    empty = [
        name
        for _, name in template.execute(TABLES)
        if template.execute(f"select not exists (table {name_of(template, name)})") == [(True,)]
    ]
    assert empty == ["orders_live"], "only the partition for new orders waits for them"


def name_of(database: TestDatabase, table: str) -> str:
    return str(database.execute("select oid::regclass::text from pg_class where relname = %s", [table])[0][0])


@pytest.mark.parametrize("megabytes", [5, 20])
def test_size_is_about_what_was_asked_for(database: TestDatabase, megabytes: int) -> None:
    size = fill(database.url, megabytes)
    assert 0.7 * megabytes < size.bytes / 1e6 < 1.4 * megabytes
    assert size.tables == 15
    assert size.rows == sum(int(str(rows)) for rows, _ in fingerprints(database).values())


def test_statements_are_whole() -> None:
    begins = ("create ", "insert ", "alter table ", "select setval", "set ", "analyze")
    assert all(statement.startswith(begins) for statement in statements())


def test_books_agree_and_a_lost_row_shows(shop: TestDatabase) -> None:
    books = goods(shop.url)
    assert books.agree
    assert books.delivered == books.in_stock + books.sold
    assert min(books.delivered, books.in_stock, books.sold) > 0
    shop.execute("update logistics.stock set quantity = quantity + 1 where product_id = 1")
    assert (goods(shop.url).agree, goods(shop.url).wrong_products) == (False, 1)


def test_books_that_are_wrong_twice_in_opposite_ways_do_not_agree(shop: TestDatabase) -> None:
    shop.execute(
        "update logistics.stock set quantity = quantity + case product_id when 1 then 1 else -1 end where product_id in (1, 2)"
    )
    books = goods(shop.url)
    assert books.in_stock + books.sold == books.delivered
    assert not books.agree


def test_every_kind_of_business_keeps_the_books(shop: TestDatabase) -> None:
    generator = random.Random(7)
    before = goods(shop.url)
    with psycopg.connect(shop.url, autocommit=True) as session:
        order = place_order(session, generator, 500, 700)
        sold = goods(shop.url)
        assert sold.agree
        assert sold.sold > before.sold
        receive_delivery(session, generator, 500)
        assert goods(shop.url).delivered > before.delivered
        assert goods(shop.url).agree
        cancel_order(session, order)
        assert goods(shop.url).agree
        assert goods(shop.url).sold == before.sold
        assert shop.execute("select status::text from orders where id = %s", [order[0]]) == [("cancelled",)]
        move_customer(session, generator, 700)
    assert shop.execute("select count(*) from customers where updated_at > now() - interval '1 hour'") == [(1,)]


def test_load_counts_what_it_commits(shop: TestDatabase) -> None:
    began = datetime.now(UTC)
    load = WriteLoad(shop.url, per_second=600)
    commits = "select xact_commit from pg_stat_database where datname = current_database()"
    load.start()
    while load.commits_between(began, datetime.now(UTC)) < 150:
        assert load.failure is None
    load.stop()
    ended = datetime.now(UTC)
    counted = load.commits_between(began, ended)
    assert counted >= 150
    assert load.commits_between(ended, datetime.now(UTC)) == 0
    shop.execute("select pg_stat_clear_snapshot()")
    assert shop.execute(commits)[0][0] >= counted
    assert goods(shop.url).agree
    assert shop.execute("select count(*) > 0 from orders_live") == [(True,)]


def test_load_says_why_it_gave_up(shop: TestDatabase) -> None:
    shop.execute(
        "alter table payments add check (id < 0) not valid; alter table logistics.deliveries add check (id < 0) not valid"
    )
    load = WriteLoad(shop.url, per_second=600)
    load.start()
    while load.failure is None:
        pass
    load.stop()
    assert "violates check constraint" in load.failure


def test_proof_holds_for_a_copy_and_names_what_differs(template: TestDatabase, tmp_path: Path) -> None:
    options = BackupOptions(fingerprint=True, workers=1)
    manifest = Backup(template, tmp_path / "collection", options=options).take()
    assert len(expected_fingerprints(manifest, template.name)) == 15
    with copy_of(template) as copy:
        held = prove(manifest, template.name, restored_url=copy.url, source_url=template.url)
        assert held.equal
        assert (held.tables, held.different, held.moved_on) == (15, (), ())
        assert held.rows == sum(int(str(rows)) for rows, _ in fingerprints(template).values())

        copy.execute("update customers set name = name || '!' where id = 1; delete from payments where id = 1")
        broken = prove(manifest, template.name, restored_url=copy.url, source_url=template.url)
        assert not broken.equal
        assert set(broken.different) == {"public.customers", "public.payments"}
        moved = prove(manifest, template.name, restored_url=template.url, source_url=copy.url)
        assert moved.equal
        assert set(moved.moved_on) == {"public.customers", "public.payments"}

        copy.execute("drop table visits_tablet")
        gone = prove(manifest, template.name, restored_url=copy.url, source_url=template.url)
        assert "public.visits_tablet" in gone.different


def test_backup_without_fingerprints_proves_nothing(template: TestDatabase, tmp_path: Path) -> None:
    manifest = Backup(template, tmp_path / "collection", options=BackupOptions(workers=1)).take()
    proof = prove(manifest, template.name, restored_url=template.url, source_url=template.url)
    assert not proof.equal
    assert len(proof.different) == 15
