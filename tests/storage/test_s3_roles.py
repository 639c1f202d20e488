"""Roles on S3: chains, external ids, refusals, renewal; Airflow connections that name them.

SeaweedFS's STS checks who may assume what, and knows no external ids; that those are sent is seen on moto's.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from moto.sts.models import sts_backends

from spanvault.embedded.seaweed import SeaweedServer
from spanvault.errors import BadInput, Refused, Retryable
from spanvault.storage.base import Storage
from tests.kit.http_stub import answering, silent
from tests.kit.seaweed_roles import FIRST, FORBIDDEN, SECOND, UNVERSIONED, seaweed_with_roles
from tests.kit.tcp_proxy import TcpProxy
from tests.storage.conftest import OpenStorage

pytestmark = pytest.mark.slow

Uri = Callable[..., str]
BUCKET = "roles"
EXPIRED = (
    b"<ErrorResponse><Error><Type>Sender</Type><Code>ExpiredTokenException</Code><Message>The security token included in the "
    b"request is expired</Message></Error></ErrorResponse>"
)
EXPIRED_S3 = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"


@pytest.fixture(scope="module")
def server(servers_folder: Path) -> Iterator[SeaweedServer]:
    """A server with roles, and a bucket."""
    with seaweed_with_roles(servers_folder / "seaweed-roles") as server:
        server.create_bucket(BUCKET)
        yield server


@pytest.fixture
def uri(server: SeaweedServer) -> Uri:
    """Makes URIs of the bucket, with a chain of roles."""

    def uri(*roles: str, port: int | None = None, **params: str) -> str:
        text = server.uri(BUCKET, "a").replace(f":{server.port}", f":{port or server.port}")
        return text + f"&ASSUME_ROLE={'%2C'.join(roles)}" + "".join(f"&{name}={value}" for name, value in params.items())

    return uri


@pytest.fixture
def sts(server: SeaweedServer) -> Iterator[TcpProxy]:
    """A proxy before the server; a role is assumed by `POST /`."""
    with TcpProxy(server.port) as proxy:
        yield proxy


def assumed(proxy: TcpProxy) -> int:
    return sum(line.startswith("POST / ") for line in proxy.requests)


@pytest.mark.parametrize("roles", [(FIRST,), (FIRST, SECOND)], ids=["one", "chain"])
def test_a_chain_of_roles_gives_the_rights(opened: OpenStorage, uri: Uri, sts: TcpProxy, roles: tuple[str, ...]) -> None:
    storage = opened(uri(*roles, port=sts.port))
    assert sts.requests == []
    storage.put("key", b"1", create_only=False)
    assert storage.get("key") == b"1"
    assert assumed(sts) >= len(roles)


def test_credentials_that_end_are_renewed(opened: OpenStorage, uri: Uri, sts: TcpProxy) -> None:
    storage = opened(uri(FIRST, port=sts.port))
    storage.put("key", b"1")
    before = assumed(sts)
    assert storage.get("key") == b"1"
    assert assumed(sts) > before


@pytest.mark.parametrize("roles", [(FORBIDDEN,), (FIRST, FORBIDDEN), (FORBIDDEN, FIRST)], ids=["one", "last", "first"])
def test_the_role_that_may_not_be_assumed_is_named(
    opened: OpenStorage, uri: Uri, caplog: pytest.LogCaptureFixture, roles: tuple[str, ...]
) -> None:
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(BadInput, match=r"role arn:.*forbidden cannot be assumed \(AccessDenied") as e,
    ):
        opened(uri(*roles)).get("key")
    assert "needs the rights" not in str(e.value)
    assert not any(record.exc_info for record in caplog.records)


def test_roles_may_come_from_a_connection(opened: OpenStorage, uri: Uri, server: SeaweedServer) -> None:
    def connection(**extra: object) -> dict[str, str]:
        fields = {
            "conn_type": "aws",
            "extra": {
                "aws_access_key_id": server.access_key,
                "aws_secret_access_key": server.secret_key,
                "service_config": {"s3": {"endpoint_url": server.endpoint}},
                "config_kwargs": {"s3": {"addressing_style": "path"}},
                **extra,
            },
        }
        return {"AIRFLOW_CONN_STORE": json.dumps(fields)}

    place = f"s3://{BUCKET}/connection?conn_id=store"
    storage = opened(place, connection(role_arn=FIRST))
    storage.put("key", b"1")
    assert opened(f"{place}&ASSUME_ROLE={SECOND}", connection(role_arn=FIRST)).get("key") == b"1"
    with pytest.raises(BadInput, match="forbidden cannot be assumed"):
        opened(place, connection(role_arn=FORBIDDEN)).get("key")
    with silent() as port, pytest.raises(Retryable, match=f"role {FIRST}: http://127.0.0.1:{port} did not answer in time"):
        far = {"sts": {"endpoint_url": f"http://127.0.0.1:{port}"}, "s3": {"endpoint_url": server.endpoint}}
        opened(place, connection(role_arn=FIRST, service_config=far), storage_attempts=1, storage_read_timeout=0.2).get("key")


def test_a_profile_of_the_machine(
    opened: OpenStorage, server: SeaweedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "credentials").write_text(
        f"[backups]\naws_access_key_id = {server.access_key}\naws_secret_access_key = {server.secret_key}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    connections = {
        "AIRFLOW_CONN_STORE": json.dumps({
            "conn_type": "aws",
            "extra": {"profile_name": "backups", "endpoint_url": server.endpoint},
        }),
        "AIRFLOW_CONN_NONE": json.dumps({"conn_type": "aws", "extra": {"profile_name": "nobody"}}),
    }
    opened(f"s3://{BUCKET}/profile?conn_id=store&AWS_USE_PATH_STYLE=true", connections).put("key", b"1")
    with pytest.raises(BadInput, match="nobody"):
        opened(f"s3://{BUCKET}/profile?conn_id=none", connections)
    with pytest.raises(Refused, match="SPANVAULT_EXTERNAL_IO_DISABLE_IMPLICIT_CREDENTIALS"):
        opened(f"s3://{BUCKET}/a?conn_id=store", connections, external_io_disable_implicit_credentials=True)


def test_external_id_and_session_name_are_sent(opened: OpenStorage) -> None:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        role = "arn:aws:iam::123456789012:role/partner"
        keys = "AWS_ACCESS_KEY_ID=k&AWS_SECRET_ACCESS_KEY=s&AWS_USE_PATH_STYLE=true&AWS_REGION=us-east-1"
        endpoint = f"AWS_ENDPOINT=http://{host}:{port}"
        storage = opened(f"s3://bucket/a?{keys}&{endpoint}&ASSUME_ROLE={role}%3Bexternal_id%3Dpartner-7")
        assert storage_is_reached(storage)
        extra = {
            "role_arn": role,
            "assume_role_kwargs": {"ExternalId": "partner-8", "RoleSessionName": "nightly"},
            "endpoint_url": f"http://{host}:{port}",
        }
        connection = {"conn_type": "aws", "login": "k", "password": "s", "extra": extra}
        known = {"AIRFLOW_CONN_STORE": json.dumps(connection)}
        assert storage_is_reached(opened("s3://bucket/a?conn_id=store&AWS_USE_PATH_STYLE=true", known))
        seen = [one for account in sts_backends.values() for one in account["aws"].assumed_roles]
        assert {(one.role_arn, one.external_id, one.session_name) for one in seen} == {
            (role, "partner-7", "spanvault"),
            (role, "partner-8", "nightly"),
        }
    finally:
        server.stop()


def storage_is_reached(storage: Storage) -> bool:
    with pytest.raises(BadInput, match="There is no bucket"):
        storage.get("key")
    return True


def test_an_expired_token_is_one_sentence(opened: OpenStorage, uri: Uri) -> None:
    with answering(400, EXPIRED_S3) as stub:
        given = uri(port=stub.port).replace("&ASSUME_ROLE=", "&AWS_SESSION_TOKEN=hunter2")
        with pytest.raises(BadInput, match=r"the credentials have expired; give fresh ones\.$") as caught:
            opened(given).get("key")
        assert "hunter2" not in str(caught.value)
    with answering(403, EXPIRED) as stub, pytest.raises(BadInput, match=r"the credentials have expired; give fresh ones\.$"):
        opened(uri(FIRST, port=stub.port)).get("key")


def test_an_expired_token_of_a_role_is_tried_again(opened: OpenStorage, uri: Uri, server: SeaweedServer) -> None:
    extra = {
        "role_arn": FIRST,
        "service_config": {"sts": {"endpoint_url": server.endpoint}},
        "config_kwargs": {"s3": {"addressing_style": "path"}},
    }
    with answering(400, EXPIRED_S3) as stub:
        connection = {"conn_type": "aws", "login": server.access_key, "password": server.secret_key}
        connection |= {"extra": {**extra, "endpoint_url": f"http://127.0.0.1:{stub.port}"}}  # type: ignore[dict-item]
        with pytest.raises(Retryable, match="the temporary credentials have expired"):
            opened(f"s3://{BUCKET}/a?conn_id=store", {"AIRFLOW_CONN_STORE": json.dumps(connection)}).get("key")


def test_without_rights_on_versions_nothing_is_hidden(opened: OpenStorage, uri: Uri, server: SeaweedServer) -> None:
    plain = opened(uri(UNVERSIONED))
    plain.put("key", b"1")
    plain.delete("key")
    plain.delete("key")
    assert plain.head("key") is None
    client = server.client()
    client.create_bucket(Bucket="versions", ObjectLockEnabledForBucket=True)
    client.close()
    versioned = opened(uri(UNVERSIONED).replace(f"s3://{BUCKET}/", "s3://versions/"))
    versioned.put("key", b"1")
    with pytest.raises(BadInput, match=r"refused access \(AccessDenied\): .* where it keeps versions, to list and delete these"):
        versioned.delete("key")
    assert versioned.get("key") == b"1"
    versioned.delete("none")
