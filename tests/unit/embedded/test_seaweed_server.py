from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from botocore.exceptions import ClientError

from spanvault.embedded.seaweed import SeaweedServer


def test_a_bucket_that_was_not_made_is_not_there(seaweed: SeaweedServer) -> None:
    client = seaweed.client()
    with pytest.raises(ClientError, match="NoSuchBucket"):
        client.put_object(Bucket="never-made", Key="a", Body=b"1")
    assert "never-made" not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    client.close()


@pytest.mark.slow
def test_many_buckets_fit(seaweed: SeaweedServer) -> None:
    client = seaweed.client()
    for number in range(60):
        seaweed.create_bucket(f"many-{number}")
        client.put_object(Bucket=f"many-{number}", Key="a", Body=b"1")
    client.close()


def test_a_wrong_secret_is_refused(seaweed: SeaweedServer) -> None:
    impostor = SeaweedServer(seaweed.directory, port=seaweed.port)
    assert impostor.secret_key != seaweed.secret_key
    client = impostor.client()
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        client.list_buckets()
    client.close()


def test_the_uri_carries_what_a_client_needs(seaweed: SeaweedServer) -> None:
    parts = urlsplit(seaweed.uri("bucket", "a/b"))
    assert (parts.scheme, parts.netloc, parts.path) == ("s3", "bucket", "/a/b")
    assert parse_qs(parts.query) == {
        "AWS_ENDPOINT": [seaweed.endpoint],
        "AWS_ACCESS_KEY_ID": [seaweed.access_key],
        "AWS_SECRET_ACCESS_KEY": [seaweed.secret_key],
        "AWS_USE_PATH_STYLE": ["true"],
        "AWS_REGION": ["us-east-1"],
    }


@pytest.mark.slow
def test_what_was_stored_survives_stop_and_start(tmp_path: Path) -> None:
    with SeaweedServer(tmp_path / "weed") as server:
        server.create_bucket("kept")
        server.create_bucket("kept")
        client = server.client()
        client.put_object(Bucket="kept", Key="a", Body=b"x" * 100_000)
        server.stop()
        assert not server.is_running()
        server.start()
        assert client.get_object(Bucket="kept", Key="a")["Body"].read() == b"x" * 100_000
        client.close()
        port = server.port
    assert not list(Path("/tmp").glob(f"seaweedfs-*-{port}.sock"))
