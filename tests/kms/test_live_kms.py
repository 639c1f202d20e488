"""Keys in the clouds themselves. Each test runs where a variable names a key that may be used, and proves what the fakes
cannot: the clouds' own rights, sign-in and cryptography."""

from __future__ import annotations

import os

import pytest

from spanvault.errors import Damaged
from tests.kms.conftest import CHAIN, DATA_KEY, OTHER_CHAIN, OpenKey

VARIABLES = {
    "aws": "SPANVAULT_TEST_LIVE_AWS_KMS",
    "gs": "SPANVAULT_TEST_LIVE_GOOGLE_KMS",
    "azure-kms": "SPANVAULT_TEST_LIVE_AZURE_KMS",
}
# Azure wraps with RSA, which binds no chain.
BINDING = {name: VARIABLES[name] for name in ("aws", "gs")}


def live_uri(variable: str) -> str:
    """The URI in `variable`, or the test is skipped."""
    uri = os.environ.get(variable)
    if not uri:
        pytest.skip(f"NOT PROVEN AGAINST THE CLOUD ITSELF: set {variable} to the URI of a key to test with")
    return uri


@pytest.mark.parametrize("variable", VARIABLES.values(), ids=VARIABLES)
def test_the_cloud_unwraps_what_it_wrapped(opened: OpenKey, variable: str) -> None:
    uri = live_uri(variable)
    wrapped = opened(uri).wrap(DATA_KEY, CHAIN)
    assert DATA_KEY not in wrapped
    assert opened(uri).unwrap(wrapped, CHAIN) == DATA_KEY


@pytest.mark.parametrize("variable", VARIABLES.values(), ids=VARIABLES)
def test_the_cloud_refuses_what_was_tampered_with(opened: OpenKey, variable: str) -> None:
    key = opened(live_uri(variable))
    wrapped = key.wrap(DATA_KEY, CHAIN)
    with pytest.raises(Damaged):
        key.unwrap(wrapped[:-1] + bytes([wrapped[-1] ^ 1]), CHAIN)


@pytest.mark.parametrize("variable", BINDING.values(), ids=BINDING)
def test_the_cloud_refuses_another_chain(opened: OpenKey, variable: str) -> None:
    key = opened(live_uri(variable))
    wrapped = key.wrap(DATA_KEY, CHAIN)
    with pytest.raises(Damaged):
        key.unwrap(wrapped, OTHER_CHAIN)
