"""Several applications at once, at random: rows of every kind of table, key changes, TRUNCATE, savepoints, rollbacks, DDL.

Each transaction also writes a row of `events`, so that a state shows which transactions are in it.
"""

# ruff: noqa: E501  # statements of SQL read better on one line

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Self

import psycopg
from psycopg import errors

from tests.kit.servers import TestDatabase

ROWS = 120
BIG = "(select string_agg(md5(random()::text), '') from generate_series(1, 90))"  # 2,880 bytes, stored apart
LONG = "(select string_agg(md5({0} || '/' || i), '') from generate_series(1, 70) i)"  # 2,240 bytes, still fit for an index

TABLES = {
    "plain": "create table plain (id int primary key, n int, big text)",
    "other_index": "create table other_index (id int primary key, n int not null, big text);"
    "create unique index other on other_index (n, id); alter table other_index replica identity using index other",
    "full_rows": "create table full_rows (id int primary key, n int, big text); alter table full_rows replica identity full",
    "keyless": "create table keyless (id int, n int, big text)",
    "counted": "create table counted (id int, n int, big text); alter table counted replica identity full",
    "text_key": "create table text_key (n int, big text, id text primary key)",
    "long_key": "create table long_key (id text primary key, n int, big text); alter table long_key alter id set storage external",
    "mixed_key": "create table mixed_key (f float8, big text, at timestamptz, n int, id numeric, day date default 'infinity', primary key (id, at))",
    "parts": "create table parts (id int, n int, big text, k int generated always as identity, part int, primary key (id, part)) partition by list (part);"
    "create table parts_0 partition of parts for values in (0); create table parts_1 partition of parts for values in (1)",
}
_EVENTS = "create table events (writer int, n int, at timestamptz default clock_timestamp(), primary key (writer, n))"
# The tables that DDL changes; of "mixed_key" and "long_key" the statements name all columns.
RESHAPED = ("plain", "other_index", "full_rows", "keyless", "counted", "text_key", "parts")

_FLOATS = ("'NaN'", "'-0'", "'Infinity'", "1e-300", "0.1")
_DAYS = ("'4713-01-01 BC'", "'infinity'", "'2026-05-05'")

_EXPECTED = (
    errors.UniqueViolation,
    errors.LockNotAvailable,
    errors.DeadlockDetected,
    errors.UndefinedColumn,
    errors.UndefinedTable,
    errors.DuplicateTable,
    errors.DuplicateColumn,
    errors.CheckViolation,
    errors.ObjectNotInPrerequisiteState,
    errors.NumericValueOutOfRange,
    errors.FeatureNotSupported,
    errors.NotNullViolation,
    errors.InvalidTableDefinition,
    errors.ObjectInUse,
    errors.WrongObjectType,
    errors.InvalidObjectDefinition,
    errors.DependentObjectsStillExist,
)


def fill(database: TestDatabase) -> None:
    """Create the tables and their first rows."""
    database.execute(_EVENTS)
    for name, text in TABLES.items():
        database.execute(text)
        database.execute(f"alter table {name} alter big set storage external")
        database.execute(_filled(name))


def _filled(name: str) -> str:
    big = f"{BIG} || (i > 0)::text"
    rows = f"generate_series(1, {ROWS}) i"
    if name == "parts":
        return f"insert into parts (id, n, big, part) select i, i, {big}, i % 2 from {rows}"
    if name == "mixed_key":
        return f"insert into mixed_key (f, big, at, n, id) select i / 7.0, {big}, '2026-01-01 00:00+00'::timestamptz + i * interval '1 h', i, i from {rows}"
    if name == "long_key":
        return f"insert into long_key select {LONG.format('j')}, j, {BIG} || (j > 0)::text from generate_series(1, {ROWS}) j"
    if name == "counted":
        return f"insert into counted select i % 40, i % 3, case when i % 4 = 0 then 'big' end from {rows}"
    return f"insert into {name} (id, n, big) select i, i, {big} from {rows}"


def statement(chance: random.Random, table: str, extra: list[str]) -> str:
    """One random change of one table; `extra` are columns that it may have besides."""
    key, other = _key(chance, table, ROWS), _key(chance, table, 3 * ROWS)
    where = f"where id = {key}"
    choices = [
        (30, f"update {table} set n = n + 1 {where}"),
        (10, f"update {table} set big = {BIG} {where}"),
        (12, f"update {table} set id = {other} {where}"),
        (12, f"update {table} set id = {key}, n = n + 1 where id = {other}"),
        (8, f"delete from {table} {where}"),
        (8, _insert(table, key, BIG)),
        (8, f"insert into {table} {_copied(table, other)} from {table} {where}"),
        (5, f"update {table} set big = 'short' where id in ({key}, {other})"),
        (4, f"update {table} set big = null where id = {other}"),
        (4, _swap(table, key, other)),
        (3, f"update {table} set n = n + 1 where ctid in (select ctid from {table} order by random() limit 15)"),
        (0.02, f"truncate {table}"),
    ]
    if extra:
        choices.append((8, f"update {table} set {chance.choice(extra)} = '{chance.randint(1, 9)}' {where}"))
    if table == "mixed_key":
        choices += [
            (6, f"update mixed_key set id = round(id, {chance.randint(0, 3)}) {where}"),
            (5, f"update mixed_key set at = at + interval '1 us' {where}"),
            (5, f"update mixed_key set f = {chance.choice(_FLOATS)}, day = {chance.choice(_DAYS)} {where}"),
        ]
    if table == "parts":
        choices += [(8, f"update parts set part = 1 - part {where}"), (0.3, f"truncate parts_{chance.randint(0, 1)}")]
    weights, texts = zip(*choices, strict=True)
    return str(chance.choices(texts, weights)[0])


def _key(chance: random.Random, table: str, upto: int) -> str:
    number = chance.randint(1, 40 if table == "counted" else upto)
    return {"text_key": f"'{number}'", "long_key": LONG.format(number)}.get(table, str(number))


def _insert(table: str, key: str, big: str) -> str:
    if table == "parts":
        return f"insert into parts (id, n, big, part) values ({key}, 0, {big}, 0)"
    if table == "mixed_key":
        return f"insert into mixed_key (id, at, n, big) values ({key}, '2027-01-01 00:00+00', 0, {big})"
    if table == "counted":
        return f"insert into counted (id, n, big) select {key}, 1, null from generate_series(1, 3)"
    return f"insert into {table} (id, n, big) values ({key}, 0, {big})"


def _copied(table: str, key: str) -> str:
    if table == "parts":
        return f"(id, n, big, part) select {key}, n, big, part"
    if table == "mixed_key":
        return f"(id, at, n, big) select {key}, at, n, big"
    return f"(id, n, big) select {key}, n, big"


def _swap(table: str, key: str, other: str) -> str:
    aside = "'aside'" if table in {"text_key", "long_key"} else "-1"
    return f"update {table} set id = {aside} where id = {key}; update {table} set id = {key} where id = {other}; update {table} set id = {other} where id = {aside}"


@dataclass
class Writers:
    """Threads that write until the block ends. `reshaped` says of each DDL when it began and ended, and its table and text;
    `failures` are what nobody expected."""

    database: TestDatabase
    seed: int
    threads: int = 3
    pause: float = 0.015
    reshaped: list[tuple[float, float, str]] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)
    done: int = 0
    _extra: dict[str, list[str]] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)
    _started: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._started = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(self.threads)]
        for thread in self._started:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._started:
            thread.join()

    def pause_for(self, seconds: float) -> None:
        """Let them write for a while."""
        self._stop.wait(seconds)

    def _run(self, number: int) -> None:
        chance = random.Random(self.seed * 1000 + number)
        count = 0
        while not self._stop.is_set():
            try:
                with psycopg.connect(self.database.url, autocommit=True) as session:
                    session.execute(f"set synchronous_commit = {chance.choice(['on', 'off'])}".encode())
                    session.execute("set lock_timeout = '1s'")
                    while not self._stop.is_set():
                        count += 1
                        self._transaction(session, chance, number, count)
                        self._stop.wait(self.pause * chance.random() * 2)
            except psycopg.OperationalError:
                self._stop.wait(0.05)  # the server was crashed by the test
            except BaseException as error:
                self.failures.append(error)
                raise

    def _transaction(self, session: psycopg.Connection[Any], chance: random.Random, number: int, count: int) -> None:
        try:
            with session.transaction():
                session.execute("insert into events values (%s, %s)", (number, count))
                for _ in range(chance.randint(1, 6)):
                    table = chance.choice(list(TABLES))
                    try:
                        with session.transaction():  # a savepoint, so that a duplicate key ends only this change
                            text = statement(chance, table, list(self._extra.get(table, [])))
                            if text.startswith("truncate"):  # a new file, which the next layer may not be able to explain
                                self.reshaped.append((time.time(), time.time() + 2, f"{table}: {text}"))
                            session.execute(text.encode())
                    except _EXPECTED:
                        continue
                if chance.random() < 0.12:
                    raise psycopg.Rollback
            self.done += 1
        except _EXPECTED:
            return

    def reshape(self, chance: random.Random) -> None:
        """One random DDL beside the writers, in the caller's thread."""
        table = chance.choice(RESHAPED)
        with psycopg.connect(self.database.url, autocommit=True) as session:
            session.execute("set lock_timeout = '1s'")
            for text in self._ddl(chance, table):
                began = time.time()
                try:
                    session.execute(text.encode())
                except _EXPECTED:
                    session.rollback()
                self.reshaped.append((began, time.time(), f"{table}: {text}"))

    def _ddl(self, chance: random.Random, table: str) -> list[str]:
        """One random change of a table's shape or file, or a new table."""
        known = self._extra.setdefault(table, [])
        name = f"c{chance.randint(1, 10**6)}"
        leaf = f"parts_{chance.randint(0, 1)}"
        values = {"0": "(0)", "1": "(1)"}[leaf[-1]]
        choices: list[list[str]] = [
            [f"vacuum full {table}"],
            [f"truncate {table}"],
            [f"alter table {table} add column {name} int default {chance.randint(1, 9)}"],
            [f"alter table {table} add column {name} text default 'a b{chance.randint(1, 9)}'"],
            [f"alter table {table} add column {name} text"],
            [f"alter table {table} add column {name} float8 default random()"],
            [f"alter table {table} alter n type {chance.choice(['bigint', 'int'])}"],
            [
                f"create table {name} (id int primary key, v text); insert into {name} select i, {BIG} from generate_series(1, 20) i",
                f"update {name} set id = id + 5 where id > 15; update {name} set id = -id",
            ],
            [
                f"begin; alter table {table} rename to aside; update aside set n = n + 1 where n < 20; alter table aside rename to {table}; commit"
            ],
            [
                f"alter table parts detach partition {leaf}",
                f"update {leaf} set n = n + 1",
                f"alter table parts attach partition {leaf} for values in {values}",
            ],
            [
                f"begin; truncate {table}; alter table {table} alter n type bigint using n + 1; insert into {table} (id, n{', part' * (table == 'parts')}) values (1, 1{', 0' * (table == 'parts')}); commit"
            ],
        ]
        if table == "plain":
            choices.append([f"alter table plain replica identity {chance.choice(['full', 'default'])}"])
            choices.append([
                "begin; alter table plain drop constraint plain_pkey; alter table plain add primary key (id); commit"
            ])
        if known:
            column, later = chance.choice(known), f"c{chance.randint(1, 10**6)}"
            choices += [
                [f"alter table {table} drop column {column}"],
                [f"alter table {table} drop column {column}, add column {column} int default 5"],
                [f"alter table {table} rename column {column} to {later}"],
                [
                    f"begin; update {table} set {column} = '3' where n > 100; alter table {table} rename column {column} to {later}; update {table} set {later} = '4' where n > 110; commit"
                ],
            ]
            known += [later]
        known.append(name)
        del known[:-6]
        return chance.choice(choices)
