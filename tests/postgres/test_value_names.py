"""Values whose text names other objects follow these through renames, however deep in a type they are."""

from __future__ import annotations

from pathlib import Path

from tests.kit.harness import Backup
from tests.kit.servers import TestDatabase

TYPES = """
    CREATE TABLE pointed (id integer);
    CREATE TABLE other (id integer);
    CREATE TYPE pointer AS (what regclass, n integer);
    CREATE DOMAIN named AS regclass;
    CREATE DOMAIN list_of_pointers AS pointer[];
    CREATE TYPE deep AS (a integer, l list_of_pointers);
    CREATE TYPE classes AS RANGE (subtype = regclass, subtype_opclass = oid_ops);
    CREATE TYPE plain AS (a integer, b text);
"""
COLUMNS = {
    "regclass": "'pointed'",
    "regclass[]": "'{pointed,NULL}'",
    "named": "'pointed'",
    "named[]": "ARRAY['pointed'::named]",
    "pointer": "ROW('pointed', 1)::pointer",
    "deep[]": "ARRAY[ROW(1, ARRAY[ROW('pointed', 1)::pointer]::list_of_pointers)::deep]",
    "classes": "classes('pointed', NULL)",
    "aclitem": "'{role}=r/{role}'",
    "plain": "ROW(1, 'pointed')::plain",
    "integer": "7",
}


def test_renamed_objects_are_named_anew(database: TestDatabase, tmp_path: Path) -> None:
    """Two tables change their names with each other, and a role its own; no row that names them changes in the log."""
    role = f"{database.name}_named"
    database.execute(f"CREATE ROLE {role}")
    try:
        database.execute(TYPES)
        for number, (type_name, value) in enumerate(COLUMNS.items()):
            database.execute(f"CREATE TABLE t{number} (id integer PRIMARY KEY, v {type_name})")
            database.execute(f"INSERT INTO t{number} VALUES (1, {value.replace('{role}', role)}), (2, NULL)")
        backup = Backup(database, tmp_path / "collection")
        backup.take()
        database.execute(
            "ALTER TABLE pointed RENAME TO third; ALTER TABLE other RENAME TO pointed; ALTER TABLE third RENAME TO other"
        )
        database.execute(f"ALTER ROLE {role} RENAME TO {role}_2")
        role = f"{role}_2"
        manifest = backup.increment()
        held = {number: backup.rows(manifest, f"t{number}") for number in range(len(COLUMNS))}
        assert held == {number: backup.source_rows(f"t{number}") for number in range(len(COLUMNS))}
        captures = {name: backup.capture(manifest, f"t{number}") for number, name in enumerate(COLUMNS)}
        assert {name for name, capture in captures.items() if capture == "log"} == {"plain", "integer"}
    finally:
        database.execute(f"DROP ROLE {role}")
