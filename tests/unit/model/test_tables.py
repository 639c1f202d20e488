"""Finding a table in a database's list."""

from __future__ import annotations

from spanvault.model.schema import Database, Table


def database(*oids: int) -> Database:
    tables = tuple(Table(oid=oid, schema_name="s", name=f"t{oid}", columns=(), capture="log") for oid in oids)
    return Database(name="d", oid=1, encoding="UTF8", collate="C", ctype="C", owner="o", tables=tables)


def test_a_copy_with_other_tables_has_those() -> None:
    first = database(1, 2)
    assert [one and one.name for one in map(first.table, (1, 2, 3))] == ["t1", "t2", None]
    second = first.model_copy(update={"tables": first.tables[1:]})
    assert [one and one.name for one in map(second.table, (1, 2))] == [None, "t2"]
    assert first.table(1) is first.tables[0]
    assert database(1, 2) == first, "looking changes no value"


def test_more_databases_than_are_kept() -> None:
    many = [database(number, number + 1) for number in range(200)]
    assert all(one.table(number) is one.tables[0] for _ in range(2) for number, one in enumerate(many))
