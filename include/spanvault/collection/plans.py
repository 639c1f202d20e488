"""PLAN.json of each layer: what a run will do, and the lock by which it owns its folder."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from spanvault.collection.documents import parse_document
from spanvault.collection.layout import layer_folder, plan_key
from spanvault.errors import AlreadyExists, BadInput, NotFound
from spanvault.model.cut import time_of_subdir
from spanvault.model.manifest import Plan
from spanvault.storage.base import Storage


def create_plan(storage: Storage, plan: Plan) -> bool:
    """Write the plan if its place is free; False if anything is there already.

    Of a full, what an unfinished deletion left behind counts as taken: receipts of an older run must not serve a new one.
    """
    if plan.number == 0 and next(iter(storage.list(f"{plan.subdir}/")), None) is not None:
        return False
    try:
        storage.put(plan_key(plan.subdir, plan.number, plan.run_key), plan.to_json(), create_only=True)
    except AlreadyExists:
        return False
    return True


def keep_plan(storage: Storage, plan: Plan, number: int) -> None:
    """Leave a copy of the plan in the folder of a later layer that the same run writes: while a plan of its run is there,
    nobody sweeps it. The copy has a name of its own, so that it never passes for a plan of that layer."""
    key = plan_key(plan.subdir, number, f"{plan.run_key}@{plan.number}")
    with contextlib.suppress(AlreadyExists):
        storage.put(key, plan.to_json(), create_only=True)


def plans_of(storage: Storage, subdir: str, number: int) -> Iterator[Plan]:
    """The plans, and copies of plans, that lie in a later layer's folder."""
    for info in storage.list(f"{layer_folder(subdir, number)}PLAN-"):
        with contextlib.suppress(NotFound):
            yield parse_document(Plan, storage.get(info.key), f"The plan {info.key}")


def read_plan(storage: Storage, subdir: str, number: int = 0, run_key: str = "") -> Plan | None:
    """The plan of a layer (of an incremental: of that run for it), or None."""
    key = plan_key(subdir, number, run_key)
    try:
        data = storage.get(key)
    except NotFound:
        return None
    return parse_document(Plan, data, f"The plan {key}")


def chain_subdirs(storage: Storage, *, newest_first: bool = True) -> Iterator[str]:
    """The folders of all chains, finished or not, by the time in their names. One listing a year and month."""
    for year in _folders(storage, "", r"\d{4}/", newest_first):
        for month in _folders(storage, year, r"\d{2}/", newest_first):
            for folder in _folders(storage, month, r"\d{2}-\d{6}\.\d{2}/", newest_first):
                subdir = folder.rstrip("/")
                if _is_chain(subdir):
                    yield subdir


def _folders(storage: Storage, prefix: str, pattern: str, newest_first: bool) -> list[str]:
    """Folders below `prefix` whose name matches, with their prefix."""
    names = [name for name in storage.list_folders(prefix) if re.fullmatch(pattern, name)]
    return [prefix + name for name in sorted(names, reverse=newest_first)]


def _is_chain(subdir: str) -> bool:
    try:
        time_of_subdir(subdir)
    except BadInput:
        return False
    return True
