"""Which archive entries go with a chosen one."""

from __future__ import annotations

from collections.abc import Sequence

from spanvault.database.postgres.archive import Entry
from spanvault.restore.selective import about_database, select, select_all


def entry(number: int, kind: str, name: str, depends: Sequence[int] = (), schema: str | None = "public") -> Entry:
    return Entry(id=number, section="pre-data", catalog=0, oid=0, kind=kind, schema=schema, name=name,
                 depends=tuple(depends), sql="")  # fmt: skip


ENTRIES = (
    entry(1, "DATABASE", "shop", schema=None),
    entry(2, "DATABASE PROPERTIES", "shop", schema=None),
    entry(3, "ACL", "DATABASE shop", [1], schema=None),
    entry(4, "TYPE", "mood"),
    entry(5, "FUNCTION", "f()"),
    entry(6, "TABLE", "a", [4]),
    entry(7, "TABLE", "a b"),
    entry(8, "SEQUENCE", "a_id_seq", [6]),
    entry(9, "SEQUENCE OWNED BY", "a_id_seq", [8]),
    entry(10, "DEFAULT", "a id", [6, 8]),
    entry(11, "DEFAULT", "a b id", [7, 8]),  # of the table `a b`, with the sequence of `a`
    entry(12, "CONSTRAINT", "a a_pkey", [6]),
    entry(13, "TRIGGER", "a b t", [7, 5]),
    entry(14, "COMMENT", "TABLE a", [6]),
    entry(15, "COMMENT", "TRIGGER t ON a b", [13]),
    entry(16, "ACL", "TABLE a", [6]),
    entry(17, "INDEX", "by_f", [6, 5]),
    entry(18, "PUBLICATION", "spanvault_x", schema=None),
    entry(19, "PUBLICATION TABLE", "spanvault_x a", [18, 6]),
    entry(20, "COMMENT", "PUBLICATION spanvault_x", [18], schema=None),
    entry(21, "PUBLICATION", "theirs", schema=None),
    entry(22, "PUBLICATION TABLE", "theirs a", [21, 6]),
    entry(23, "POLICY", "a only b", [6, 7]),
)


def chosen(*names: str, grants: bool = False) -> set[int]:
    return {one.id for one in select(ENTRIES, lambda one: one.kind == "TABLE" and one.name in names, grants=grants).entries}


def test_a_table_brings_its_own_parts_and_what_they_need() -> None:
    assert chosen("a") >= {4, 5, 6, 8, 9, 10, 12, 14, 17, 23}
    assert not chosen("a") & {7, 11, 13, 15, 16, 19, 22}
    assert 16 in chosen("a", grants=True)


def test_names_that_begin_alike_are_kept_apart() -> None:
    found = select(ENTRIES, lambda one: one.kind == "TABLE" and one.name == "a b", grants=False)
    assert {one.id for one in found.entries} == {5, 7, 8, 9, 11, 13, 15}
    assert [(need.dependent.id, need.needed.id) for need in found.needs] == [(8, 6)], "the sequence is owned by a"


def test_a_policy_that_reads_another_table_needs_it() -> None:
    found = select(ENTRIES, lambda one: one.name == "a", grants=False)
    assert [(need.dependent.id, need.needed.id) for need in found.needs] == [(23, 7)]


def test_a_whole_database_leaves_out_what_is_ours_and_the_database_itself() -> None:
    kept = {one.id for one in select_all(ENTRIES, grants=True).entries}
    assert kept == {one.id for one in ENTRIES} - {1, 2, 3, 18, 19, 20}
    assert {one.id for one in select_all(ENTRIES, grants=False).entries} == kept - {16}
    assert {one.id for one in about_database(ENTRIES)} == {2, 3}
