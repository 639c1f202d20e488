"""Columns and constraints out of pg_dump's CREATE TABLE, and the statement without some of them."""

from __future__ import annotations

import pytest

from spanvault.restore.table_sql import calls, items, qualified_names, without

ORDERS = """SET default_table_access_method = heap;
CREATE TABLE "public"."or""ders, (x" (
    "id" integer NOT NULL,
    "state" "public"."status" DEFAULT 'new'::"public"."status",
    "a,b" integer DEFAULT "public"."half"(4),
    "n" integer DEFAULT "nextval"('"public"."n_seq"'::"regclass") NOT NULL,
    "t" "text" DEFAULT ('a, DEFAULT b'::"text" || 'x'''::"text") NOT NULL COLLATE "pg_catalog"."C",
    "list" integer[] DEFAULT ARRAY[1, 2],
    "num" numeric(10,2) DEFAULT 1.5 CONSTRAINT "n n" NOT NULL,
    "g" integer GENERATED ALWAYS AS ("public"."half"("id")) STORED,
    CONSTRAINT "late" CHECK (("id" < 100000)),
    CONSTRAINT "not it" NOT NULL "id"
)
PARTITION BY RANGE ("at");"""


def test_columns_and_constraints_are_told_apart() -> None:
    found = items(ORDERS)
    assert [one.name for one in found] == ["id", "state", "a,b", "n", "t", "list", "num", "g", "late", "not it"]
    assert [one.name for one in found if one.is_constraint] == ["late", "not it"]
    assert [one.name for one in found if one.droppable] == ["state", "a,b", "n", "t", "list", "num", "late"]
    types = {one.name: one.type_name for one in found if not one.is_constraint}
    assert types["num"] == "numeric(10,2)"
    assert types["list"] == "integer[]"
    assert types["state"] == '"public"."status"'
    assert types["g"] == "integer"


@pytest.mark.parametrize(
    ("display", "gone"),
    [
        ("the default of state", ' DEFAULT \'new\'::"public"."status"'),
        ("the default of a,b", ' DEFAULT "public"."half"(4)'),
        ("the default of n", """ DEFAULT "nextval"('"public"."n_seq"'::"regclass")"""),
        ("the default of t", """ DEFAULT ('a, DEFAULT b'::"text" || 'x'''::"text")"""),
        ("the default of list", " DEFAULT ARRAY[1, 2]"),
        ("the default of num", " DEFAULT 1.5"),
        ("the check late", '\n    CONSTRAINT "late" CHECK (("id" < 100000)),'),
    ],
)
def test_one_is_left_out_and_nothing_else(display: str, gone: str) -> None:
    assert ORDERS.count(gone) == 1
    assert without(ORDERS, {display}) == ORDERS.replace(gone, "")


def test_what_changes_rows_is_never_left_out() -> None:
    assert without(ORDERS, {"the default of g", "the default of id", "the check not it"}) == ORDERS


def test_the_only_item_may_go() -> None:
    statement = 'CREATE TABLE "a"."b" (\n    CONSTRAINT "c" CHECK (true)\n);'
    assert without(statement, {"the check c"}) == 'CREATE TABLE "a"."b" (\n    \n);'


def test_other_statements_have_no_items() -> None:
    for statement in ('CREATE TYPE "a"."b" AS ENUM (\n    \'x\'\n);', 'CREATE VIEW "a"."b" AS\n SELECT 1;'):
        assert items(statement) == ()
        assert without(statement, {"the default of x"}) == statement
    assert [one.name for one in items('CREATE TYPE "a"."b" AS (\n\t"x" integer,\n\t"y" "text"\n);')] == ["x", "y"]


def test_calls_and_names_in_strings_do_not_count() -> None:
    text = """("public"."half"(1) + 'a "public"."twice"(2)'::"text")"""
    assert calls(text, '"public"."half"')
    assert not calls(text, '"public"."twice"')
    assert not calls('"public"."half_of"(1)', '"public"."half"')
    assert qualified_names(text) == {'"public"."half"'}
