"""Amounts in the forms people write: `50MB`, `4h`, `1h30m`."""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal

from spanvault.errors import BadInput

# As in CockroachDB: kB, MB ... are powers of 1000; KiB, MiB ... powers of 1024. Case does not matter.
_BYTE_UNITS = {
    "": 1,
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", start=1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", start=1)},
}
_BYTE_NAMES = (("TiB", 1024**4), ("TB", 1000**4), ("GiB", 1024**3), ("GB", 1000**3), ("MiB", 1024**2), ("MB", 1000**2))
_AMOUNT = re.compile(r"(\d{1,19}(?:\.\d{1,9})?)\s*([a-zA-Z]{0,3})", re.ASCII)
_MOST_BYTES = 2**63 - 1
_DURATION_UNITS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
_DURATION = re.compile(r"(?:\d{1,9}(?:\.\d{1,6})?[dhms])+", re.ASCII)
_DURATION_PART = re.compile(r"([\d.]+)([dhms])")


def parse_bytes(text: str) -> int:
    """Bytes of `50MB`, `64 MiB`, `1.5GiB` or a plain number. Raises BadInput, also for a fraction of a byte and
    for 8 EiB or more."""
    match = _AMOUNT.fullmatch(text.strip())
    factor = _BYTE_UNITS.get(match[2].lower()) if match else None
    amount = Decimal(match[1]) * factor if match and factor else Decimal(-1)
    if not 0 <= amount <= _MOST_BYTES or amount != int(amount):
        raise BadInput(f"{text!r} is not a size; write whole bytes or an amount with a unit, such as '50MB' or '64MiB'.")
    return int(amount)


def format_bytes(amount: int) -> str:
    """The shortest exact form that `parse_bytes` reads: `64MiB`, `50MB`, or the plain number."""
    for name, factor in _BYTE_NAMES:
        if amount and amount % factor == 0:
            return f"{amount // factor}{name}"
    return str(amount)


def parse_duration(text: str) -> timedelta:
    """The length of `90s`, `30m`, `4h`, `7d` or a sum such as `1h30m`. Raises BadInput."""
    if not _DURATION.fullmatch(text):
        raise BadInput(f"{text!r} is not a duration; write it as in '90s', '30m', '4h', '7d' or '1h30m'.")
    total = timedelta()
    try:
        for amount, unit in _DURATION_PART.findall(text):
            total += timedelta(**{_DURATION_UNITS[unit]: float(amount)})
    except OverflowError:
        raise BadInput(f"The duration {text!r} is too long.") from None
    return total
