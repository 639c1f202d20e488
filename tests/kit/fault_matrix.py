"""Every place of an operation at which something can go wrong, and what can go wrong there.

`places` finds them in the log of one undisturbed run: around each call of storage (writes and reads), around each statement
of the database and each end of a transaction, at the start of each program, at each named point between steps; at its first
time and at its last. A place comes with the harms that exist there:

    die        the process ends (raised as Killed: the run goes no further; tests/kill/*_kills.py send real SIGKILLs)
    fail       the storage answers with an error that may pass, or the connection is refused
    terminate  an administrator's pg_terminate_backend ends the session that is about to send a statement
    lose       the connection breaks behind a statement, a COPY or a COMMIT that the server has carried out
    full       the server has no room left for what a statement or a COPY would write; a test asks for it where it can be
    kill       pg_dump, pg_dumpall or pg_restore is killed

Tests take `chosen` of them: a sample with a fixed seed, of each kind of place first; with SPANVAULT_FAULTS=all, as
`make soak` has it, all of them, in PARTS for which tests are parametrized.
"""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape

import pytest

from spanvault.errors import Retryable, SpanvaultError
from tests.kit.fault_database import DatabaseFaults
from tests.kit.faults import KILLED, Action, Fault, Faults, Killed

ALL = os.environ.get("SPANVAULT_FAULTS") == "all"
PARTS = range(32 if ALL else 1)  # All places are too many for one collection.
# For `pytestmark`: some twenty runs, each disturbed, finished and compared, on a machine that does other things, too.
PATIENCE = [pytest.mark.timeout(1000)] if ALL else []
# What differs from run to run in the names of objects.
_RANDOM = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?<=[-_.])[0-9a-f]{8}(?=[-_.])|\d+")
_NO_ANSWER = "The store did not answer."


@dataclass(frozen=True)
class Place:
    """The `nth` time in a run that `point` is reached with a key like `pattern`, and the `harm` that is done there."""

    point: str
    pattern: str
    nth: int
    harm: str

    def arm(self, faults: Faults, database: DatabaseFaults | None = None) -> Fault:
        """Let it happen there."""
        return faults.add_fault(self.point, key=self.pattern, nth=self.nth, action=self._action(database))

    def _action(self, database: DatabaseFaults | None) -> Action:
        if self.harm == "die":
            return KILLED
        if database is None or self.point.startswith("storage."):
            return Retryable(_NO_ANSWER)
        return {
            "fail": database.refuse,
            "full": database.full,
            "terminate": database.terminate,
            "lose": database.lose,
            "kill": database.kill_tool,
        }[self.harm]


def _harms(point: str) -> tuple[str, ...]:
    if point.startswith("storage.") or point == "database.connect.before":
        return ("die", "fail")
    if point.startswith("tool."):
        return ("die", "kill")
    if point.startswith("database."):
        return ("die", "lose" if point.endswith(".after") else "terminate")
    return ("die",)


def places(log: Sequence[tuple[str, str]], *, writes: bool = False) -> list[Place]:
    """All places of the run that left this log, each with each harm, in the order of their first time. Of a run that `writes`
    into the database whatever does so may find it full."""
    counts: Counter[tuple[str, str]] = Counter((point, _pattern(point, key)) for point, key in log)
    return [
        Place(point, pattern, nth, harm)
        for (point, pattern), count in counts.items()
        for nth in sorted({1, count})
        for harm in (*_harms(point), *(("full",) if writes and _needs_room(point, pattern) else ()))
    ]


def _needs_room(point: str, pattern: str) -> bool:
    """Whether what reaches the point lets the server write: a COPY of rows, SQL of an archive, a record of what is done."""
    writing = re.search(r": (?:COPY .* FROM|CREATE|ALTER|INSERT|UPDATE)\b", pattern, re.IGNORECASE)
    return point in {"database.copy.chunk", "database.execute.before"} and writing is not None


def _pattern(point: str, key: str) -> str:
    """Statements come without what differs; of objects' names that is left open here."""
    return _RANDOM.sub("*", key) if point.startswith("storage.") else escape(key)


def chosen(found: Sequence[Place], size: int, seed: int = 1, part: int = 0) -> list[Place]:
    """`size` of the places, the same every time: as many as can be of each point and harm; or all of them, in PARTS."""
    if ALL:
        return list(found[part :: len(PARTS)])
    chance = random.Random(seed)
    groups: dict[tuple[str, str], list[Place]] = {}
    for place in found:
        groups.setdefault((place.point, place.harm), []).append(place)
    shuffled = [chance.sample(group, len(group)) for group in groups.values()]
    chance.shuffle(shuffled)
    taken: list[Place] = []
    while len(taken) < size and any(shuffled):
        taken += [group.pop() for group in shuffled if group][: size - len(taken)]
    return taken


def harmed(
    place: Place,
    faults: Faults,
    database: DatabaseFaults | None,
    run: Callable[[], object],
    over: tuple[type[SpanvaultError], ...] = (),
) -> str | None:
    """Run under one fault. The sentence of the failed run, an empty text for one that died, None for one that ended well:
    the place was not reached, or the run can do without what failed. `over` is what a run says that finds its work done.

    Asserts that a failure is told as it should be, and that none is hidden by a death.
    """
    faults.clear()
    fault = place.arm(faults, database)
    try:
        run()
    except Killed:
        assert place.harm == "die"
        return ""
    except SpanvaultError as error:
        if isinstance(error, over) and not fault.fired:
            return None
        assert fault.fired, error
        return told(error)
    finally:
        faults.clear()
    assert not (fault.fired and place.harm == "die"), "somebody swallowed the end of the process"
    return None


def told(error: SpanvaultError) -> str:
    """The sentence of an error. It stands on one line, ends as sentences do, may pass, and shows nothing of our insides."""
    text = str(error)
    assert isinstance(error, Retryable), f"{type(error).__name__}: {text}"
    assert text, type(error)
    assert "\n" not in text, text
    assert text.endswith("."), text
    assert len(text) < 400, text
    assert not re.search(r"Traceback|psycopg|asyncpg|object at 0x|<class|None\b", text), text
    return text


@contextmanager
def at(place: object) -> Iterator[None]:
    """What fails in the block says where."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"at {place}")
        raise
