from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanvault.collection.index import list_entries
from spanvault.collection.retention import Chain, Policy, chains_of, decide
from spanvault.errors import BadInput
from spanvault.model.cut import Cut, Lsn, subdir_of
from spanvault.storage.local import LocalStorage
from tests.kit.collections import PLANNED_AT, at, write_collection, write_layer

NOW = datetime(2026, 11, 22, tzinfo=UTC)


def _chain(days_ago: float) -> Chain:
    planned = NOW - timedelta(days=days_ago)
    cut = planned + timedelta(minutes=5)
    return Chain(subdir=subdir_of(planned), start=cut, end=cut, file_bytes=1)


def _kept(days_ago: list[float], policy: Policy) -> list[float]:
    by_subdir = {_chain(days).subdir: days for days in days_ago}
    decisions = decide([_chain(days) for days in days_ago], policy, NOW)
    return [by_subdir[decision.chain.subdir] for decision in decisions if not decision.expire]


def test_keep_last_keeps_the_newest() -> None:
    assert _kept([5, 1, 3, 2, 4], Policy(keep_last=2)) == [1, 2]
    assert _kept([1], Policy(keep_last=3)) == [1]
    assert _kept([], Policy(keep_last=3)) == []


def test_a_window_keeps_what_restores_to_its_beginning() -> None:
    assert _kept([1, 3, 6, 8, 9], Policy(window=timedelta(days=7))) == [1, 3, 6, 8]


def test_a_window_keeps_the_newest_of_old_backups() -> None:
    assert _kept([30, 40], Policy(window=timedelta(days=7))) == [30]


def test_a_chain_that_reaches_into_the_window_needs_none_before_it() -> None:
    old, long = _chain(20), _chain(10).model_copy(update={"end": NOW - timedelta(days=5)})
    for window, kept in ((timedelta(days=7), [long]), (timedelta(days=15), [long, old])):
        decisions = decide([old, long], Policy(window=window), NOW)
        assert [decision.chain for decision in decisions if not decision.expire] == kept


def test_a_chain_that_begins_or_ends_where_the_window_does_needs_none_before_it() -> None:
    old, long, new = _chain(20), _chain(10).model_copy(update={"end": NOW - timedelta(days=5)}), _chain(1)
    for begin in (long.start, long.end):
        decisions = decide([old, long, new], Policy(window=NOW - begin), NOW)
        assert [decision.chain for decision in decisions if not decision.expire] == [new, long]


def test_chains_are_made_of_their_layers_newest_first(storage: LocalStorage) -> None:
    old = write_collection(storage)
    layer = write_layer(storage, old, end=Cut(lsn=Lsn(0x300), time=at(60)))
    new = write_collection(storage, planned_at=PLANNED_AT + timedelta(days=1), run_key="new")
    entries = list(list_entries(storage))
    size = old.totals.file_bytes + layer.totals.file_bytes
    for given_ in (entries, entries[::-1]):
        assert chains_of(given_) == (
            Chain(subdir=new.subdir, start=new.end.time, end=new.end.time, file_bytes=new.totals.file_bytes),
            Chain(subdir=old.subdir, start=old.end.time, end=layer.end.time, file_bytes=size),
        )


def test_either_rule_keeps() -> None:
    assert _kept([1, 2, 3, 4], Policy(keep_last=1, window=timedelta(days=2.5))) == [1, 2, 3]
    assert _kept([1, 2, 3, 4], Policy(keep_last=4, window=timedelta(hours=1))) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "policy", [Policy(), Policy(keep_last=0), Policy(keep_last=-1), Policy(window=timedelta(0)), Policy(window=-timedelta(1))]
)
def test_a_policy_without_sense_is_bad_input(policy: Policy) -> None:
    with pytest.raises(BadInput):
        decide([_chain(1)], policy, NOW)


@given(
    days=st.lists(st.floats(0, 100), unique=True, max_size=12),
    keep_last=st.none() | st.integers(1, 5),
    window=st.none() | st.floats(0.01, 100),
)
def test_no_policy_loses_the_newest_or_a_moment_of_its_window(
    days: list[float], keep_last: int | None, window: float | None
) -> None:
    if keep_last is None and window is None:
        keep_last = 1
    policy = Policy(keep_last=keep_last, window=None if window is None else timedelta(days=window))
    decisions = decide([_chain(ago) for ago in days], policy, NOW)
    assert len(decisions) == len(days)
    kept = [decision.chain for decision in decisions if not decision.expire]
    everything = [decision.chain for decision in decisions]
    if everything:
        assert kept[0] == max(everything, key=lambda chain: chain.subdir)
        assert len(kept) >= min(len(everything), keep_last or 1)
    if policy.window is not None:
        begin = NOW - policy.window
        before = [chain.end for chain in everything if chain.end < begin]
        assert {chain.end for chain in everything if chain.end >= begin} <= {chain.end for chain in kept}
        assert not before or max(before) in {chain.end for chain in kept}
