"""Which backups may go: a pure function from what there is to decisions. Chains live and die whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from spanvault.errors import BadInput
from spanvault.model.base import Value
from spanvault.model.cut import format_time
from spanvault.model.manifest import IndexEntry


class Policy(Value):
    """What to keep: the newest `keep_last` chains, and whatever is needed to restore to any moment of the last
    `window`. A chain is kept if either asks for it."""

    keep_last: int | None = None
    window: timedelta | None = None


class Chain(Value):
    """A complete chain: its path, the times of its oldest and its newest cut, and its bytes on storage."""

    subdir: str
    start: datetime
    end: datetime
    file_bytes: int


class Decision(Value):
    """Whether a chain expires, and the reason in words."""

    chain: Chain
    expire: bool
    reason: str


def chains_of(entries: Iterable[IndexEntry]) -> tuple[Chain, ...]:
    """The chains that these layers make, newest first."""
    layers: dict[str, list[IndexEntry]] = {}
    for entry in entries:
        layers.setdefault(entry.subdir, []).append(entry)
    return tuple(
        Chain(
            subdir=subdir,
            start=min(entry.end.time for entry in members),
            end=max(entry.end.time for entry in members),
            file_bytes=sum(entry.totals.file_bytes for entry in members),
        )
        for subdir, members in sorted(layers.items(), reverse=True)
    )


def decide(chains: Sequence[Chain], policy: Policy, now: datetime) -> tuple[Decision, ...]:
    """A decision for each of the complete `chains`, newest first. The newest chain never expires.

    Raises BadInput for a policy that says nothing, or nothing sensible.
    """
    _check(policy)
    ordered = sorted(chains, key=lambda chain: chain.subdir, reverse=True)
    base = _window_base(ordered, policy, now)
    return tuple(_decision(chain, rank, policy, now, base) for rank, chain in enumerate(ordered, start=1))


def _check(policy: Policy) -> None:
    if policy.keep_last is None and policy.window is None:
        raise BadInput("A retention policy needs keep_last, window or both; without either nothing may expire.")
    if policy.keep_last is not None and policy.keep_last < 1:
        raise BadInput(f"keep_last is {policy.keep_last}, and at least the newest backup is always kept: give 1 or more.")
    if policy.window is not None and policy.window <= timedelta(0):
        raise BadInput("The retention window must be longer than nothing.")


def _window_base(ordered: Sequence[Chain], policy: Policy, now: datetime) -> Chain | None:
    """The chain that holds the state at the window's beginning, if none that reaches into the window does: of those that
    end before it, the one that ends last."""
    if policy.window is None:
        return None
    begin = now - policy.window
    if any(chain.start <= begin <= chain.end for chain in ordered):
        return None
    before = [chain for chain in ordered if chain.end < begin]
    return max(before, key=lambda chain: (chain.end, chain.subdir), default=None)


def _decision(chain: Chain, rank: int, policy: Policy, now: datetime, base: Chain | None) -> Decision:
    reason = None
    if rank == 1:
        reason = "the newest backup is always kept"
    elif policy.keep_last is not None and rank <= policy.keep_last:
        reason = f"one of the newest {policy.keep_last}"
    elif policy.window is not None and chain.end >= now - policy.window:
        reason = f"it ends within the window of {policy.window}"
    elif chain == base:
        reason = f"it holds the state at the beginning of the window of {policy.window}"
    if reason is not None:
        return Decision(chain=chain, expire=False, reason=reason)
    return Decision(chain=chain, expire=True, reason=f"it ends at {format_time(chain.end)}, which no rule asks to keep")
