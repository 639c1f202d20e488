"""What is no encryption info is refused when it is read, before anything is done with it."""

from __future__ import annotations

import copy
import tracemalloc
from typing import Any

import pytest

from spanvault.errors import Damaged, Refused
from spanvault.model.encryption import EncryptionInfo, PassphraseKey, to_base64
from tests.kit.encryption_infos import CHAIN, FOR_PASSPHRASE, FOR_SERVICE, WHERE, document, one_sentence


def change(path: tuple[str | int, ...], value: object) -> dict[str, Any]:
    fields = copy.deepcopy(FOR_PASSPHRASE)
    place: Any = fields
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    return fields


COSTS = ("keys", 0, "parameters")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memory_kib", 8191),
        ("memory_kib", 1024 * 1024 + 1),
        ("memory_kib", 2**32 - 1),
        ("memory_kib", 10**30),
        ("memory_kib", 0),
        ("memory_kib", -1),
        ("iterations", 0),
        ("iterations", 17),
        ("iterations", 2**32 - 1),
        ("lanes", 0),
        ("lanes", 17),
        ("lanes", 2**24),
        ("memory_kib", None),
        ("lanes", "many"),
    ],
)
def test_absurd_costs_are_refused_before_memory_is_taken(name: str, value: object) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(Damaged) as caught:
            document(change((*COSTS, name), value))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    one_sentence(caught.value, WHERE, name)


@pytest.mark.parametrize(
    ("name", "value"), [("memory_kib", 8192), ("memory_kib", 1024 * 1024), ("iterations", 16), ("lanes", 16)]
)
def test_the_bounds_themselves_are_right(name: str, value: int) -> None:
    assert isinstance(document(change((*COSTS, name), value)).keys[0], PassphraseKey)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("chain",), "not a uuid"),
        (("chain",), CHAIN.upper()),
        (("chain",), CHAIN + "\n"),
        (("number",), -1),
        (("number",), 10**6),
        (("created_at",), "yesterday"),
        (("keys",), []),
        (("keys", 0, "kind"), "sealed"),
        (("keys", 0, "salt"), "YGFi"),
        (("keys", 0, "salt"), "YGFiY2RlZmdoaWprbG1ubx=="),
        (("keys", 0, "salt"), "*" * 24),
        (("keys", 0, "wrapped"), ""),
        (("keys", 0, "wrapped"), to_base64(bytes(61))),
        (("keys", 0, "comment"), "unknown field"),
        (("check",), to_base64(bytes(31))),
        (("mac",), ""),
        (("mac",), to_base64(bytes(33))),
        (("more",), 1),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_what_no_writer_writes_is_refused(path: tuple[str | int, ...], value: object) -> None:
    with pytest.raises(Damaged) as caught:
        document(change(path, value))
    one_sentence(caught.value, WHERE, str(path[0]))


@pytest.mark.parametrize("name", sorted(FOR_PASSPHRASE))
def test_no_field_may_be_missing(name: str) -> None:
    with pytest.raises(Damaged, match=WHERE):
        document({field: value for field, value in FOR_PASSPHRASE.items() if field != name})


@pytest.mark.parametrize("version", [0, -1, None, "1", 1.5, True])
def test_versions_that_never_were(version: object) -> None:
    with pytest.raises(Damaged, match="format version"):
        document({**FOR_PASSPHRASE, "format_version": version})


def test_a_newer_version_is_refused_before_its_fields() -> None:
    with pytest.raises(Refused) as caught:
        EncryptionInfo.parse(b'{"format_version": 2, "unheard": []}', WHERE)
    one_sentence(caught.value, WHERE, "format 2", "upgrade")


@pytest.mark.parametrize("data", [b"", b"\x00" * 100, b"[]", b'"text"', b"{", b"\xff\xfe", b"[" * 100_000], ids=range(7))
def test_what_is_no_document(data: bytes) -> None:
    with pytest.raises(Damaged, match=WHERE):
        EncryptionInfo.parse(data, WHERE)


def test_a_passphrase_stands_alone() -> None:
    for more in (FOR_PASSPHRASE, FOR_SERVICE):
        with pytest.raises(Damaged, match="stands alone"):
            document(change(("keys",), [*FOR_PASSPHRASE["keys"], *more["keys"]]))


def test_a_key_is_there_once() -> None:
    with pytest.raises(Damaged, match="twice"):
        document({**FOR_SERVICE, "keys": FOR_SERVICE["keys"] * 2})


@pytest.mark.parametrize("text", ["", "a\nb", "\x1b[31m", "a\x00", "a\x7f", "a\x9bb", "x" * 2049])
@pytest.mark.parametrize("field", ["key", "key_id"])
def test_a_keys_name_can_be_shown(field: str, text: str) -> None:
    entry = {**FOR_SERVICE["keys"][0], field: text}
    with pytest.raises(Damaged, match=f"keys.0.kms.{field}"):
        document({**FOR_SERVICE, "keys": [entry]})
