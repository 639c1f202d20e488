"""Opening a key: no SDK before it is needed, none but its own, and nothing is contacted."""

from __future__ import annotations

import subprocess
import sys

import pytest

SDKS = ("boto3", "botocore", "google.cloud.kms_v1", "google.auth", "grpc", "azure.core")
VERSION = "0" * 32
OWN = {
    "none": ("", ()),
    "aws": ("aws:///alias/a?REGION=us-east-1&AUTH=implicit", ("boto3", "botocore")),
    "gs": (
        "gs:///projects/p/locations/l/keyRings/r/cryptoKeys/k?AUTH=implicit",
        ("google.cloud.kms_v1", "google.auth", "grpc"),
    ),
    "azure-kms": (f"azure-kms:///key/{VERSION}?AZURE_VAULT_NAME=vault&AUTH=implicit", ("azure.core",)),
}


@pytest.mark.parametrize("scheme", OWN)
def test_only_the_sdk_of_the_key_is_imported(scheme: str) -> None:
    uri, own = OWN[scheme]
    program = f"""
import socket, sys
def contact(*_):
    raise AssertionError("opening a key contacts nothing")
socket.getaddrinfo = socket.socket.connect = contact
from spanvault.config.connections import EnvironmentConnections
from spanvault.config.settings import Settings
from spanvault.crypto.kms import open_key
if {uri!r}:
    open_key({uri!r}, settings=Settings(), connections=EnvironmentConnections({{}}))
print(*[name for name in {SDKS!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == set(own)
