"""Storage URIs: what is read, what is refused, what is shown."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanvault.errors import BadInput
from spanvault.model.uri import StorageUri, redact_text

KEYS = "AWS_ACCESS_KEY_ID=AKIA1&AWS_SECRET_ACCESS_KEY=hunter2"
SECRET = "hunter2"


def test_each_scheme_is_read() -> None:
    local = StorageUri.parse("file:///var/backups/shop%20one/")
    assert (local.scheme, local.host, local.path, dict(local.params)) == ("file", "", "var/backups/shop one", {})
    shared = StorageUri.parse("nodelocal://self/shop?COCKROACH_LOCALITY=default")
    assert (shared.scheme, shared.host, shared.path, shared.locality) == ("nodelocal", "self", "shop", "default")
    bucket = StorageUri.parse(f"s3://bucket/a/b?{KEYS}&AWS_ENDPOINT=http%3A%2F%2Fhost%3A8333&AWS_USE_PATH_STYLE=true")
    assert (bucket.scheme, bucket.host, bucket.path) == ("s3", "bucket", "a/b")
    assert bucket.params["AWS_ENDPOINT"] == "http://host:8333"
    assert StorageUri.parse(f"s3://bucket?{KEYS}").path == ""
    assert StorageUri.parse("file:///").path == ""


def test_secrets_are_never_shown() -> None:
    uri = StorageUri.parse(f"s3://bucket/a?{KEYS}&AWS_SESSION_TOKEN={SECRET}token&AWS_REGION=eu-west-1")
    assert uri.redacted() == (
        "s3://bucket/a?AWS_ACCESS_KEY_ID=AKIA1&AWS_SECRET_ACCESS_KEY=redacted&AWS_SESSION_TOKEN=redacted&AWS_REGION=eu-west-1"
    )
    assert str(uri) == f"{uri}" == uri.redacted()
    assert SECRET not in repr(uri) + repr([uri]) + str(uri.join("b"))
    assert uri.has_inline_secrets
    assert uri.params["AWS_SECRET_ACCESS_KEY"] == SECRET
    assert not StorageUri.parse("s3://bucket/a?conn_id=store").has_inline_secrets
    assert not StorageUri.parse("file:///a").has_inline_secrets


@pytest.mark.parametrize("path", ["", "a", "a/b c", "ü/#?&%/+", "100%25"])
@pytest.mark.parametrize("secret", [SECRET, "a+b/c=", "ü&=?#%"])
def test_revealed_text_reads_back_equal(path: str, secret: str) -> None:
    uri = StorageUri("s3", "bucket", path, (("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", secret)))
    assert StorageUri.parse(uri.revealed()) == uri
    assert pickle.loads(pickle.dumps(uri)) == uri  # noqa: S301
    assert StorageUri.parse(uri.redacted()).params["AWS_SECRET_ACCESS_KEY"] == "redacted"


def test_an_unencoded_plus_in_a_secret_is_meant() -> None:
    assert StorageUri.parse("s3://b1/?AWS_ACCESS_KEY_ID=k&AWS_SECRET_ACCESS_KEY=a+b/c").params["AWS_SECRET_ACCESS_KEY"] == "a+b/c"


def test_joining_stays_below() -> None:
    uri = StorageUri.parse(f"s3://bucket/a?{KEYS}")
    assert uri.join("b/c/").revealed() == f"s3://bucket/a/b/c?{KEYS}"
    assert uri.join("/b").path == "a/b"
    assert uri.join("") == uri
    assert StorageUri.parse("file:///").join("x").revealed() == "file:///x"
    for path in ("..", "b/../../c", "./b", "a\0"):
        with pytest.raises(BadInput, match="has a path with"):
            uri.join(path)


def test_containing_goes_by_whole_parts() -> None:
    backups = StorageUri.parse("file:///backups")
    for inside in ("file:///backups", "file:///backups/", "file:///backups/a/b"):
        assert backups.contains(StorageUri.parse(inside))
    for outside in ("file:///backups2", "file:///", "file:///a/backups", "nodelocal://self/backups"):
        assert not backups.contains(StorageUri.parse(outside))
    assert StorageUri.parse("nodelocal://self/").contains(StorageUri.parse("nodelocal://self/a"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has no scheme"),
        ("/var/backups", "has no scheme"),
        ("ftp://host/a", "unknown scheme 'ftp'"),
        ("file://var/backups", "three slashes"),
        ("file://localhost/var", "three slashes"),
        ("file:///a/../etc", "has a path with '.', '..'"),
        ("file:///a/%2e%2e/etc", "has a path with '.', '..'"),
        ("file:///a%00b", "NUL"),
        ("file:///a\nb", "cannot be read"),
        ("file:///a%ff", "cannot be read"),
        ("file:///a#b", "write it as %23"),
        ("file:///a?AWS_REGION=x", "unknown query parameters: AWS_REGION"),
        ("nodelocal://1/a", "nodelocal://1/ is not supported yet"),
        ("nodelocal:///a", "use nodelocal://self/path"),
        (f"s3:///a?{KEYS}", "needs a bucket name"),
        (f"s3://key:{SECRET}@bucket/a", "takes no user or password"),
        (f"s3://bucket/a?{KEYS}&AWS_REGOIN=x&zzz=1", "unknown query parameters: AWS_REGOIN, zzz"),
        (f"s3://bucket/a?aws_region=x&{KEYS}", "unknown query parameters: aws_region; parameter names are upper case"),
        (f"s3://bucket/a?{KEYS}&AWS_REGION=a&AWS_REGION=b", "AWS_REGION is given twice"),
        (f"s3://bucket/a?{KEYS}&AWS_REGION=", "AWS_REGION is empty"),
        (f"s3://bucket/a?{KEYS}&AWS_REGION", "cannot be read"),
        ("s3://bucket/a", "AUTH is set to 'specified' (the default), but AWS_ACCESS_KEY_ID is not set"),
        ("s3://bucket/a?AUTH=specified&AWS_ACCESS_KEY_ID=k", "but AWS_SECRET_ACCESS_KEY is not set"),
        (f"s3://bucket/a?AUTH=implicit&{KEYS}", "AUTH is set to 'implicit', but AWS_ACCESS_KEY_ID is set too"),
        ("s3://bucket/a?AUTH=magic", "unsupported value 'magic' for AUTH"),
        (f"s3://bucket/a?{KEYS}&S3_STORAGE_CLASS=COLD", "unsupported value 'COLD' for S3_STORAGE_CLASS"),
        (f"s3://bucket/a?{KEYS}&AWS_USE_PATH_STYLE=1", "unsupported value '1' for AWS_USE_PATH_STYLE"),
        (f"s3://bucket/a?{KEYS}&AWS_SERVER_ENC_MODE=aws:kms", "AWS_SERVER_KMS_ID must be set"),
        (f"s3://bucket/a?{KEYS}&AWS_SERVER_KMS_ID=x", "AWS_SERVER_KMS_ID must be set when, and only when"),
        (f"s3://bucket/a?{KEYS}&AWS_ENDPOINT=host:8333", "AWS_ENDPOINT must have the form"),
        (f"s3://bucket/a?{KEYS}&AWS_ENDPOINT=http://u:{SECRET}@host", "AWS_ENDPOINT must have the form"),
        (f"s3://bucket/a?{KEYS}&AWS_ENDPOINT=http://host:99999", "AWS_ENDPOINT must have the form"),
        (f"s3://bucket/a?{KEYS}&COCKROACH_LOCALITY=us-east", 'tier must be in the form "key=value"'),
        (f"s3://bucket/a?{KEYS}&COCKROACH_LOCALITY=region%3Da%2Czone%3Db", "must be default or one tier"),
        (f"s3://bucket/a?conn_id=store&{KEYS}", "conn_id stands instead of AUTH and keys"),
        ("s3://bucket/a?conn_id=store&AUTH=implicit", "conn_id stands instead of AUTH and keys; remove AUTH"),
    ],
)
def test_what_cannot_be_used_is_named_in_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(BadInput) as caught:
        StorageUri.parse(text)
    message = str(caught.value)
    assert sentence in message
    assert SECRET not in message
    assert message.endswith(".")
    assert "\n" not in message


@given(st.text(max_size=60) | st.builds("s3://b1/{}?{}".format, st.text(max_size=20), st.text(max_size=40)))
def test_any_text_is_read_or_refused_and_what_is_read_reads_back(text: str) -> None:
    try:
        uri = StorageUri.parse(text)
    except BadInput:
        return
    assert StorageUri.parse(uri.revealed()) == uri


@pytest.mark.parametrize("entry", ["azure-blob://box/a?AZURE_ACCOUNT_KEY=hunter2", "azure://box/a?conn_id=x"])
def test_an_allow_list_entry_of_azure_names_servers_only(entry: str) -> None:
    whole = "azure://box/?AZURE_ACCOUNT_NAME=acct&AZURE_ENDPOINT=http://host:1/acct&AZURE_ENVIRONMENT=AzureChinaCloud"
    assert set(StorageUri.parse_prefix(whole).params) == {"AZURE_ACCOUNT_NAME", "AZURE_ENDPOINT", "AZURE_ENVIRONMENT"}
    with pytest.raises(
        BadInput, match="no parameters but AZURE_ACCOUNT_NAME, AZURE_ENDPOINT, AZURE_ENVIRONMENT; azure-blob://"
    ) as e:
        StorageUri.parse_prefix(entry)
    assert SECRET not in str(e.value)
    with pytest.raises(BadInput, match="takes no parameters; gs://bucket/a has AUTH"):
        StorageUri.parse_prefix("gs://bucket/a?AUTH=implicit")


def test_an_allow_list_entry_needs_no_keys_and_takes_none() -> None:
    assert StorageUri.parse_prefix("s3://bucket/a?AWS_ENDPOINT=http://host:1").params["AWS_ENDPOINT"] == "http://host:1"
    with pytest.raises(BadInput, match="no parameters but AWS_ENDPOINT; s3://bucket/a has AWS_ACCESS_KEY_ID"):
        StorageUri.parse_prefix(f"s3://bucket/a?{KEYS}")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            f"BACKUP INTO 's3://b/a?{KEYS}&AWS_REGION=x'",
            "BACKUP INTO 's3://b/a?AWS_ACCESS_KEY_ID=AKIA1&AWS_SECRET_ACCESS_KEY=redacted&AWS_REGION=x'",
        ),
        (f"azure://c/a?AZURE_ACCOUNT_KEY={SECRET}", "azure://c/a?AZURE_ACCOUNT_KEY=redacted"),
        (f"azure://c/a?AZURE_CLIENT_SECRET={SECRET}&AUTH=x", "azure://c/a?AZURE_CLIENT_SECRET=redacted&AUTH=x"),
        (f"AccountName=a;AccountKey={SECRET}", "AccountName=a;AccountKey=redacted"),
        (f"gs://b/a?CREDENTIALS={SECRET}&AUTH=specified", "gs://b/a?CREDENTIALS=redacted&AUTH=specified"),
        (f"aws_secret_access_key={SECRET}", "aws_secret_access_key=redacted"),
        (f"postgresql://user:{SECRET}@host/db", "postgresql://user:redacted@host/db"),
        ("file:///var/backups and nothing else", "file:///var/backups and nothing else"),
    ],
)
def test_text_that_may_hold_secrets_is_redacted(text: str, shown: str) -> None:
    assert redact_text(text) == shown
