"""Argon2id is used as published, and costs no more than its bounds."""

from __future__ import annotations

import subprocess
import sys
import unicodedata

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from pydantic import SecretStr

from spanvault.crypto.passphrase import PARAMETERS, passphrase_to_key
from spanvault.model.encryption import Argon2Parameters

CHEAP = Argon2Parameters(memory_kib=8192, iterations=1, lanes=1)
STARVED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), int(sys.argv[1])))
from pydantic import SecretStr
from spanvault.crypto.passphrase import passphrase_to_key
from spanvault.errors import Retryable
from spanvault.model.encryption import Argon2Parameters
try:
    passphrase_to_key(SecretStr("pw"), bytes(16), Argon2Parameters(memory_kib=1 << 20, iterations=1, lanes=1))
except Retryable as error:
    print(error)
"""


def test_argon2id_is_that_of_rfc_9106() -> None:
    """RFC 9106, section 5.3."""
    derivation = Argon2id(
        salt=b"\x02" * 16, length=32, iterations=3, lanes=4, memory_cost=32, ad=b"\x04" * 12, secret=b"\x03" * 8
    )
    assert derivation.derive(b"\x01" * 32).hex() == "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659"


def test_the_parameters_go_where_they_belong() -> None:
    """From the tests of Argon2's reference implementation: t=2, m=65536, p=1."""
    key = passphrase_to_key(SecretStr("password"), b"somesalt", Argon2Parameters(memory_kib=65536, iterations=2, lanes=1))
    assert key.hex() == "09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7"


def test_new_keys_cost_what_the_rfc_recommends() -> None:
    assert Argon2Parameters(memory_kib=65536, iterations=3, lanes=4) == PARAMETERS  # RFC 9106, section 4, second choice


def test_letters_are_the_same_however_they_are_typed() -> None:
    composed, apart = "pässwörd", unicodedata.normalize("NFD", "pässwörd")
    assert composed != apart
    keys = {passphrase_to_key(SecretStr(text), bytes(16), CHEAP) for text in (composed, apart)}
    assert len(keys) == 1
    assert passphrase_to_key(SecretStr("passwörd"), bytes(16), CHEAP) not in keys


def test_too_little_memory_is_said() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STARVED, str(700 << 20)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout == "There are not 1024 MiB of memory free, which the passphrase needs; free some.\n", done.stderr
