"""The properties of a place that storage/check.py tries. Each function returns what it found, in a sentence, or raises:
Broken for a property that does not hold, any other error of ours if the place refused or failed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from spanvault.errors import AlreadyExists, Permanent, SpanvaultError
from spanvault.model.uri_parameters import ObjectLock
from spanvault.storage.base import Storage, Unfinished

CONTENT = b"Spanvault checks this place; the object may be deleted."
WRITERS = 16
_RACES = 3
_ROUNDS = 20
_START_SECONDS = 60
_NAMES = ("2026/11", "000010", "000002", "Z", "a", "A", "000001", "2025/12", "~", "2026/01", "0", "9")
_UNICODE = ("a b", "a%20b", "a+b", "a&b<c>", "#?", "e\u0301", "\u00fc/\u00df", "\u65e5\u672c", "z\uffee", "z\U0001f600")


class Broken(Permanent):
    """The place does not have a property that backups rely on."""


@dataclass
class Place:
    """A place under check: all that is written lies below `folder`, and `used` holds its keys. `writer` and `reader` are
    opened each by itself, as two workers do; they lock nothing. `lock` is what the place's URI asks for, `locking` a
    storage that locks the same way, for `lock_seconds` only. `archive`: data in the class cannot be read at once."""

    writer: Storage
    reader: Storage
    folder: str
    lock: ObjectLock | None = None
    locking: Storage | None = None
    lock_seconds: float = 0
    storage_class: str | None = None
    archive: bool = False
    used: set[str] = field(default_factory=set)
    locked_keys: list[str] = field(default_factory=list)
    locked_until: float = 0

    def key(self, name: str) -> str:
        """A key below the folder, which is about to be written."""
        key = f"{self.folder}/{name}"
        self.used.add(key)
        return key

    def listed(self, name: str = "") -> list[str]:
        """The names of the objects that the reader lists below the folder, without it."""
        start = f"{self.folder}/"
        return [info.key.removeprefix(start) for info in self.reader.list(start + name)]


def unfinished(place: Place) -> Iterator[Unfinished]:
    """Unfinished writes of this check, where the backend knows their keys."""
    return (each for each in place.writer.list_unfinished() if each.key.startswith(f"{place.folder}/"))


def write_and_read(place: Place) -> str:
    """What was written is what is read, empty objects and replaced ones too."""
    for name, data in (("first", CONTENT), ("first", CONTENT[::-1]), ("empty", b"")):
        key = place.key(name)
        place.writer.put(key, data)
        chunks = list(place.reader.read_chunks(key, 7))
        if place.reader.get(key) != data or b"".join(chunks) != data or any(len(chunk) > 7 for chunk in chunks):
            raise Broken(f"An object of {len(data)} bytes was read back with other bytes than were written.")
        info = place.reader.head(key)
        if info is None or (info.key, info.size) != (key, len(data)):
            raise Broken(f"An object of {len(data)} bytes is described with another key or size.")
    if place.listed() != ["empty", "first"]:
        raise Broken("A listing does not show exactly the objects that were written.")
    return "Objects are written, replaced, read, described and listed as they are."


def deletion(place: Place) -> str:
    """What was deleted is gone, and deleting it again succeeds."""
    key = place.key("first")
    for _ in range(2):
        place.writer.delete(key)
        if place.reader.head(key) is not None or "first" in place.listed():
            raise Broken("A deletion was answered with success, and the object is still there.")
    place.writer.delete(place.key("never-written"))
    return "Objects are deleted, and deleting what is not there does no harm."


def conditional_create(place: Place) -> str:
    """Of writers that create the same object at once exactly one wins."""
    failures = [failure for race in range(_RACES) for failure in _race(place, place.key(f"race/{race}"))]
    key = place.key("race/0")
    for storage in (place.writer, place.reader):
        before = storage.get(key)
        try:
            storage.put(key, before, create_only=True)
        except AlreadyExists:
            continue
        raise Broken("An object that existed was created again, with the same bytes, by a writer that was to create it only.")
    failed = f"; {len(failures)} were told neither, the first: {failures[0]}" if failures else "."
    return f"Of {WRITERS} writers at once exactly one created the object, in each of {_RACES} races{failed}"


def _race(place: Place, key: str) -> list[SpanvaultError]:
    """The errors of those writers that neither won nor lost. Raises Broken unless exactly one won."""
    gate = threading.Barrier(WRITERS)

    def create(number: int) -> bytes | SpanvaultError:
        storage = (place.writer, place.reader)[number % 2]
        gate.wait(_START_SECONDS)
        try:
            storage.put(key, _content(number), create_only=True)
        except AlreadyExists:
            return _seen_by_loser(storage, key)
        except SpanvaultError as error:
            return error
        return _content(number)

    with ThreadPoolExecutor(WRITERS) as threads:
        outcomes = list(threads.map(create, range(WRITERS)))
    winners = [number for number, outcome in enumerate(outcomes) if outcome == _content(number)]
    failures = [outcome for outcome in outcomes if isinstance(outcome, SpanvaultError) and not isinstance(outcome, _Lost)]
    if not winners:
        reason = f": {failures[0]}" if failures else ", because all were told that it exists already."
        raise Broken(f"None of {WRITERS} writers at once could create an object{reason}")
    if len(winners) > 1:
        raise Broken(f"{len(winners)} of {WRITERS} writers at once were told that they alone created the same object.")
    seen = {outcome.seen for outcome in outcomes if isinstance(outcome, _Lost)} | {place.reader.get(key)}
    if seen != {_content(winners[0])}:
        raise Broken("Writers that lost a race did not find the winner's object there.")
    return failures


class _Lost(AlreadyExists):
    """Another writer was first; `seen` is what the loser read then, None if there was nothing."""

    def __init__(self, seen: bytes | None) -> None:
        super().__init__("Another writer was first.")
        self.seen = seen


def _seen_by_loser(storage: Storage, key: str) -> _Lost:
    try:
        return _Lost(storage.get(key))
    except SpanvaultError:
        return _Lost(None)


def _content(number: int) -> bytes:
    return b"writer %d" % number


def read_after_write(place: Place) -> str:
    """Another reader sees an object as soon as it is written, though it had looked before."""
    for number in range(_ROUNDS):
        key = place.key(f"read/{number:02d}")
        if place.reader.head(key) is not None:
            raise Broken("An object was described that nobody had written yet.")
        for content in (b"old", b"new"):
            place.writer.put(key, content)
            info = place.reader.head(key)
            if info is None or info.size != len(content):
                raise Broken(f"Object {number + 1} of {_ROUNDS} was not there for another reader right after it was written.")
            if place.reader.get(key) != content:
                raise Broken(f"Object {number + 1} of {_ROUNDS} had its old bytes for another reader after it was replaced.")
    return f"Each of {_ROUNDS} objects was read by another connection right after it was written and after it was replaced."


def list_after_write(place: Place) -> str:
    """Another reader's listing shows an object as soon as it is written."""
    written: list[str] = []
    for number in range(_ROUNDS):
        place.writer.put(place.key(f"list/{number:02d}"), CONTENT)
        written.append(f"list/{number:02d}")
        missing = sorted(set(written) - set(place.listed("list/")))
        if missing:
            raise Broken(f"A listing right after object {number + 1} of {_ROUNDS} was written left out {len(missing)} of them.")
    return f"Each of {_ROUNDS} objects was in another connection's listing right after it was written."


def listing_order(place: Place) -> str:
    """Keys come in the order of their bytes, and folders once each."""
    for name in _NAMES:
        place.writer.put(place.key(f"order/{name}"), b"")
    found = [name.removeprefix("order/") for name in place.listed("order/")]
    if found != sorted(_NAMES, key=str.encode):
        raise Broken(f"A listing of {len(_NAMES)} objects is not complete and in the order of their names' bytes.")
    if list(place.reader.list_folders(f"{place.folder}/order/")) != ["2025/", "2026/"]:
        raise Broken("A listing of folders does not show each of them once, in order.")
    return "Listings are complete and ascending, and show each folder once."


def unicode_keys(place: Place) -> str:
    """Names with any characters are kept as they are."""
    for name in _UNICODE:
        place.writer.put(place.key(f"unicode/{name}"), name.encode())
    found = [name.removeprefix("unicode/") for name in place.listed("unicode/")]
    if sorted(found) != sorted(_UNICODE):
        raise Broken("Names with spaces, special or non-Latin characters are listed otherwise than they were written.")
    if any(place.reader.get(f"{place.folder}/unicode/{name}") != name.encode() for name in _UNICODE):
        raise Broken("Objects whose names have special or non-Latin characters are mixed up.")
    if found != sorted(_UNICODE, key=str.encode):
        raise Broken("Names with special or non-Latin characters are not listed in the order of their bytes.")
    return "Names with spaces, special and non-Latin characters are kept, and listed in order."


def storage_class(place: Place) -> str:
    """The store takes data in the class that is asked for."""
    key = place.key("data/class")
    place.writer.put(key, CONTENT)
    if place.archive:
        return f"The store takes data in the class {place.storage_class}; it must be brought back before it can be read."
    if place.reader.get(key) != CONTENT:
        raise Broken(f"Data in the class {place.storage_class} was read back with other bytes than were written.")
    return f"The store takes data in the class {place.storage_class} and gives it back at once."
