"""Where a backup's files go: one URI, or several of which each but the default belongs to a locality.

As text the URIs stand one a line: no URI holds a line break. The rules and sentences are CockroachDB's
(https://www.cockroachlabs.com/docs/stable/take-and-restore-locality-aware-backups).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from spanvault.errors import BadInput
from spanvault.model.locality import Locality
from spanvault.model.uri import DEFAULT_LOCALITY, StorageUri

_MAX_NAME = 120  # of a locality in a file's name, which has room for 200 bytes


@dataclass(frozen=True)
class Places:
    """The URI of the documents and of what belongs nowhere else, and those of localities (one tier, `region=eu`)."""

    default: StorageUri
    others: tuple[tuple[str, StorageUri], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read one URI a line; empty lines are none. Raises BadInput, never with a secret in the message."""
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        return cls.of(lines if "\n" in text and lines else [text])

    @classmethod
    def of(cls, uris: Sequence[str]) -> Self:
        """Read several URIs. Raises BadInput unless exactly one is the default and each other one has a locality of its
        own."""
        parsed = [StorageUri.parse(uri) for uri in uris]
        if len(parsed) == 1:
            if parsed[0].locality not in {None, DEFAULT_LOCALITY}:
                raise BadInput(
                    f"COCKROACH_LOCALITY {parsed[0].locality} is invalid for a single location; leave it out of {parsed[0]}."
                )
            return cls(parsed[0])
        for uri in parsed:
            if uri.locality is None:
                raise BadInput(
                    f"Several URIs are given, but {uri} does not say which locality it is for: add COCKROACH_LOCALITY."
                )
        defaults = [uri for uri in parsed if uri.locality == DEFAULT_LOCALITY]
        if len(defaults) != 1:
            raise BadInput(f"Of several URIs exactly one must have COCKROACH_LOCALITY=default, not {len(defaults) or 'none'}.")
        # Spaces around a tier's words mean nothing; with them no node would ever match.
        others = tuple((str(Locality.parse(uri.locality or "")), uri) for uri in parsed if uri.locality != DEFAULT_LOCALITY)
        _check_names([tier for tier, _ in others])
        return cls(defaults[0], others)

    @property
    def localities(self) -> tuple[str, ...]:
        """`default` and the tiers, in a fixed order."""
        return (DEFAULT_LOCALITY, *sorted(tier for tier, _ in self.others))

    def choose(self, node: Locality) -> str | None:
        """The tier whose URI gets the files of a node there: of the node's tiers the last, which is the most specific, that
        has one. None: the default gets them."""
        tiers = {tier for tier, _ in self.others}
        return next((f"{key}={value}" for key, value in reversed(node.tiers) if f"{key}={value}" in tiers), None)

    def check_extendable(self) -> None:
        """Raise Refused if a chain with data in one of the places could not be built upon."""
        for uri in self._all:
            uri.check_extendable()

    def redacted(self) -> str:
        """The text without secrets."""
        return "\n".join(uri.redacted() for uri in self._all)

    def revealed(self) -> str:
        """The text with secrets; parses to an equal value."""
        return "\n".join(uri.revealed() for uri in self._all)

    @property
    def _all(self) -> tuple[StorageUri, ...]:
        return (self.default, *(uri for _, uri in self.others))


def place_name(tier: str) -> str:
    """A locality's tier as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9=-]", "_", tier)


def _check_names(tiers: Sequence[str]) -> None:
    names: dict[str, str] = {}
    for tier in tiers:
        if tier in names.values():
            raise BadInput(f"Several URIs are for the locality {tier}; give one of them.")
        if len(name := place_name(tier)) > _MAX_NAME:
            raise BadInput(f"The locality {tier[:40]}... is longer than {_MAX_NAME} characters; shorten it.")
        if name in names:
            raise BadInput(f"The localities {names[name]} and {tier} have the same name in files, {name}; rename one of them.")
        names[name] = tier
