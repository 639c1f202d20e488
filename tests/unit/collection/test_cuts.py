"""Times and positions: which cut they are, which are refused, and what the refusal names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanvault.collection.chain import Resolved, head, no_locations, original_layers, resolve
from spanvault.collection.commit import commit
from spanvault.collection.layout import manifest_key, object_key
from spanvault.collection.windows import RestorableWindow, restorable_windows
from spanvault.errors import BadInput, Damaged
from spanvault.model.cut import Cut, Lsn, format_time
from spanvault.model.manifest import Manifest
from spanvault.storage.local import LocalStorage
from tests.kit.collections import PLANNED_AT, at, make_layer, write_collection, write_layer


def _cut(lsn: int, seconds: float) -> Cut:
    return Cut(lsn=Lsn(lsn), time=at(seconds))


def _resolve(storage: LocalStorage, as_of: datetime | Lsn | None, subdir: str = "LATEST") -> Resolved:
    return resolve(storage, subdir, as_of, open_location=no_locations)


def _layers(resolved: Resolved) -> list[int]:
    return [layer.manifest.number for layer in resolved.layers]


def _stamps(*commits: tuple[int, float]) -> list[tuple[int, datetime]]:
    return [(lsn, at(seconds)) for lsn, seconds in commits]


def _history(storage: LocalStorage, parent: Manifest, end: Cut, **databases: list[tuple[int, datetime]]) -> Manifest:
    return write_layer(storage, parent, end=end, history=True, commits=databases)


@pytest.fixture
def chain(storage: LocalStorage) -> tuple[Manifest, ...]:
    """A full at 30 (0x200), exact ends at 60 (0x300) and 90 (0x400), history to 120 (0x500) and to 150 (0x600)."""
    full = write_collection(storage)
    one = write_layer(storage, full, end=_cut(0x300, 60), commits={"shop": _stamps((0x210, 40))})
    two = write_layer(storage, one, end=_cut(0x400, 90), commits={"shop": _stamps((0x310, 70))})
    three = _history(storage, two, _cut(0x500, 120), shop=_stamps((0x410, 95), (0x420, 100), (0x430, 100), (0x440, 110)))
    four = _history(storage, three, _cut(0x600, 150), shop=_stamps((0x510, 130), (0x520, 140)))
    return full, one, two, three, four


def test_without_a_time_it_is_the_newest_end(storage: LocalStorage, chain: tuple[Manifest, ...]) -> None:
    found = _resolve(storage, None)
    assert (_layers(found), found.cut, found.inner, found.before) == ([0, 1, 2, 3, 4], chain[4].end, False, None)
    assert found.manifest == chain[4]
    assert head(storage, "LATEST")[0] == chain[4]


@pytest.mark.parametrize("number", range(5))
def test_an_exact_end_is_restored_by_time_and_by_position(
    storage: LocalStorage, chain: tuple[Manifest, ...], number: int
) -> None:
    for as_of in (chain[number].end.time, chain[number].end.lsn):
        found = _resolve(storage, as_of)
        assert (_layers(found), found.cut, found.inner) == (list(range(number + 1)), chain[number].end, False)


@pytest.mark.parametrize(
    ("seconds", "lsn"),
    [(95, 0x420), (96, 0x420), (100, 0x440), (100.000001, 0x440), (109.999999, 0x440), (130, 0x520), (139, 0x520)],
)
def test_inside_history_the_cut_is_the_first_later_commit(
    storage: LocalStorage, chain: tuple[Manifest, ...], seconds: float, lsn: int
) -> None:
    found = _resolve(storage, at(seconds))
    last = 3 if seconds < 120 else 4
    assert (found.cut, found.inner) == (Cut(lsn=Lsn(lsn), time=at(seconds)), True)
    assert _layers(found) == list(range(last + 1))
    assert found.before == chain[last - 1]


@pytest.mark.parametrize(
    ("seconds", "number"), [(110, 3), (119, 3), (140, 4), (149.999999, 4), (90.5, 2), (94.999999, 2), (125, 3)]
)
def test_where_no_later_commit_is_in_the_way_it_is_a_layers_end(
    storage: LocalStorage, chain: tuple[Manifest, ...], seconds: float, number: int
) -> None:
    found = _resolve(storage, at(seconds))
    assert (_layers(found), found.cut, found.inner) == (list(range(number + 1)), chain[number].end, False)


@pytest.mark.parametrize(
    ("seconds", "below", "above"),
    [(29, None, 30), (31, 30, 60), (59, 30, 60), (61, 60, 90), (89.999999, 60, 90), (150.000001, 150, None), (9999, 150, None)],
)
def test_other_times_are_refused_with_the_nearest_ones(
    storage: LocalStorage, chain: tuple[Manifest, ...], seconds: float, below: float | None, above: float | None
) -> None:
    with pytest.raises(BadInput, match=f"^Invalid RESTORE timestamp {re.escape(format_time(at(seconds)))}: ") as caught:
        _resolve(storage, at(seconds), chain[0].subdir)
    named = re.findall(r"(\d{4}-\S+ \S+\+00) (before|after) it", str(caught.value))
    wanted = [(below, "before"), (above, "after")]
    assert named == [(format_time(at(near)), side) for near, side in wanted if near is not None]


@pytest.mark.parametrize(("position", "seconds", "last"), [(0x411, 95, 3), (0x410, 90, 3), (0x431, 100, 3), (0x5FF, 140, 4)])
def test_a_position_inside_history_is_a_cut(
    storage: LocalStorage, chain: tuple[Manifest, ...], position: int, seconds: float, last: int
) -> None:
    found = _resolve(storage, Lsn(position))
    assert (found.cut, found.inner) == (_cut(position, seconds), True)
    assert found.manifest == chain[last]
    assert found.before == chain[last - 1]


@pytest.mark.parametrize(
    ("position", "near"),
    [
        (0x1FF, "position is 0/00000200 after"),
        (0x250, "positions are 0/00000200 before it and 0/00000300 after"),
        (0x601, "position is 0/00000600 before"),
    ],
)
def test_other_positions_are_refused_with_the_nearest_ones(
    storage: LocalStorage, chain: tuple[Manifest, ...], position: int, near: str
) -> None:
    with pytest.raises(BadInput, match=rf"Invalid RESTORE position .* the nearest restorable {near} it\.$"):
        _resolve(storage, Lsn(position))


def test_the_windows_are_exact_ends_and_intervals(storage: LocalStorage, chain: tuple[Manifest, ...]) -> None:
    expected = (
        RestorableWindow(chain[0].end, chain[0].end, any_time=False),
        RestorableWindow(chain[1].end, chain[1].end, any_time=False),
        RestorableWindow(chain[2].end, chain[4].end, any_time=True),
    )
    assert restorable_windows(chain) == expected
    assert restorable_windows(original_layers(storage, "LATEST", open_location=no_locations)) == expected


def test_stamps_that_run_backwards_cut_at_the_first_later_commit_in_log_order(storage: LocalStorage) -> None:
    full = write_collection(storage)
    # The clock was set back by 60 seconds behind the second commit.
    one = _history(storage, full, _cut(0x300, 100), shop=_stamps((0x210, 50), (0x220, 100), (0x230, 45), (0x240, 60)))
    two = _history(storage, one, _cut(0x400, 130), shop=_stamps((0x310, 62), (0x320, 130)))
    assert _resolve(storage, at(55)).cut.lsn == 0x220
    assert _resolve(storage, at(60)).cut.lsn == 0x220
    assert _resolve(storage, at(47)).cut.lsn == 0x210
    assert _resolve(storage, at(100)).cut == one.end
    found = _resolve(storage, at(110))
    assert (found.cut.lsn, found.inner, found.manifest) == (0x320, True, two)


def test_a_commit_with_a_later_stamp_than_its_layers_end_still_cuts(storage: LocalStorage) -> None:
    full = write_collection(storage)
    # The end's stamp lies before that of a commit of the layer: the clock was set back just before the end.
    one = _history(storage, full, _cut(0x300, 60), shop=_stamps((0x210, 50), (0x220, 80)))
    _history(storage, one, _cut(0x400, 90), shop=_stamps((0x310, 65)))
    found = _resolve(storage, at(70))
    assert (found.cut.lsn, found.inner, found.manifest) == (0x220, True, one)


def test_over_several_databases_the_smallest_position_cuts(storage: LocalStorage) -> None:
    full = write_collection(storage)
    one = _history(
        storage,
        full,
        _cut(0x300, 100),
        shop=_stamps((0x210, 40), (0x250, 60), (0x290, 80)),
        crm=_stamps((0x220, 45), (0x240, 70), (0x2A0, 75)),
    )
    assert _resolve(storage, at(65)).cut.lsn == 0x240
    assert _resolve(storage, at(59)).cut.lsn == 0x240
    assert _resolve(storage, at(41)).cut.lsn == 0x220
    assert _resolve(storage, at(76)).cut.lsn == 0x290
    assert _resolve(storage, at(80)).cut == one.end
    assert not _resolve(storage, at(90)).inner
    assert _resolve(storage, Lsn(0x260)).cut == _cut(0x260, 70)


def test_a_window_without_transactions_is_its_end(storage: LocalStorage) -> None:
    full = write_collection(storage)
    one = _history(storage, full, _cut(0x300, 60))
    two = _history(storage, one, _cut(0x300, 90))  # nothing was logged at all
    assert _resolve(storage, at(45)).manifest == one
    assert _resolve(storage, at(75)).manifest == two
    assert _resolve(storage, Lsn(0x300)).manifest == two


def test_of_equal_ends_the_newest_counts(storage: LocalStorage) -> None:
    full = write_collection(storage)
    one = write_layer(storage, full, end=_cut(0x300, 30), commits={"shop": _stamps((0x210, 30))})
    assert _resolve(storage, full.end.time).manifest == one


def test_history_that_lacks_its_list_is_damage(storage: LocalStorage) -> None:
    full = write_collection(storage)
    one = _history(storage, full, _cut(0x300, 60), shop=_stamps((0x210, 40), (0x220, 50)))
    reference = one.databases[0].commits
    assert reference is not None
    storage.delete(object_key(full.subdir, reference.path))
    with pytest.raises(Damaged, match="is missing"):
        _resolve(storage, at(45))
    assert _resolve(storage, at(60)).manifest == one


@pytest.mark.parametrize("lost", ["list", "commit"])
def test_history_whose_list_does_not_show_a_commit_is_damage_and_not_another_state(storage: LocalStorage, lost: str) -> None:
    """Layer and list contradict each other about a commit behind the time; to take the layer's end would restore it."""
    full = write_collection(storage)
    layer = make_layer(storage, full, end=_cut(0x300, 60), history=True, commits={"shop": _stamps((0x210, 40), (0x220, 50))})
    (entry,) = layer.databases
    if lost == "list":
        entry = entry.model_copy(update={"commits": None})
    else:
        entry = entry.model_copy(update={"window": entry.window.model_copy(update={"newest_time": at(55)})})
    one = commit(storage, layer.model_copy(update={"databases": (entry,)}))
    newest = re.escape(str(at(50 if lost == "list" else 55)))
    key = re.escape(manifest_key(full.subdir, 1))
    with pytest.raises(Damaged, match=f"{key} has commits in 'shop' until {newest}, and its list .* does not show them"):
        _resolve(storage, at(45 if lost == "list" else 52))
    assert _resolve(storage, at(60)).manifest == one


def test_latest_finds_an_older_time_in_the_chain_that_covers_it(storage: LocalStorage) -> None:
    old = write_collection(storage)
    closing = _history(storage, old, _cut(0x300, 60), shop=_stamps((0x210, 40), (0x220, 50)))
    new = write_collection(storage, planned_at=PLANNED_AT + timedelta(seconds=70), run_key="new")  # its cut is at 100
    assert _resolve(storage, None).manifest == new
    assert _resolve(storage, at(100)).manifest == new
    assert _resolve(storage, at(60)).manifest == closing
    assert _resolve(storage, at(45)).cut.lsn == 0x220
    assert _resolve(storage, at(30)).manifest == old
    (before, after) = (re.escape(format_time(at(seconds))) for seconds in (60, 100))
    nearest = rf"the nearest restorable times are {before} before it and {after} after it\.$"
    with pytest.raises(BadInput, match=nearest):
        _resolve(storage, at(80))
    with pytest.raises(BadInput, match=r"the nearest restorable time is .* after it"):
        _resolve(storage, at(29))
    # A named chain answers for itself only.
    with pytest.raises(BadInput, match=re.escape(format_time(at(60))) + r" before it\.$"):
        _resolve(storage, at(80), old.subdir)
    with pytest.raises(BadInput, match=re.escape(format_time(at(100))) + r" after it\.$"):
        _resolve(storage, at(60), new.subdir)


_COMMITS = st.lists(st.integers(31, 99), max_size=6)


@settings(max_examples=25, deadline=None)
@given(layers=st.lists(st.tuples(_COMMITS, _COMMITS), min_size=1, max_size=3), moment=st.integers(30, 100))
def test_every_time_in_history_is_the_first_later_commit_of_the_whole_log(
    tmp_path_factory: pytest.TempPathFactory, layers: list[tuple[list[int], list[int]]], moment: int
) -> None:
    """Against a scan of the whole log: two databases take turns, with stamps in any order; ends stand at the greatest
    stamp so far."""
    storage = LocalStorage(tmp_path_factory.mktemp("cuts"), "file:///backups")
    parent = write_collection(storage)
    log: list[tuple[int, int]] = []
    newest, lsn = 30, 0x200
    for shop, crm in layers:
        stamps: Mapping[str, list[tuple[int, datetime]]] = {"shop": [], "crm": []}
        for name, seconds in [("shop", each) for each in shop] + [("crm", each) for each in crm]:
            lsn += 1
            newest = max(newest, seconds)
            log.append((lsn, seconds))
            stamps[name].append((lsn, at(seconds)))
        lsn += 1
        parent = _history(storage, parent, _cut(lsn, newest), **stamps)
    if moment > newest:
        with pytest.raises(BadInput):
            _resolve(storage, at(moment))
        return
    found = _resolve(storage, at(moment))
    applied = [commit for commit in log if commit[0] < found.cut.lsn]
    ends = [layer.end for layer in original_layers(storage, "LATEST", open_location=no_locations)]
    exact = [end for end in ends if end.time == at(moment)]
    if exact:
        assert found.cut == exact[-1]
    else:
        first = next((position for position, seconds in log if seconds > moment), lsn)
        assert applied == [commit for commit in log if commit[0] < first]
