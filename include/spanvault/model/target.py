"""What to back up or restore."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from spanvault.model.base import Value


class ClusterTarget(Value):
    """All databases of the cluster, its roles and their memberships, at one cut."""

    kind: Literal["cluster"] = "cluster"


class DatabaseTarget(Value):
    """Whole databases by name."""

    kind: Literal["database"] = "database"
    names: tuple[str, ...] = Field(min_length=1)


class SchemaTarget(Value):
    """Whole schemas: (database or None for the connection's own, schema)."""

    kind: Literal["schema"] = "schema"
    names: tuple[tuple[str | None, str], ...] = Field(min_length=1)


class TablePattern(Value):
    """One table or view, or with `name` None every table of a schema. `database` None: the connection's own."""

    database: str | None = None
    schema_name: str = "public"
    name: str | None = None

    def __str__(self) -> str:
        parts = (self.database, self.schema_name, self.name or "*")
        return ".".join(part for part in parts if part)


class TableTarget(Value):
    """Tables and views."""

    kind: Literal["table"] = "table"
    patterns: tuple[TablePattern, ...] = Field(min_length=1)


Target = Annotated[ClusterTarget | DatabaseTarget | SchemaTarget | TableTarget, Field(discriminator="kind")]
