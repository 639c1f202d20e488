"""From the form's scope and names to the engine's targets. Names are written as in SQL: `a.b.c`, quoted where needed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from spanvault.errors import BadInput
from spanvault.model.target import ClusterTarget, DatabaseTarget, SchemaTarget, TablePattern, TableTarget

Scope = Literal["cluster", "database", "schema", "table"]
AnyTarget = ClusterTarget | DatabaseTarget | SchemaTarget | TableTarget
SCOPES: tuple[Scope, ...] = ("cluster", "database", "schema", "table")

_IDENTIFIER = r'"(?:[^"]|"")+"|[^".]+'
_NAME = re.compile(rf"(?:{_IDENTIFIER})(?:\.(?:{_IDENTIFIER}))*")
_PART = re.compile(r'"((?:[^"]|"")+)"|([^".]+)')


def target_of(scope: str, names: Sequence[str] | str) -> AnyTarget:
    """The target. `names`: one per element or line; `schema.*` stands for all tables of a schema.

    Raises BadInput for names that the scope does not take.
    """
    if scope not in SCOPES:
        raise BadInput(f"The scope {scope!r} is not one of {', '.join(SCOPES)}.")
    lines = names.splitlines() if isinstance(names, str) else [str(name) for name in names]
    chosen = [line.strip() for line in lines if line.strip()]
    if scope == "cluster":
        if chosen:
            raise BadInput(f"The scope is the whole cluster, but names are given ({', '.join(chosen)}); choose another scope.")
        return ClusterTarget()
    if not chosen:
        raise BadInput(f"The scope {scope!r} needs at least one name, one per line.")
    if scope == "database":
        return DatabaseTarget(names=tuple(_parts(name, 1)[0] for name in chosen))
    if scope == "schema":
        pairs = [_parts(name, 2) for name in chosen]
        return SchemaTarget(names=tuple((parts[0] if len(parts) == 2 else None, parts[-1]) for parts in pairs))
    return TableTarget(patterns=tuple(_pattern(name) for name in chosen))


def _pattern(name: str) -> TablePattern:
    parts = _parts(name, 3)
    return TablePattern(
        database=parts[0] if len(parts) == 3 else None,
        schema_name=parts[-2] if len(parts) > 1 else "public",
        name=None if parts[-1] == "*" else parts[-1],
    )


def _parts(name: str, most: int) -> list[str]:
    """The identifiers of a dotted name, quotes removed."""
    parts = [quoted.replace('""', '"') or plain for quoted, plain in _PART.findall(name)]
    if not _NAME.fullmatch(name) or len(parts) > most:
        form = ("database", "database.schema", "database.schema.table")[most - 1]
        raise BadInput(f"The name {name!r} cannot be read; write it as {form}, with double quotes around unusual names.")
    return parts
