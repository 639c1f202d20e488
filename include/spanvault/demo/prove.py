"""The proof: PostgreSQL's own fingerprints at the cut, against the restored database and against the source as it is now."""

from __future__ import annotations

from dataclasses import dataclass

from spanvault.config.clusters import cluster_from_url
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.fingerprint import fingerprint_sql
from spanvault.demo.shop import Goods, goods
from spanvault.model.manifest import Manifest
from spanvault.model.schema import Fingerprint


@dataclass(frozen=True)
class Proof:
    """What a comparison found. `different`: restored tables that are not as they were at the cut, by qualified name;
    `moved_on`: tables of the source that are not any more."""

    tables: int
    rows: int
    different: tuple[str, ...]
    moved_on: tuple[str, ...]
    books: Goods

    @property
    def equal(self) -> bool:
        """Whether every restored table is as it was at the cut, and the shop's books agree."""
        return self.tables > 0 and not self.different and self.books.agree


def prove(manifest: Manifest, database: str, *, restored_url: str, source_url: str) -> Proof:
    """Compare a backup's fingerprints of `database` with a restored copy and with the source.

    A table that the backup has no fingerprint of, or that one side does not have, counts as different.
    """
    expected = expected_fingerprints(manifest, database)
    restored = _fingerprints(restored_url, expected)
    source = _fingerprints(source_url, expected)
    return Proof(
        tables=len(expected),
        rows=sum(one[0] for one in restored.values()),
        different=_differences(expected, restored),
        moved_on=_differences(expected, source),
        books=goods(restored_url),
    )


Names = tuple[str, str]


def expected_fingerprints(manifest: Manifest, database: str) -> dict[Names, Fingerprint | None]:
    """The fingerprint of each table of a database at the cut, by schema and name."""
    entry = manifest.database(database)
    tables = entry.tables if entry else ()
    shapes = {table.oid: table for table in entry.database.tables} if entry else {}
    return {(shapes[one.oid].schema_name, shapes[one.oid].name): one.fingerprint for one in tables}


def _fingerprints(url: str, wanted: dict[Names, Fingerprint | None]) -> dict[Names, tuple[int, str]]:
    found = {}
    with connect(cluster_from_url(url).primary, purpose="proof", autocommit=False) as session:
        session.execute("set transaction isolation level repeatable read read only")
        there = set(session.execute("select schemaname::text, tablename::text from pg_catalog.pg_tables").fetchall())
        for schema, name in wanted.keys() & there:
            row = session.execute(fingerprint_sql(schema, name).encode()).fetchone()
            if row is not None:
                found[schema, name] = (int(row[0]), str(row[1]))
    return found


def _differences(expected: dict[Names, Fingerprint | None], found: dict[Names, tuple[int, str]]) -> tuple[str, ...]:
    return tuple(
        f"{schema}.{name}"
        for (schema, name), one in expected.items()
        if one is None or found.get((schema, name)) != (one.rows, one.hash)
    )
