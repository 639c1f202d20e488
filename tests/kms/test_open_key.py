"""Opening a key: no SDK before it is needed, none but its own, and nothing is contacted."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from spanvault.config.connections import EnvironmentConnections
from spanvault.config.settings import Settings
from spanvault.crypto.kms import open_key
from spanvault.errors import BadInput, Refused

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


def of_connection(**extra: object) -> EnvironmentConnections:
    known = {"conn_type": "aws", "login": "k", "password": "hunter2", "extra": extra}
    return EnvironmentConnections({"AIRFLOW_CONN_KEYS": json.dumps(known)})


@pytest.mark.parametrize(
    "extra",
    [
        {"endpoint_url": "http://kms.example"},
        {"endpoint_url": "HTTP://kms.example"},
        {"endpoint_url": "https://kms.example", "service_config": {"kms": {"endpoint_url": "http://kms.example"}}},
    ],
)
def test_a_data_key_does_not_travel_in_the_clear_to_a_connections_endpoint(extra: dict[str, object]) -> None:
    with pytest.raises(BadInput, match="endpoint for KMS of the connection 'keys' must be https") as caught:
        open_key("aws:///alias/a?REGION=us-east-1&conn_id=keys", settings=Settings(), connections=of_connection(**extra))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("endpoint", ["https://kms.example", "http://127.0.0.1:4566"])
def test_a_connections_endpoint_is_its_administrators_choice(endpoint: str) -> None:
    settings = Settings(allowed_destinations=("s3://bucket/",))
    known = of_connection(endpoint_url=endpoint)
    assert open_key("aws:///alias/a?REGION=us-east-1&conn_id=keys", settings=settings, connections=known).key_id


def test_an_endpoint_in_a_keys_uri_is_within_the_perimeter() -> None:
    uri = "aws:///alias/a?REGION=us-east-1&conn_id=keys&AWS_ENDPOINT=https%3A%2F%2Fkms.example"
    with pytest.raises(Refused, match="not in SPANVAULT_ALLOWED_DESTINATIONS"):
        open_key(uri, settings=Settings(allowed_destinations=("s3://bucket/",)), connections=of_connection())
    within = Settings(allowed_destinations=("s3://bucket/", "aws-kms:///?AWS_ENDPOINT=https://kms.example"))
    assert open_key(uri, settings=within, connections=of_connection()).key_id
