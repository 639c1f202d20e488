"""The databases that are backed up: each a shape of data, made of SQL, of a size that is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psycopg

from spanvault.embedded.postgres import PostgresServer

DATABASE = "bench"
_WIDE = 20  # documents have so many integers and so many texts


@dataclass(frozen=True)
class Shape:
    """A kind of database. `size` is its default number of `unit`."""

    file: str
    unit: str
    size: int

    def sql(self, size: int) -> str:
        """The statements that make and fill its tables."""
        columns = [f"n{i} integer, t{i} varchar(40)" for i in range(_WIDE)]
        values = [f"(i * {i + 3}) % 10007, 'value ' || (i * {i + 7}) % 1009" for i in range(_WIDE)]
        words = {"rows": str(size), "tables": str(size), "columns": ", ".join(columns), "values": ", ".join(values)}
        text = Path(__file__).with_name(self.file).read_text()
        for word, meaning in words.items():
            text = text.replace("{" + word + "}", meaning)
        return text


SHAPES = {
    "lines": Shape("data.sql", "rows of the largest table, of about 150 bytes each", 4_000_000),
    "tables": Shape("small_tables.sql", "small tables", 2_000),
    "documents": Shape("documents.sql", "documents of about 100 kB", 8_000),
}


def load(server: PostgresServer, shape: Shape, size: int) -> None:
    """Make the database of this shape and size."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(f"create database {DATABASE}")
    with psycopg.connect(server.url(DATABASE), autocommit=True) as connection:
        connection.execute(shape.sql(size).encode())
        connection.execute("vacuum analyze")
        connection.execute("checkpoint")
        row = connection.execute("select pg_database_size(current_database())").fetchone()
    print(f"database: {size:,} {shape.unit}, {row[0] / 1e6:,.0f} MB on disk" if row else "database loaded", flush=True)
