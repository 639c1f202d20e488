"""The base of all stored values: immutable, strict about unknown fields, JSON both ways."""

from __future__ import annotations

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
            place = ".".join(str(part) for part in first["loc"]) or "the document"
            raise Damaged(f"{where} cannot be read as {cls.__name__}: {place}: {first['msg']}.") from error
