"""The shared fixtures give what every other test relies on."""

from __future__ import annotations

import pytest

from spanvault.embedded.postgres import PostgresServer
from spanvault.embedded.seaweed import SeaweedServer
from tests.kit.servers import TestDatabase, fresh_database


def test_postgres_can_be_a_source(postgres: PostgresServer, database: TestDatabase) -> None:
    assert database.execute("show wal_level") == [("logical",)]
    assert database.execute("select current_database()") == [(database.name,)]
    assert database.execute("create table a (i int); insert into a values (7); select i from a") == [(7,)]


def test_a_database_goes_with_all_that_holds_it(postgres: PostgresServer) -> None:
    with fresh_database(postgres) as database:
        database.execute("create table a (i int)")
        database.execute("select pg_create_logical_replication_slot('held', 'pgoutput')")
        with database.connect(autocommit=False) as session:
            session.execute("insert into a values (1)")
            session.execute("prepare transaction 'held'")
            session.commit()
        name = database.name
    with fresh_database(postgres) as other:
        assert other.execute("select count(*) from pg_database where datname = %s", [name]) == [(0,)]
        assert other.execute("select count(*) from pg_prepared_xacts") == [(0,)]
        assert other.execute("select count(*) from pg_replication_slots") == [(0,)]


@pytest.mark.parametrize("bucket", ["first-bucket", "second-bucket"])
def test_seaweed_stores_in_a_new_bucket(seaweed: SeaweedServer, bucket: str) -> None:
    seaweed.create_bucket(bucket)
    client = seaweed.client()
    client.put_object(Bucket=bucket, Key="a/b", Body=b"12345")
    assert client.get_object(Bucket=bucket, Key="a/b", Range="bytes=1-2")["Body"].read() == b"23"
    client.close()
