"""A statement's answer: named columns and rows."""

from __future__ import annotations

from spanvault.errors import Damaged, Permanent
from spanvault.model.base import Value

Cell = str | int | float | bool | None


class Result(Value):
    """Columns in order, and rows with a cell for each. Cells are plain JSON values; times are text in UTC."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...] = ()

    def dicts(self) -> list[dict[str, Cell]]:
        """The rows as mappings, for callers that want names."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


class Incomplete(Permanent):
    """Part of what was asked for could not be looked at or done; `result` is the rest."""

    def __init__(self, sentence: str, result: Result) -> None:
        super().__init__(sentence)
        self.result = result


class DamagedInPart(Damaged, Incomplete):
    """Part of what was looked at is damaged; `result` is what was found out."""
