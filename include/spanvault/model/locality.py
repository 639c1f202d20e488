"""Localities: ordered `key=value` tiers, from the widest to the narrowest (`region=us-east,zone=a`)."""

from __future__ import annotations

from typing import Self

from spanvault.errors import BadInput
from spanvault.model.base import Value


class Locality(Value):
    """A node's place, or a filter over places. No tiers: unknown place, or a filter that everything passes."""

    tiers: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `region=us-east,zone=a`; empty text is no tiers. Raises BadInput."""
        tiers = []
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            key, equals, value = part.partition("=")
            if not (equals and key.strip() and value.strip()) or "=" in value:
                raise BadInput(f'Locality {text!r}: tier must be in the form "key=value", but found {part!r}.')
            tiers.append((key.strip(), value.strip()))
        keys = [key for key, _ in tiers]
        if len(set(keys)) != len(keys):
            raise BadInput(f"Locality {text!r} names a tier twice.")
        return cls(tiers=tuple(tiers))

    def matches(self, node: Locality) -> bool:
        """Whether a node at `node` passes this filter: every tier named here is the node's."""
        return set(self.tiers) <= set(node.tiers)

    def __str__(self) -> str:
        return ",".join(f"{key}={value}" for key, value in self.tiers)
