"""The base of all stored values: immutable, strict about unknown fields, JSON both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from spanvault.errors import Damaged


class Value(BaseModel):
    """An immutable value. Unknown fields are an error: they would be silently lost on the next write."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_timedelta="float")

    def to_json(self) -> bytes:
        """The value as indented UTF-8 JSON with a final newline (people read these files)."""
        return self.model_dump_json(indent=1).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Self:
        """Parse `data`; `where` names the object in the error.

        Raises Damaged when the document is not what this version writes.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise Damaged(
                f"{where} is not what Spanvault writes: {_flaw(place, first['type'], first.get('ctx', {}))}; put it back from a"
                " copy of the collection."
            ) from error


def _flaw(place: str, kind: str, limits: Mapping[str, object]) -> str:
    """What is wrong with the field `place`, from the kinds of errors at https://docs.pydantic.dev/latest/errors/validation_errors/."""
    if not place:
        return str(limits.get("error", "its bytes are no JSON object"))
    if kind == "missing":
        return f"the field {place} is missing"
    if kind == "extra_forbidden":
        return f"the field {place} is unknown"
    known = [f"{word} {limits[name]}" for name, word in _LIMITS.items() if name in limits]
    reason = f"it must be {' and '.join(known)}" if known else str(limits.get("error", "it is of another kind"))
    return f"the field {place} holds a value that it cannot have ({reason})"


_LIMITS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than", "expected": ""}
