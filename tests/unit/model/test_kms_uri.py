"""URIs of keys: CockroachDB's forms, refusals in one sentence, and no secret in anything that is shown."""

from __future__ import annotations

import base64

import pytest

from spanvault.errors import BadInput
from spanvault.model.kms_uri import KmsUri
from spanvault.model.uri_parameters import Role

KEY = "1234abcd-12ab-34cd-56ef-1234567890ab"
ARN = f"arn:aws:kms:us-east-1:111122223333:key/{KEY}"
GOOGLE = "projects/p-1/locations/europe-west3/keyRings/ring/cryptoKeys/key"
VERSION = "0123456789abcdef0123456789abcdef"
AWS_KEYS = "AWS_ACCESS_KEY_ID=AKIA1&AWS_SECRET_ACCESS_KEY=hunter2%2Bx&AWS_SESSION_TOKEN=hunter3"
CLIENT = "AZURE_TENANT_ID=t&AZURE_CLIENT_ID=c&AZURE_CLIENT_SECRET=hunter2"
CREDENTIALS = base64.b64encode(b'{"private_key": "hunter2"}').decode()


@pytest.mark.parametrize(
    ("text", "scheme", "key"),
    [
        (f"aws:///{KEY}?AUTH=implicit&REGION=us-east-1", "aws", KEY),
        (f"aws-kms:///{ARN}?AUTH=specified&REGION=us-east-1&{AWS_KEYS}", "aws", ARN),
        ("aws:///alias%2Fbackups?AUTH=implicit&REGION=us-gov-west-1", "aws", "alias/backups"),
        (f"gs:///{GOOGLE}?AUTH=implicit", "gs", GOOGLE),
        (f"gcp-kms:///{GOOGLE}?CREDENTIALS={CREDENTIALS}", "gs", GOOGLE),
        (f"azure-kms:///key/{VERSION}?AZURE_VAULT_NAME=v-1&{CLIENT}", "azure-kms", f"key/{VERSION}"),
        (f"azure-kms:///key/{VERSION}?AZURE_VAULT_NAME=vault&AUTH=implicit", "azure-kms", f"key/{VERSION}"),
        (f"aws:///{KEY}?conn_id=my_aws&REGION=us-east-1", "aws", KEY),
        (f"gs:///{GOOGLE}?conn_id=my_google", "gs", GOOGLE),
        (f"azure-kms:///key/{VERSION}?AZURE_VAULT_NAME=vault&conn_id=my_azure", "azure-kms", f"key/{VERSION}"),
    ],
)
def test_forms(text: str, scheme: str, key: str) -> None:
    uri = KmsUri.parse(text)
    assert (uri.scheme, uri.key) == (scheme, key)
    assert KmsUri.parse(uri.revealed()) == uri


@pytest.mark.parametrize(
    ("text", "place", "key_id"),
    [
        (f"aws:///{ARN}?{AWS_KEYS}&REGION=us-east-1", f"aws:///{ARN}?REGION=us-east-1", f"aws:us-east-1:key/{KEY}"),
        (
            f"aws-kms:///{KEY}?REGION=us-east-1&AWS_ENDPOINT=https%3A%2F%2Fvpce.example&conn_id=x",
            f"aws:///{KEY}?AWS_ENDPOINT=https%3A%2F%2Fvpce.example&REGION=us-east-1",
            f"aws:us-east-1:key/{KEY}",
        ),
        (
            "aws:///arn:aws:kms:us-west-2:111122223333:alias/a?REGION=us-west-2&AUTH=implicit&ASSUME_ROLE=arn:aws:iam::1:role/r",
            "aws:///arn:aws:kms:us-west-2:111122223333:alias/a?REGION=us-west-2",
            "aws:us-west-2:alias/a",
        ),
        (f"gcp-kms:///{GOOGLE}?CREDENTIALS={CREDENTIALS}&ASSUME_ROLE=a@b.c", f"gs:///{GOOGLE}", f"gs:{GOOGLE}"),
        (
            f"azure-kms:///Key/{VERSION}?AUTH=implicit&AZURE_VAULT_NAME=Vault&AZURE_ENVIRONMENT=AzureChinaCloud",
            f"azure-kms:///Key/{VERSION}?AZURE_ENVIRONMENT=AZURECHINACLOUD&AZURE_VAULT_NAME=Vault",
            f"azure-kms:azurechinacloud/vault/key/{VERSION}",
        ),
        (
            f"azure-kms:///key/{VERSION}?{CLIENT}&AZURE_VAULT_NAME=vault",
            f"azure-kms:///key/{VERSION}?AZURE_VAULT_NAME=vault",
            f"azure-kms:azurepubliccloud/vault/key/{VERSION}",
        ),
    ],
)
def test_the_place_and_the_id_leave_out_who_asks(text: str, place: str, key_id: str) -> None:
    uri = KmsUri.parse(text)
    assert (uri.place, uri.key_id) == (place, key_id)


def test_a_multi_region_key_is_one_key() -> None:
    # https://docs.aws.amazon.com/kms/latest/developerguide/multi-region-keys-overview.html
    east, west = (
        KmsUri.parse(f"aws:///mrk-1234abcd12ab34cd56ef12345678990ab?AUTH=implicit&REGION={region}")
        for region in ("us-east-1", "us-west-2")
    )
    assert east.key_id == west.key_id
    assert east.place != west.place


def test_keys_of_two_regions_are_two() -> None:
    ids = {KmsUri.parse(f"aws:///{KEY}?AUTH=implicit&REGION={region}").key_id for region in ("us-east-1", "us-west-2")}
    assert len(ids) == 2


def test_roles_are_read_in_their_order() -> None:
    roles = "arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fa%3Bexternal_id%3Dx-1%2Carn%3Aaws%3Aiam%3A%3A2%3Arole%2Fb"
    uri = KmsUri.parse(f"aws:///{KEY}?AUTH=implicit&REGION=us-east-1&ASSUME_ROLE={roles}")
    assert uri.roles == (Role("arn:aws:iam::1:role/a", "x-1"), Role("arn:aws:iam::2:role/b"))
    google = KmsUri.parse(f"gs:///{GOOGLE}?AUTH=implicit&ASSUME_ROLE=a%40p.example%2Cb%40p.example")
    assert [role.name for role in google.roles] == ["a@p.example", "b@p.example"]
    assert KmsUri.parse(f"gs:///{GOOGLE}?AUTH=implicit").roles == ()


def test_a_secret_with_an_unencoded_plus_is_repaired() -> None:
    uri = KmsUri.parse(f"aws:///{KEY}?REGION=us-east-1&AWS_ACCESS_KEY_ID=A&AWS_SECRET_ACCESS_KEY=a+b")
    assert uri.params["AWS_SECRET_ACCESS_KEY"] == "a+b"


@pytest.mark.parametrize(
    "text",
    [
        f"aws:///{KEY}?REGION=us-east-1&{AWS_KEYS}",
        f"gs:///{GOOGLE}?CREDENTIALS={CREDENTIALS}",
        f"azure-kms:///key/{VERSION}?AZURE_VAULT_NAME=vault&{CLIENT}",
    ],
)
def test_secrets_are_not_shown(text: str) -> None:
    uri = KmsUri.parse(text)
    assert uri.has_inline_secrets
    for shown in (str(uri), repr(uri), f"{uri}", uri.redacted(), uri.place, uri.key_id):
        assert "hunter" not in shown
        assert CREDENTIALS not in shown
    assert KmsUri.parse(uri.redacted()).place == uri.place


REFUSALS = {
    "no scheme": ("key", "no scheme"),
    "unknown scheme": ("vault:///key", "unknown scheme 'vault'"),
    "unreadable": ("aws://[", "cannot be read"),
    "bad query": ("aws:///k?REGION", "cannot be read"),
    "aws host": (f"aws://{KEY}?AUTH=implicit&REGION=us-east-1", "three slashes"),
    "fragment": (f"aws:///{KEY}?AUTH=implicit&REGION=us-east-1#x", "three slashes"),
    "no key": ("aws:///?AUTH=implicit&REGION=us-east-1", "does not name a key"),
    "doubled slash": (f"aws:////{KEY}?AUTH=implicit&REGION=us-east-1", "does not name a key"),
    "other service's ARN": ("aws:///arn:aws:s3:::b?AUTH=implicit&REGION=us-east-1", "does not name a key"),
    "google key version": (f"gs:///{GOOGLE}/cryptoKeyVersions/1?AUTH=implicit", "does not name a key"),
    "google ring": ("gs:///projects/p/locations/l/keyRings/r?AUTH=implicit", "does not name a key"),
    "azure version missing": ("azure-kms:///key?AUTH=implicit&AZURE_VAULT_NAME=vault", "does not name a key"),
    "no region": (f"aws:///{KEY}?AUTH=implicit", "REGION must be set"),
    "bad region": (f"aws:///{KEY}?AUTH=implicit&REGION=evil.example/", "REGION must be set"),
    "region against ARN": (f"aws:///{ARN}?AUTH=implicit&REGION=eu-west-1", "names a key in us-east-1"),
    "no vault": (f"azure-kms:///k/{VERSION}?AUTH=implicit", "AZURE_VAULT_NAME must be set"),
    "vault elsewhere": (f"azure-kms:///k/{VERSION}?AUTH=implicit&AZURE_VAULT_NAME=evil.example%2F", "AZURE_VAULT_NAME"),
    "environment": (f"azure-kms:///k/{VERSION}?AUTH=implicit&AZURE_VAULT_NAME=vvv&AZURE_ENVIRONMENT=MARS", "unsupported value"),
    "no AUTH": (f"aws:///{KEY}?REGION=us-east-1", "AUTH is set to 'specified' .*AWS_ACCESS_KEY_ID is not set"),
    "half a key": (f"aws:///{KEY}?REGION=us-east-1&AWS_ACCESS_KEY_ID=A", "AWS_SECRET_ACCESS_KEY is not set"),
    "google without": (f"gs:///{GOOGLE}?AUTH=specified", "CREDENTIALS is not set"),
    "azure without": (f"azure-kms:///k/{VERSION}?AZURE_VAULT_NAME=vvv", "AZURE_TENANT_ID is not set"),
    "AUTH misspelt": (f"gs:///{GOOGLE}?AUTH=implict", "unsupported value 'implict' for AUTH"),
    "implicit and keys": (f"aws:///{KEY}?AUTH=implicit&REGION=us-east-1&AWS_ACCESS_KEY_ID=A", "set too"),
    "conn_id and AUTH": (f"gs:///{GOOGLE}?conn_id=x&AUTH=implicit", "conn_id stands instead"),
    "conn_id and keys": (f"azure-kms:///k/{VERSION}?AZURE_VAULT_NAME=vvv&conn_id=x&AZURE_CLIENT_ID=c", "conn_id stands instead"),
    "unknown": (f"gs:///{GOOGLE}?AUTH=implicit&REGION=x", "unknown query parameters: REGION"),
    "lower case": (f"aws:///{KEY}?auth=implicit&REGION=us-east-1", "unknown query parameters: auth; .*upper case"),
    "twice": (f"gs:///{GOOGLE}?AUTH=implicit&AUTH=implicit", "AUTH is given twice"),
    "empty": (f"gs:///{GOOGLE}?AUTH=implicit&ASSUME_ROLE=", "ASSUME_ROLE is empty"),
    "bad role": (f"aws:///{KEY}?AUTH=implicit&REGION=us-east-1&ASSUME_ROLE=role", "entry 1 of ASSUME_ROLE"),
    "bad account": (f"gs:///{GOOGLE}?AUTH=implicit&ASSUME_ROLE=a@b,c", "entry 2 of ASSUME_ROLE"),
    "bad endpoint": (f"aws:///{KEY}?AUTH=implicit&REGION=us-east-1&AWS_ENDPOINT=ftp://x", "AWS_ENDPOINT must have the form"),
    "not base64": (f"gs:///{GOOGLE}?CREDENTIALS=hunter2", "CREDENTIALS must be the JSON"),
    "secret under a wrong name": (f"gs:///{GOOGLE}?AWS_SECRET_ACCESS_KEY=hunter2", "unknown query parameters"),
    "secret twice": (f"azure-kms:///k/{VERSION}?AZURE_VAULT_NAME=vvv&{CLIENT}&AZURE_CLIENT_SECRET=hunter2", "given twice"),
}


@pytest.mark.parametrize("name", sorted(REFUSALS))
def test_refused_in_a_sentence_without_secrets(name: str) -> None:
    text, expected = REFUSALS[name]
    with pytest.raises(BadInput, match=expected) as caught:
        KmsUri.parse(text)
    assert "hunter" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "endpoint", ["http%3A%2F%2Fkms.example.com", "HTTP%3A%2F%2Fkms.example.com", "http%3A%2F%2F127.0.0.1.example.com"]
)
def test_a_data_key_does_not_travel_in_the_clear(endpoint: str) -> None:
    with pytest.raises(BadInput, match="must be https"):
        KmsUri.parse(f"aws:///key?AUTH=implicit&REGION=us-east-1&AWS_ENDPOINT={endpoint}")


def test_on_this_machine_it_may() -> None:
    uri = KmsUri.parse("aws:///key?AUTH=implicit&REGION=us-east-1&AWS_ENDPOINT=http%3A%2F%2F127.0.0.1%3A4566")
    assert uri.params["AWS_ENDPOINT"] == "http://127.0.0.1:4566"
