"""The names of a collection's objects, and nothing else. docs/format.md section 2 is the specification.

A *key* is relative to the collection's root, a *path* to a chain's folder: documents hold paths, so that a chain can be
moved or copied as a whole. Names that end in random digits may be written by several tries of the same work; a
document names the one that counts.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import uuid
from datetime import UTC, datetime, timedelta
from typing import Literal

from spanvault.errors import Damaged
from spanvault.model.cut import time_of_subdir
from spanvault.model.places import place_name

COLLECTION_KEY = "COLLECTION.json"
PLACE_KEY = "PLACE.json"
README_KEY = "README.txt"
INDEX_PREFIX = "metadata/index/"

PathKind = Literal["plan", "encryption", "manifest", "marker", "receipt", "seal", "files", "commits", "dump", "part", "data"]

# What lies where a layer's data files do, which may be an incremental location.
BESIDE_DATA: frozenset[PathKind] = frozenset({"data", "part"})

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HUNDREDTH = timedelta(milliseconds=10)
_MAX_TIME = 10**14 - 1  # 14 digits of hundredths reach beyond the year 5138
_MAX_NUMBER = 10**6 - 1
_MANIFEST = re.compile(r"chain/(?:(\d{6})-)?(\d{6})\.json")
_MARKER = re.compile(r"chain/(\d{6})\.invalid\.json")
_INDEX_KEY = re.compile(
    rf"{INDEX_PREFIX}\d{{14}}-\d{{6}}_(\d{{4}})(\d{{2}})(\d{{2}}-\d{{6}}\.\d{{2}})_(?:(\d{{6}})-)?(\d{{6}})\.json"
)
_KINDS: tuple[tuple[PathKind, re.Pattern[str]], ...] = (
    ("plan", re.compile(r"PLAN\.json|\d{6}/PLAN-[0-9a-f]{8}\.json")),
    ("encryption", re.compile(r"ENCRYPTION-INFO-\d{6}\.json")),
    ("manifest", _MANIFEST),
    ("marker", _MARKER),
    ("receipt", re.compile(r"\d{6}/progress/[^/]+\.json")),
    ("seal", re.compile(r"\d{6}/seal-[0-9a-f]{8}\.json")),
    ("files", re.compile(r"\d{6}/files-[0-9a-f]{8}\.parquet")),
    ("commits", re.compile(r"\d{6}/commits-\d+-[0-9a-f]{8}\.parquet")),
    ("dump", re.compile(r"\d{6}/(?:schema-\d+-[0-9a-f]{8}\.dump|globals-[0-9a-f]{8}\.sql)")),
    ("part", re.compile(r"\d{6}/BACKUP_PART_[A-Za-z0-9=_-]+-[0-9a-f]{8}\.json")),
    ("data", re.compile(r"\d{6}/data/(?:[A-Za-z0-9=_-]+/)?[^/]+\.parquet")),
)


def object_key(subdir: str, path: str) -> str:
    """The key of the object at `path` in a chain. Raises Damaged for a path that leads out of the chain's folder."""
    if not path or path.startswith("/") or {"", ".", ".."} & set(path.split("/")):
        raise Damaged(f"The backup {subdir} names an object {path!r}, which is not below its folder.")
    return f"{subdir}/{path}"


def layer_path(number: int) -> str:
    """`000000/`, the folder of a layer in its chain."""
    return f"{number:06d}/"


def layer_folder(subdir: str, number: int) -> str:
    """The key prefix of everything that the run of a layer writes, except manifest and a full's plan."""
    return f"{subdir}/{layer_path(number)}"


def plan_key(subdir: str, number: int = 0, run_key: str = "") -> str:
    """PLAN.json at the chain's top for the full; for what follows one in the layer's folder for each run that wants it."""
    if number == 0:
        return f"{subdir}/PLAN.json"
    return f"{layer_folder(subdir, number)}PLAN-{hashlib.sha256(run_key.encode()).hexdigest()[:8]}.json"


def _name_of(number: int, first: int | None) -> str:
    """`000003`, or of a layer that stands for several `000001-000003`."""
    return f"{number:06d}" if first is None or first == number else f"{first:06d}-{number:06d}"


def manifest_path(number: int = 0, first: int | None = None) -> str:
    """The path of a layer's manifest; `first` is the first layer that a compacted one stands for."""
    return f"chain/{_name_of(number, first)}.json"


def manifest_key(subdir: str, number: int = 0, first: int | None = None) -> str:
    """The manifest of a layer, whose creation is the commit."""
    return f"{subdir}/{manifest_path(number, first)}"


def manifest_numbers(path: str) -> tuple[int, int] | None:
    """(first, number) of the layer whose manifest is at `path` (relative to the chain); both are the same unless the
    layer is compacted. None for any other path."""
    match = _MANIFEST.fullmatch(path)
    if match is None:
        return None
    number = int(match[2])
    if match[1] is None:
        return number, number
    first = int(match[1])
    return (first, number) if first < number else None


def marker_key(subdir: str, number: int) -> str:
    """The object that says that a layer failed its validation."""
    return f"{subdir}/chain/{number:06d}.invalid.json"


def marked_number(path: str) -> int | None:
    """The layer that the marker at `path` (relative to the chain) calls invalid, None for any other path."""
    match = _MARKER.fullmatch(path)
    return int(match[1]) if match else None


def receipt_prefix(subdir: str, number: int) -> str:
    """The key prefix of a layer's receipts."""
    return f"{layer_folder(subdir, number)}progress/"


def receipt_key(subdir: str, number: int, span: str) -> str:
    """The receipt of a span."""
    return f"{receipt_prefix(subdir, number)}{span}.json"


def data_path(number: int, tier: str | None = None) -> str:
    """A new, unique path for a data file; of one that goes to a locality's URI the path says so."""
    folder = "" if tier is None else f"{place_name(tier)}/"
    return f"{layer_path(number)}data/{folder}{uuid.uuid4()}.parquet"


def part_path(number: int, tier: str) -> str:
    """A new path for the description of what a layer has at a locality's URI, where it lies."""
    return f"{layer_path(number)}BACKUP_PART_{place_name(tier)}-{secrets.token_hex(4)}.json"


def files_path(number: int) -> str:
    """A new path for a list of data files."""
    return f"{layer_path(number)}files-{secrets.token_hex(4)}.parquet"


def commits_path(number: int, database_oid: int) -> str:
    """A new path for the list of a database's transactions in a layer with revision history."""
    return f"{layer_path(number)}commits-{database_oid}-{secrets.token_hex(4)}.parquet"


def schema_dump_path(number: int, database_oid: int) -> str:
    """A new path for a database's schema, an archive of pg_dump."""
    return f"{layer_path(number)}schema-{database_oid}-{secrets.token_hex(4)}.dump"


def globals_dump_path(number: int) -> str:
    """A new path for the cluster's roles and settings, a script of pg_dumpall."""
    return f"{layer_path(number)}globals-{secrets.token_hex(4)}.sql"


def seal_path(number: int) -> str:
    """A new path for a seal record."""
    return f"{layer_path(number)}seal-{secrets.token_hex(4)}.json"


def index_key(subdir: str, number: int, first: int | None = None) -> str:
    """The index entry of a layer. Ascending key order is newest chain first, then newest layer first; a compacted layer
    stands beside the last one that it was made of."""
    hundredths = (time_of_subdir(subdir) - _EPOCH) // _HUNDREDTH
    name = f"{subdir.replace('/', '')}_{_name_of(number, first)}"
    return f"{INDEX_PREFIX}{_MAX_TIME - hundredths:014d}-{_MAX_NUMBER - number:06d}_{name}.json"


def indexed_layer(key: str) -> tuple[str, int, int] | None:
    """The layer (subdir, first, number) that an index entry's key names, None for any other key."""
    match = _INDEX_KEY.fullmatch(key)
    if match is None:
        return None
    subdir, number = f"{match[1]}/{match[2]}/{match[3]}", int(match[5])
    first = number if match[4] is None else int(match[4])
    return (subdir, first, number) if first <= number and index_key(subdir, number, first) == key else None


def path_kind(path: str) -> PathKind | None:
    """What the object at `path` (relative to a chain's folder) is; None for what this version did not write."""
    return next((kind for kind, pattern in _KINDS if pattern.fullmatch(path)), None)
