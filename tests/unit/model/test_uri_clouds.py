"""URIs of Google Cloud Storage and Azure, and what object stores have beyond a place: roles, locks, classes."""

from __future__ import annotations

import base64
from urllib.parse import unquote

import pytest

from spanvault.errors import BadInput, Refused
from spanvault.model.uri import SECRET_PARAMETERS, StorageUri
from spanvault.model.uri_parameters import ObjectLock, Role

SECRET = "hunter2"
KEY_FILE = base64.b64encode(b'{"type": "service_account", "private_key": "hunter2"}').decode()
KEYS = "AWS_ACCESS_KEY_ID=AKIA1&AWS_SECRET_ACCESS_KEY=hunter2"
ACCOUNT = "AZURE_ACCOUNT_NAME=acct"
CLIENT = "AZURE_CLIENT_ID=id&AZURE_CLIENT_SECRET=hunter2&AZURE_TENANT_ID=tenant"
ARN = "arn:aws:iam::123456789012:role/backups"


def test_google_cloud_storage_is_read() -> None:
    uri = StorageUri.parse(f"gs://bucket.example/a/b?CREDENTIALS={KEY_FILE}&GOOGLE_BILLING_PROJECT=p&COCKROACH_LOCALITY=default")
    assert (uri.scheme, uri.host, uri.path, uri.locality) == ("gs", "bucket.example", "a/b", "default")
    assert uri.params["CREDENTIALS"] == KEY_FILE
    assert StorageUri.parse(uri.revealed()) == uri
    chain = StorageUri.parse("gs://bucket/?AUTH=implicit&ASSUME_ROLE=one@p.iam.gserviceaccount.com,two@p.iam.gserviceaccount.com")
    assert [role.name for role in chain.roles] == ["one@p.iam.gserviceaccount.com", "two@p.iam.gserviceaccount.com"]
    assert StorageUri.parse("gs://bucket?conn_id=store").params == {"conn_id": "store"}


@pytest.mark.parametrize("scheme", ["azure-blob", "azure", "azure-storage"])
def test_azure_has_one_name(scheme: str) -> None:
    uri = StorageUri.parse(
        f"{scheme}://my-box/a?{ACCOUNT}&AZURE_ACCOUNT_KEY=a+b%2Fc%3D%3D&AZURE_ENVIRONMENT=AzureUSGovernmentCloud"
    )
    assert (uri.scheme, uri.host, uri.path) == ("azure-blob", "my-box", "a")
    assert uri.params["AZURE_ACCOUNT_KEY"] == "a+b/c=="
    assert uri.params["AZURE_ENVIRONMENT"] == "AZUREUSGOVERNMENTCLOUD"
    assert uri.redacted() == (
        "azure-blob://my-box/a?AZURE_ACCOUNT_NAME=acct&AZURE_ACCOUNT_KEY=redacted&AZURE_ENVIRONMENT=AZUREUSGOVERNMENTCLOUD"
    )
    assert StorageUri.parse(uri.revealed()) == uri
    assert uri == StorageUri.parse(uri.revealed().replace("azure-blob", scheme))


@pytest.mark.parametrize(
    "parameters",
    [f"{ACCOUNT}&{CLIENT}", f"{ACCOUNT}&AUTH=implicit", f"{ACCOUNT}&AUTH=specified&AZURE_ACCOUNT_KEY=k", "conn_id=store"],
)
def test_azure_is_reached_in_one_of_four_ways(parameters: str) -> None:
    uri = StorageUri.parse(f"azure-blob://box/?{parameters}&AZURE_ENDPOINT=http%3A%2F%2F127.0.0.1%3A10000%2Facct")
    assert uri.params["AZURE_ENDPOINT"] == "http://127.0.0.1:10000/acct"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"gs://bucket/?CREDENTIALS={KEY_FILE}", KEY_FILE),
        (f"azure://box/?{ACCOUNT}&AZURE_ACCOUNT_KEY={SECRET}", SECRET),
        (f"azure://box/?{ACCOUNT}&{CLIENT}", SECRET),
        (f"s3://bucket/?{KEYS}&ASSUME_ROLE={ARN}", SECRET),
    ],
    ids=["gs", "azure-key", "azure-client", "s3"],
)
def test_no_store_shows_its_secrets(text: str, secret: str) -> None:
    uri = StorageUri.parse(text)
    assert uri.has_inline_secrets
    assert secret not in uri.redacted() + repr(uri) + repr([uri]) + f"{uri}" + str(uri.join("x"))
    assert secret in uri.params.values()
    assert secret in unquote(uri.revealed())
    again = StorageUri.parse(uri.redacted())
    assert {again.params[name] for name in SECRET_PARAMETERS & set(uri.params)} == {"redacted"}


def test_a_chain_of_roles_is_read_in_order() -> None:
    text = f"s3://bucket/?{KEYS}&ASSUME_ROLE={ARN}%2Carn:aws-cn:iam::2:role/path/next%3Bexternal_id%3Dpartner-7%3A1"
    assert StorageUri.parse(text).roles == (Role(ARN), Role("arn:aws-cn:iam::2:role/path/next", "partner-7:1"))
    assert StorageUri.parse(f"s3://bucket/?conn_id=x&ASSUME_ROLE={ARN};external_id=y").roles == (Role(ARN, "y"),)
    assert StorageUri.parse(f"s3://bucket/?{KEYS}").roles == ()


def test_locks_and_classes_are_read() -> None:
    def uri(parameters: str) -> StorageUri:
        return StorageUri.parse(f"s3://bucket/?{KEYS}{parameters}")

    assert uri("").object_lock is None
    assert uri("&OBJECT_LOCK_LEGAL_HOLD=false").object_lock is None
    assert uri("&OBJECT_LOCK_LEGAL_HOLD=true").object_lock == ObjectLock(None, 0, legal_hold=True)
    locked = uri("&OBJECT_LOCK_MODE=COMPLIANCE&OBJECT_LOCK_DAYS=30")
    assert locked.object_lock == ObjectLock("COMPLIANCE", 30, legal_hold=False)
    both = uri("&OBJECT_LOCK_MODE=GOVERNANCE&OBJECT_LOCK_DAYS=36500&OBJECT_LOCK_LEGAL_HOLD=true")
    assert both.object_lock == ObjectLock("GOVERNANCE", 36500, legal_hold=True)
    archives = {
        name: uri(f"&S3_STORAGE_CLASS={name}").is_archive for name in ("STANDARD", "GLACIER", "DEEP_ARCHIVE", "GLACIER_IR")
    }
    assert archives == {"STANDARD": False, "GLACIER": True, "DEEP_ARCHIVE": True, "GLACIER_IR": False}
    assert not uri("").is_archive
    uri("&S3_STORAGE_CLASS=GLACIER_IR").check_extendable()
    with pytest.raises(Refused, match="cannot lie in the storage class DEEP_ARCHIVE, whose objects must be brought back"):
        uri("&S3_STORAGE_CLASS=DEEP_ARCHIVE").check_extendable()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("gs:///a?AUTH=implicit", "needs a bucket name"),
        ("gs://Bucket/a?AUTH=implicit", "needs a bucket name"),
        ("gs://bucket/a", "AUTH is set to 'specified' (the default), but CREDENTIALS is not set; give it"),
        (f"gs://bucket/a?AUTH=implicit&CREDENTIALS={KEY_FILE}", "AUTH is set to 'implicit', but CREDENTIALS is set too"),
        (f"gs://bucket/a?CREDENTIALS={SECRET}", "CREDENTIALS must be the JSON of a service account's key file"),
        ("gs://bucket/a?CREDENTIALS=aHVudGVyMg==", "CREDENTIALS must be the JSON"),
        ("gs://bucket/a?CREDENTIALS=W10=", "CREDENTIALS must be the JSON"),
        (f"gs://bucket/a?conn_id=x&CREDENTIALS={KEY_FILE}", "conn_id stands instead of AUTH and keys; remove CREDENTIALS"),
        (f"gs://bucket/a?AUTH=implicit&ASSUME_ROLE={ARN}", "entry 1 of ASSUME_ROLE cannot be read"),
        ("gs://bucket/a?AUTH=implicit&ASSUME_ROLE=a@b,", "entry 2 of ASSUME_ROLE cannot be read"),
        (f"gs://bucket/a?{KEYS}", "unknown query parameters: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"),
        (f"azure://Box/a?{ACCOUNT}&AUTH=implicit", "needs a container name"),
        (f"azure://a--b/a?{ACCOUNT}&AUTH=implicit", "needs a container name"),
        (f"azure://{'b' * 64}/a?{ACCOUNT}&AUTH=implicit", "needs a container name"),
        ("azure://box/a?AUTH=implicit", "AZURE_ACCOUNT_NAME is not set"),
        ("azure://box/a?AUTH=implicit&AZURE_ACCOUNT_NAME=evil.example/", "AZURE_ACCOUNT_NAME must be 3 to 24"),
        (f"azure://box/a?{ACCOUNT}", "AUTH is set to 'specified' (the default), but AZURE_ACCOUNT_KEY is not set; give"),
        (f"azure://box/a?{ACCOUNT}&AZURE_CLIENT_ID=i&AZURE_TENANT_ID=t", "but AZURE_CLIENT_SECRET is not set"),
        (f"azure://box/a?{ACCOUNT}&AZURE_ACCOUNT_KEY={SECRET}&{CLIENT}", "AZURE_ACCOUNT_KEY and AZURE_CLIENT_ID are both set"),
        (f"azure://box/a?{ACCOUNT}&AUTH=implicit&{CLIENT}", "AUTH is set to 'implicit', but AZURE_CLIENT_ID is set too"),
        (f"azure://box/a?conn_id=x&{ACCOUNT}", "conn_id stands instead of AZURE_ACCOUNT_NAME"),
        (f"azure://box/a?conn_id=x&AZURE_ACCOUNT_KEY={SECRET}", "conn_id stands instead of AUTH and keys"),
        (f"azure://box/a?{ACCOUNT}&AUTH=implicit&AZURE_ENVIRONMENT=MOON", "unsupported value 'MOON' for AZURE_ENVIRONMENT"),
        (f"azure://box/a?{ACCOUNT}&AUTH=implicit&AZURE_ENDPOINT=ftp://h", "AZURE_ENDPOINT must have the form"),
        (f"azure://box/a?{ACCOUNT}&AUTH=implicit&AZURE_ENDPOINT=http://u:{SECRET}@h", "AZURE_ENDPOINT must have the form"),
        (f"azure://box/a?{ACCOUNT}&AUTH=implicit&AZURE_ENDPOINT=http://h/?sig={SECRET}", "AZURE_ENDPOINT must have the form"),
        (f"s3://bucket/a?{KEYS}&ASSUME_ROLE=backups", "entry 1 of ASSUME_ROLE cannot be read"),
        (f"s3://bucket/a?{KEYS}&ASSUME_ROLE={ARN},{ARN};externalid=x", "entry 2 of ASSUME_ROLE cannot be read"),
        (f"s3://bucket/a?{KEYS}&ASSUME_ROLE={ARN};external_id=", "entry 1 of ASSUME_ROLE cannot be read"),
        (f"s3://bucket/a?{KEYS}&AWS_SKIP_CHECKSUM=yes", "unsupported value 'yes' for AWS_SKIP_CHECKSUM"),
        (f"s3://bucket/a?{KEYS}&OBJECT_LOCK_MODE=NONE&OBJECT_LOCK_DAYS=1", "unsupported value 'NONE' for OBJECT_LOCK_MODE"),
        (f"s3://bucket/a?{KEYS}&OBJECT_LOCK_MODE=GOVERNANCE", "OBJECT_LOCK_MODE and OBJECT_LOCK_DAYS must be set together"),
        (f"s3://bucket/a?{KEYS}&OBJECT_LOCK_DAYS=1", "OBJECT_LOCK_MODE and OBJECT_LOCK_DAYS must be set together"),
        *(
            (f"s3://bucket/a?{KEYS}&OBJECT_LOCK_MODE=GOVERNANCE&OBJECT_LOCK_DAYS={days}", "whole number from 1 to 36500")
            for days in ("0", "-1", "1.5", "36501", "%C2%B2")
        ),
        (f"s3://bucket/a?{KEYS}&AWS_SKIP_CHECKSUM=true&OBJECT_LOCK_LEGAL_HOLD=true", "an object lock needs checksums"),
        ("file:///a?OBJECT_LOCK_LEGAL_HOLD=true", "unknown query parameters: OBJECT_LOCK_LEGAL_HOLD"),
    ],
)
def test_what_cannot_be_used_is_named_in_one_sentence_without_secrets(text: str, sentence: str) -> None:
    with pytest.raises(BadInput) as caught:
        StorageUri.parse(text)
    message = str(caught.value)
    assert sentence in message
    assert SECRET not in message
    assert KEY_FILE not in message
    assert message.endswith(".")
    assert "\n" not in message


def test_endless_values_are_refused() -> None:
    with pytest.raises(BadInput, match="CREDENTIALS must be the JSON"):
        StorageUri.parse(f"gs://bucket/a?CREDENTIALS={base64.b64encode(b'[' * 90_000).decode()}")
    with pytest.raises(BadInput, match="whole number from 1 to 36500"):
        StorageUri.parse(f"s3://bucket/a?{KEYS}&OBJECT_LOCK_MODE=GOVERNANCE&OBJECT_LOCK_DAYS={'9' * 5000}")
