"""Encryption infos that another program made, and what every refusal of one has in common."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from pydantic import SecretStr

from spanvault.errors import SpanvaultError
from spanvault.model.encryption import EncryptionInfo, to_base64

KEY = bytes(range(32))
CHAIN = "0f8fad5b-d9cb-469f-a165-70867728950e"
CREATED = datetime(2026, 11, 22, 23, 59, 18, 780758, tzinfo=UTC)
WORDS = SecretStr("pässwörd")
WHERE = "The encryption info 2026/11/22-143000.12/ENCRYPTION-INFO-000000.json"
CHECK = "mwbgPoptstSOIiH92wNuUCplwfl2MDkEPDIdEnP5I8g="
# Made with Node.js's crypto module from docs/format.md, not with this project's code; the passphrase's key, which that
# module cannot make, by cryptography's Argon2id, whose vectors test_passphrase.py has.
FOR_PASSPHRASE: dict[str, Any] = {
    "format_version": 1,
    "chain": CHAIN,
    "number": 0,
    "created_at": "2026-11-22T23:59:18.780758Z",
    "keys": [
        {
            "kind": "passphrase",
            "salt": "YGFiY2RlZmdoaWprbG1ubw==",
            "parameters": {"memory_kib": 8192, "iterations": 2, "lanes": 3},
            "wrapped": "sLGys7S1tre4ubq7o0w60VFZdrMAnFAgVBq3P60v2ODGnMKNEpyYdShCYZ/6CRwyBdSXhBvteG2/a1Ip",
        }
    ],
    "check": CHECK,
    "mac": "DNRglDG8T+Y9574K1ujatQcGWh0UC4nU+PvGgaSEQuE=",
}
FOR_SERVICE: dict[str, Any] = {
    "format_version": 1,
    "chain": CHAIN,
    "number": 3,
    "created_at": "2026-11-22T23:59:18.780758Z",
    "keys": [
        {
            "kind": "kms",
            "key": "aws:///alias/bücher?REGION=eu-west-1",
            "key_id": "aws:eu-west-1/alias/bücher",
            "wrapped": "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBw==",
        }
    ],
    "check": CHECK,
    "mac": "EuiqjOx0BBAXWZzeBzWFuiV5FGCA8pX8KIb4llhfG20=",
}


def document(fields: dict[str, Any]) -> EncryptionInfo:
    """The fields, as read from storage."""
    return EncryptionInfo.parse(json.dumps(fields).encode(), WHERE)


def one_sentence(error: SpanvaultError, *words: str) -> None:
    """It is one, has the words, and no secret."""
    text = str(error)
    assert "\n" not in text
    assert all(word in text for word in words), text
    secrets = (KEY.hex(), repr(KEY), to_base64(KEY), WORDS.get_secret_value())
    assert not any(secret in text for secret in secrets)
