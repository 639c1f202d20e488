"""The sample shop: rows that are the same every time, made on the server, and the sum that must always hold."""

from __future__ import annotations

import importlib.resources
import re
from dataclasses import dataclass

import psycopg
from psycopg.rows import TupleRow


@dataclass(frozen=True)
class ShopSize:
    """What a shop holds. `bytes`: of its tables with indexes."""

    tables: int
    rows: int
    bytes: int


@dataclass(frozen=True)
class Goods:
    """The shop's books, in pieces. `wrong_products`: of how many products they do not agree."""

    delivered: int
    in_stock: int
    sold: int
    wrong_products: int

    @property
    def agree(self) -> bool:
        """Whether stock and sales add up to what was delivered, for every product."""
        return not self.wrong_products and self.in_stock + self.sold == self.delivered


def fill(url: str, megabytes: int) -> ShopSize:
    """Make the shop in an empty database; it takes about `megabytes` there."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("select set_config('shop.megabytes', %s, false)", [str(megabytes)])
        for statement in statements():
            connection.execute(statement.encode())
        return _size(connection)


def statements() -> list[str]:
    """The statements that make the shop, in order."""
    text = importlib.resources.files("spanvault.demo").joinpath("shop.sql").read_text()
    text = re.sub(r"^--.*$", "", text, flags=re.MULTILINE)
    # A semicolon at a line's end ends a statement: none of them holds one elsewhere.
    return [statement for statement in (part.strip() for part in re.split(r";\n", text)) if statement]


def goods(url: str) -> Goods:
    """Read the books of a shop at one moment."""
    with psycopg.connect(url) as connection:
        row = connection.execute(
            """
            with delivered as (select product_id, sum(quantity) as q from logistics.deliveries group by product_id),
                 sold as (select product_id, sum(quantity) as q from order_lines group by product_id)
            select coalesce(sum(d.q), 0)::int8, coalesce(sum(k.quantity), 0)::int8, coalesce(sum(s.q), 0)::int8,
                   count(*) filter (where coalesce(d.q, 0) <> coalesce(k.quantity, 0) + coalesce(s.q, 0))
            from products p
            left join delivered d on d.product_id = p.id
            left join sold s on s.product_id = p.id
            left join logistics.stock k on k.product_id = p.id
            """
        ).fetchone()
    if row is None:
        raise AssertionError("an aggregate without groups has one row")
    return Goods(delivered=row[0], in_stock=row[1], sold=row[2], wrong_products=row[3])


def _size(connection: psycopg.Connection[TupleRow]) -> ShopSize:
    row = connection.execute(
        """
        select count(*), sum(reltuples)::int8, sum(pg_total_relation_size(oid))::int8
        from pg_class where relkind = 'r' and relnamespace in ('public'::regnamespace, 'logistics'::regnamespace)
        """
    ).fetchone()
    tables, rows, size = row or (0, 0, 0)
    return ShopSize(tables=tables, rows=rows, bytes=size)
