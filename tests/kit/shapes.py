"""Tables as far as the codecs of values look at them."""

from __future__ import annotations

from spanvault.model.schema import Column, Table

_OIDS = {"boolean": 16, "bytea": 17, "bigint": 20, "integer": 23, "text": 25, "date": 1082, "timestamptz": 1184, "uuid": 2950}


def column(attnum: int, name: str, type_name: str, typmod: int = -1) -> Column:
    """A column of a built-in type."""
    oid = 1700 if type_name.startswith("numeric") else _OIDS[type_name]
    return Column(attnum=attnum, name=name, type_oid=oid, type_name=type_name, typmod=typmod, base_type=type_name, type_kind="b")


def table(*columns: Column, key: tuple[int, ...] = ()) -> Table:
    """The table `s.t`."""
    return Table(oid=1, schema_name="s", name="t", columns=columns, key=key, capture="log")
