"""The shop's business while it is backed up: orders, cancellations, deliveries, moving customers.

Each transaction keeps the books: per product, stock and sales add up to what was delivered.
"""

from __future__ import annotations

import bisect
import random
import threading
import time
from collections import deque
from datetime import datetime

import psycopg
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

Session = psycopg.Connection[TupleRow]
OrderKey = tuple[int, datetime]


class WriteLoad:
    """Writers in threads of this process: `start`, later `calm_down`, and `stop`."""

    def __init__(self, url: str, *, writers: int = 3, per_second: float = 75.0) -> None:
        self._url = url
        self._pause = writers / per_second
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(number,), daemon=True) for number in range(writers)]
        self._lock = threading.Lock()
        self._commits: list[float] = []
        self._recording = True
        self.failure: str | None = None
        """Why a writer gave up, if one did."""

    def start(self) -> None:
        """Begin to write."""
        for thread in self._threads:
            thread.start()

    def calm_down(self, factor: float = 20.0) -> None:
        """Go on more slowly and without counting: for a demo that is left running."""
        self._recording = False
        self._pause *= factor

    def stop(self) -> None:
        """End the writers; returns when the last transaction has ended."""
        self._stopping.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(10)

    def commits_between(self, start: datetime, end: datetime) -> int:
        """How many transactions committed from `start` to `end` (both with a time zone)."""
        with self._lock:
            times = sorted(self._commits)
        return bisect.bisect_right(times, end.timestamp()) - bisect.bisect_left(times, start.timestamp())

    def _work(self, number: int) -> None:
        generator = random.Random(number)  # noqa: S311 - no secrets
        own_orders: deque[OrderKey] = deque(maxlen=50)
        try:
            with psycopg.connect(self._url, application_name=f"shop writer {number}") as session:
                products = _highest(session, "products")
                customers = _highest(session, "customers")
                while not self._stopping.wait(self._pause * generator.uniform(0.5, 1.5)):
                    _transact(session, generator, own_orders, products, customers)
                    if self._recording:
                        with self._lock:
                            self._commits.append(time.time())
        except psycopg.Error as error:
            if not self._stopping.is_set():
                self.failure = str(error).strip().splitlines()[0]


def _transact(session: Session, generator: random.Random, orders: deque[OrderKey], products: int, customers: int) -> None:
    kind = generator.random()
    with session.transaction():
        if kind < 0.6:
            orders.append(place_order(session, generator, products, customers))
        elif kind < 0.75:
            receive_delivery(session, generator, products)
        elif kind < 0.85 and orders:
            cancel_order(session, orders.popleft())
        else:
            move_customer(session, generator, customers)


def place_order(session: Session, generator: random.Random, products: int, customers: int) -> OrderKey:
    """An order of one to three products that are in stock, and its payment; the order's key."""
    order = session.execute(
        "insert into orders (ordered_at, customer_id, status) values (clock_timestamp(), %s, 'paid') returning id, ordered_at",
        [1 + generator.randrange(customers)],
    ).fetchone()
    if order is None:
        raise AssertionError("an insert that returns has a row")
    wanted = sorted(generator.sample(range(1, products + 1), generator.randint(1, 3)))  # in order, against deadlocks
    for line, product in enumerate(wanted, start=1):
        session.execute(
            """
            with taken as (update logistics.stock set quantity = quantity - %(n)s
                           where product_id = %(product)s and quantity >= %(n)s returning product_id)
            insert into order_lines (order_id, ordered_at, line, product_id, quantity, price)
            select %(order)s, %(at)s, %(line)s, id, %(n)s, price from products join taken on id = product_id
            """,
            {"n": generator.randint(1, 4), "product": product, "order": order[0], "at": order[1], "line": line},
        )
    details = Jsonb({"method": generator.choice(["card", "transfer"]), "reference": f"{generator.getrandbits(64):x}"})
    session.execute("insert into payments (order_id, ordered_at, details) values (%s, %s, %s)", [order[0], order[1], details])
    return order[0], order[1]


def receive_delivery(session: Session, generator: random.Random, products: int) -> None:
    """Goods for one product."""
    product, quantity = 1 + generator.randrange(products), generator.randint(10, 60)
    papers = Jsonb({"truck": generator.randrange(40), "note": "x" * generator.randrange(200)})
    session.execute(
        "insert into logistics.deliveries (product_id, quantity, delivered_at, papers) values (%s, %s, clock_timestamp(), %s)",
        [product, quantity, papers],
    )
    session.execute("update logistics.stock set quantity = quantity + %s where product_id = %s", [quantity, product])


def cancel_order(session: Session, order: OrderKey) -> None:
    """Lines and payment go, the goods go back, the order stays as cancelled."""
    returned = session.execute(
        "delete from order_lines where order_id = %s and ordered_at = %s returning product_id, quantity", order
    ).fetchall()
    for product, quantity in sorted(returned):
        session.execute("update logistics.stock set quantity = quantity + %s where product_id = %s", [quantity, product])
    session.execute("delete from payments where order_id = %s", [order[0]])
    session.execute("update orders set status = 'cancelled' where id = %s and ordered_at = %s", order)


def move_customer(session: Session, generator: random.Random, customers: int) -> None:
    """One customer's new address, inside the JSON."""
    session.execute(
        "update customers set address = jsonb_set(address, '{zip}', to_jsonb(%s::text)) where id = %s",
        [f"{generator.randrange(100000):05d}", 1 + generator.randrange(customers)],
    )


def _highest(session: Session, table: str) -> int:
    row = session.execute(f"select max(id) from {table}".encode()).fetchone()
    session.commit()
    return int(row[0]) if row else 0
