"""Positions in a source's history: LSNs, cuts and the text forms of times.

A PostgreSQL LSN is a byte position in the write-ahead log, written as two hexadecimal halves (`16/B374D848`;
https://www.postgresql.org/docs/18/datatype-pg-lsn.html).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Self

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from spanvault.errors import BadInput
from spanvault.model.base import Value

_BACKUP_ID = re.compile(r"(\d{4})(\d{2})(\d{2}-\d{6}\.\d{2})-(\d{6})")
_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")


class Lsn(int):
    """A log position in bytes; prints and stores as `X/Y`."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `X/Y`. Raises BadInput."""
        match = _LSN.fullmatch(text)
        if match is None:
            raise BadInput(f"{text!r} is not a log position; write it as in '16/B374D848'.")
        return cls((int(match[1], 16) << 32) + int(match[2], 16))

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:08X}"

    def __repr__(self) -> str:
        return f"Lsn({self})"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def read(value: object) -> Lsn:
            if isinstance(value, Lsn):
                return value
            if isinstance(value, str):
                try:
                    return cls.parse(value)
                except BadInput as error:
                    raise ValueError(str(error)) from error
            raise ValueError("a log position is text like '16/B374D848'")

        return core_schema.no_info_plain_validator_function(
            read, serialization=core_schema.plain_serializer_function_ser_schema(str, when_used="json")
        )


class Cut(Value):
    """A position with the time of the newest commit at or before it (UTC, microseconds)."""

    lsn: Lsn
    time: datetime

    def __str__(self) -> str:
        return f"{self.lsn} ({format_time(self.time)})"


def utc(moment: datetime) -> datetime:
    """The same moment in UTC. Raises ValueError for a naive time: it could mean anything."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment!r} has no time zone")
    return moment.astimezone(UTC)


def format_time(moment: datetime) -> str:
    """`2026-11-22 14:30:00.000000+00`, CockroachDB's and PostgreSQL's common form."""
    return utc(moment).strftime("%Y-%m-%d %H:%M:%S.%f+00")


def subdir_of(moment: datetime) -> str:
    """A chain's path in its collection: `2026/11/22-143000.00`, UTC, hundredths of a second (cut off, not rounded)."""
    moment = utc(moment)
    return f"{moment:%Y/%m/%d-%H%M%S}.{moment.microsecond // 10_000:02d}"


def backup_id(subdir: str, number: int) -> str:
    """What names one layer in its collection: `20261122-143000.00-000003`, the chain's path and the layer's number."""
    return f"{subdir.replace('/', '')}-{number:06d}"


def layer_of_id(text: str) -> tuple[str, int] | None:
    """(chain's path, layer's number) of a backup's ID; None for a text that is none."""
    match = _BACKUP_ID.fullmatch(text)
    return (f"{match[1]}/{match[2]}/{match[3]}", int(match[4])) if match else None


def time_of_subdir(subdir: str) -> datetime:
    """The moment that `subdir_of` was given, to the hundredth. Raises BadInput for another text."""
    if (layer := layer_of_id(subdir)) is not None:
        raise BadInput(f"{subdir!r} is the ID of one backup of a chain; here the whole chain is named, by its path {layer[0]!r}.")
    match = re.fullmatch(r"/?(\d{4}/\d{2}/\d{2}-\d{6})\.(\d{2})/?", subdir)
    try:
        if match is None:
            raise ValueError
        whole = datetime.strptime(match[1], "%Y/%m/%d-%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        raise BadInput(
            f"{subdir!r} is not a backup's path; write it as SHOW BACKUPS lists it, for example '2026/11/22-143000.00'."
        ) from None
    return whole.replace(microsecond=int(match[2]) * 10_000)
