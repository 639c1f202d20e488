"""AWS KMS through boto3: against moto's server, and answers of AWS that moto does not give."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs

import httpx
import pytest

from spanvault.crypto.kms import KeyService
from spanvault.errors import BadInput, Damaged, NotFound, Refused, Retryable, SpanvaultError
from tests.kit.http_stub import answering, silent
from tests.kit.moto_server import REGION, MotoServer
from tests.kms.conftest import CHAIN, DATA_KEY, OTHER_CHAIN, OpenKey

pytestmark = pytest.mark.usefixtures("no_credentials_of_this_machine")
KEY = "1234abcd-12ab-34cd-56ef-1234567890ab"


@pytest.fixture(scope="module")
def moto(servers_folder: Path) -> Iterator[MotoServer]:
    """A running server, shared by the tests of this file."""
    with MotoServer(servers_folder / "moto") as server:
        yield server


@pytest.fixture
def strict(moto: MotoServer) -> Iterator[MotoServer]:
    """The server while it checks credentials; users and roles are made before `deny_strangers`."""
    yield moto
    moto.admit_strangers()


@pytest.fixture
def key_id(moto: MotoServer) -> str:
    """A new symmetric key."""
    return moto.kms().create_key()["KeyMetadata"]["KeyId"]


def refusal(key: KeyService, call: str, kind: type[SpanvaultError], wrapped: bytes = b"x") -> str:
    """The sentence of the error, which is of exactly this type, is one line and holds no secret."""
    with pytest.raises(SpanvaultError) as caught:
        key.wrap(DATA_KEY, CHAIN) if call == "wrap" else key.unwrap(wrapped, CHAIN)
    assert type(caught.value) is kind, caught.value
    text = str(caught.value)
    assert "hunter2" not in text + repr(caught.value) + repr(caught.value.__cause__)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("form", ["id", "arn", "alias", "alias_arn"])
def test_what_is_wrapped_is_unwrapped(opened: OpenKey, moto: MotoServer, key_id: str, form: str) -> None:
    alias = f"alias/backups-{key_id}"
    moto.kms().create_alias(AliasName=alias, TargetKeyId=key_id)
    arn = moto.kms().describe_key(KeyId=key_id)["KeyMetadata"]["Arn"]
    name = {"id": key_id, "arn": arn, "alias": alias, "alias_arn": arn.replace(f"key/{key_id}", alias)}[form]
    wrapped = opened(moto.uri(name)).wrap(DATA_KEY, CHAIN)
    assert DATA_KEY not in wrapped
    assert opened(moto.uri(name)).unwrap(wrapped, CHAIN) == DATA_KEY


def test_the_chain_is_the_encryption_context(opened: OpenKey, moto: MotoServer, key_id: str) -> None:
    wrapped = opened(moto.uri(key_id)).wrap(DATA_KEY, CHAIN)
    answer = moto.kms().decrypt(CiphertextBlob=wrapped, EncryptionContext={"spanvault-chain": CHAIN})
    assert answer["Plaintext"] == DATA_KEY


def test_another_chain_is_refused(opened: OpenKey, moto: MotoServer, key_id: str) -> None:
    key = opened(moto.uri(key_id))
    with pytest.raises(Damaged, match="of another chain"):
        key.unwrap(key.wrap(DATA_KEY, CHAIN), OTHER_CHAIN)


@pytest.mark.parametrize("place", ["tag", "text"])
def test_tampered_text_is_refused(opened: OpenKey, moto: MotoServer, key_id: str, place: str) -> None:
    wrapped = bytearray(opened(moto.uri(key_id)).wrap(DATA_KEY, CHAIN))
    # moto's blob: 36 bytes of key id, 12 of nonce, 16 of tag, then the text.
    wrapped[36 + 12 if place == "tag" else -1] ^= 1
    assert "cannot unwrap the data key" in refusal(opened(moto.uri(key_id)), "unwrap", Damaged, bytes(wrapped))


def test_another_key_does_not_unwrap(opened: OpenKey, moto: MotoServer, key_id: str) -> None:
    other = moto.kms().create_key()["KeyMetadata"]["KeyId"]
    refusal(opened(moto.uri(other)), "unwrap", BadInput, opened(moto.uri(key_id)).wrap(DATA_KEY, CHAIN))


def test_after_a_rotation_the_key_unwraps(opened: OpenKey, moto: MotoServer, key_id: str) -> None:
    wrapped = opened(moto.uri(key_id)).wrap(DATA_KEY, CHAIN)
    moto.kms().rotate_key_on_demand(KeyId=key_id)
    assert opened(moto.uri(key_id)).unwrap(wrapped, CHAIN) == DATA_KEY


@pytest.mark.parametrize("call", ["wrap", "unwrap"])
def test_a_missing_key(opened: OpenKey, moto: MotoServer, call: str) -> None:
    for name in (KEY, "alias/nobody"):
        text = refusal(opened(moto.uri(name)), call, NotFound)
        assert name in text


def test_a_key_of_another_region(opened: OpenKey, moto: MotoServer, key_id: str) -> None:
    assert "check its name, its account and REGION" in refusal(opened(moto.uri(key_id, REGION="us-west-2")), "wrap", NotFound)


def user_of(moto: MotoServer, name: str, actions: list[str]) -> dict[str, str]:
    """The keys of a new user who may take `actions`, as parameters of a URI."""
    iam = moto.client("iam")
    iam.create_user(UserName=name)
    iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=policy_of(actions))
    made = iam.create_access_key(UserName=name)["AccessKey"]
    return {"AWS_ACCESS_KEY_ID": made["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": made["SecretAccessKey"]}


def policy_of(actions: list[str]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": actions, "Resource": "*"}]})


def role_of(moto: MotoServer, name: str, actions: list[str]) -> str:
    """The ARN of a new role that may take `actions`."""
    iam = moto.client("iam")
    trust = {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": "*"}}
    arn = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [trust]}))
    iam.put_role_policy(RoleName=name, PolicyName="p", PolicyDocument=policy_of(actions))
    return str(arn["Role"]["Arn"])


def test_wrong_credentials_and_missing_rights(opened: OpenKey, strict: MotoServer, key_id: str) -> None:
    encrypts = user_of(strict, "encrypts", ["kms:Encrypt"])
    strict.deny_strangers()
    wrapped = opened(strict.uri(key_id, **encrypts)).wrap(DATA_KEY, CHAIN)
    assert "refused access" in refusal(opened(strict.uri(key_id, **encrypts)), "unwrap", BadInput, wrapped)
    # moto gives these reasons as XML, which AWS KMS does not; ANSWERS has AWS's own.
    wrong = {**encrypts, "AWS_SECRET_ACCESS_KEY": "hunter2-wrong"}
    assert "refused access" in refusal(opened(strict.uri(key_id, **wrong)), "wrap", BadInput)
    nobody = {"AWS_ACCESS_KEY_ID": "AKIANOBODY", "AWS_SECRET_ACCESS_KEY": "hunter2hunter2"}
    assert "refused access" in refusal(opened(strict.uri(key_id, **nobody)), "wrap", BadInput)


def test_a_chain_of_roles_uses_the_key(opened: OpenKey, strict: MotoServer, key_id: str) -> None:
    user = user_of(strict, "assumes", ["sts:AssumeRole"])
    middle = role_of(strict, "middle", ["sts:AssumeRole"])
    last = role_of(strict, "last", ["kms:Encrypt", "kms:Decrypt"])
    strict.deny_strangers()
    assert "refused access" in refusal(opened(strict.uri(key_id, **user)), "wrap", BadInput)
    roles = {"ASSUME_ROLE": f"{middle};external_id=tenant-1,{last}"}
    httpx.post(f"{strict.endpoint}/moto-api/recorder/start-recording").raise_for_status()
    key = opened(strict.uri(key_id, **user, **roles))
    assert key.unwrap(key.wrap(DATA_KEY, CHAIN), CHAIN) == DATA_KEY
    recorded = httpx.get(f"{strict.endpoint}/moto-api/recorder/download-recording").text
    httpx.post(f"{strict.endpoint}/moto-api/recorder/stop-recording").raise_for_status()
    bodies = [parse_qs(base64.b64decode(json.loads(line)["body"]).decode("latin-1")) for line in recorded.splitlines()]
    assumed = [(body["RoleArn"][0], body.get("ExternalId")) for body in bodies if body.get("Action") == ["AssumeRole"]]
    assert assumed == [(middle, ["tenant-1"]), (last, None)]


def test_a_role_that_may_not_be_assumed_is_named(opened: OpenKey, strict: MotoServer, key_id: str) -> None:
    user = user_of(strict, "assumes-nothing", ["kms:Encrypt"])
    role = role_of(strict, "unreachable", ["kms:Encrypt"])
    strict.deny_strangers()
    text = refusal(opened(strict.uri(key_id, **user, ASSUME_ROLE=role)), "wrap", BadInput)
    assert f"does not let these credentials assume {role}" in text


def test_a_connection_whose_role_can_be_none_is_refused_with_the_reason(opened: OpenKey, moto: MotoServer, key_id: str) -> None:
    known = connection(login="A", password="hunter2", extra={"endpoint_url": moto.endpoint, "role_arn": "backups"})
    said = refusal(opened(f"aws:///{key_id}?REGION={REGION}&conn_id=my_aws", known), "wrap", BadInput)
    assert "cannot be used as described" in said
    assert "RoleArn" in said


def test_a_role_that_cannot_be_asked_for_now_may_be_tried_later(opened: OpenKey, moto: MotoServer, key_id: str) -> None:
    services = {"kms": {"endpoint_url": moto.endpoint}, "sts": {"endpoint_url": "http://127.0.0.1:9"}}
    known = connection(login="A", password="hunter2", extra={"service_config": services})
    uri = f"aws:///{key_id}?REGION={REGION}&conn_id=my_aws"
    assert opened(uri, known).wrap(DATA_KEY, CHAIN)
    assert "AWS STS cannot be reached" in refusal(
        opened(f"{uri}&ASSUME_ROLE=arn:aws:iam::123456789012:role/r", known), "wrap", Retryable
    )


def aws_error(code: str, message: str = "the reason") -> bytes:
    """https://docs.aws.amazon.com/kms/latest/developerguide/programming-errors.html"""
    return json.dumps({"__type": code, "message": message}).encode()


ANSWERS: list[tuple[str, str, int, type[SpanvaultError], str]] = [
    ("wrap", "DisabledException", 400, BadInput, "the key is disabled; enable it"),
    ("unwrap", "DisabledException", 400, BadInput, "the key is disabled; enable it"),
    ("wrap", "KMSInvalidStateException", 400, BadInput, "it may await its deletion"),
    ("unwrap", "IncorrectKeyException", 400, Refused, "is not the key that wrapped the data key"),
    ("unwrap", "InvalidCiphertextException", 400, Damaged, "it is damaged, of another chain"),
    ("wrap", "AccessDeniedException", 400, BadInput, "need kms:Encrypt and kms:Decrypt"),
    ("wrap", "NotFoundException", 400, NotFound, "There is no key"),
    ("wrap", "InvalidKeyUsageException", 400, BadInput, "must be a symmetric one"),
    ("wrap", "ExpiredTokenException", 400, BadInput, "have expired"),
    ("wrap", "UnrecognizedClientException", 400, BadInput, "the access key AKIATEST is not known"),
    ("wrap", "InvalidSignatureException", 400, BadInput, "does not belong to the access key AKIATEST"),
    ("wrap", "ThrottlingException", 400, Retryable, "asks for fewer requests"),
    ("wrap", "KeyUnavailableException", 500, Retryable, "not available at the moment"),
    ("wrap", "KMSInternalException", 500, Retryable, "AWS KMS failed"),
    ("wrap", "SomethingNewException", 400, BadInput, "SomethingNewException: the reason"),
]


def stub_uri(port: int) -> str:
    keys = "AWS_ACCESS_KEY_ID=AKIATEST&AWS_SECRET_ACCESS_KEY=hunter2"
    return f"aws:///{KEY}?REGION={REGION}&AWS_ENDPOINT=http%3A%2F%2F127.0.0.1%3A{port}&{keys}"


@pytest.mark.parametrize(("call", "code", "status", "kind", "sentence"), ANSWERS, ids=[f"{one[0]}-{one[1]}" for one in ANSWERS])
def test_answers_of_aws_become_sentences(
    opened: OpenKey, call: str, code: str, status: int, kind: type[SpanvaultError], sentence: str
) -> None:
    with answering(status, aws_error(code)) as stub:
        text = refusal(opened(stub_uri(stub.port)), call, kind)
        assert sentence in text
        assert len(stub.requests) == (2 if kind is Retryable else 1)


def test_a_server_that_is_down(opened: OpenKey) -> None:
    assert "cannot be reached" in refusal(opened(stub_uri(9)), "wrap", Retryable)


def test_a_server_that_says_nothing(opened: OpenKey) -> None:
    with silent() as port:
        text = refusal(opened(stub_uri(port), storage_attempts=1, storage_read_timeout=0.3), "wrap", Retryable)
    assert "did not answer in time" in text


def connection(**fields: object) -> dict[str, str]:
    return {"AIRFLOW_CONN_MY_AWS": json.dumps({"conn_type": "aws", **fields})}


def test_a_connection_gives_keys_and_endpoint(opened: OpenKey, strict: MotoServer, key_id: str) -> None:
    user = user_of(strict, "airflow", ["kms:*"])
    strict.deny_strangers()
    known = connection(
        login=user["AWS_ACCESS_KEY_ID"],
        password=user["AWS_SECRET_ACCESS_KEY"],
        extra={"endpoint_url": "http://127.0.0.1:9", "service_config": {"kms": {"endpoint_url": strict.endpoint}}},
    )
    # The endpoint of a connection was chosen by whoever administers connections.
    barred = {"external_io_disable_http": True, "external_io_disable_implicit_credentials": True}
    key = opened(f"aws:///{key_id}?REGION={REGION}&conn_id=my_aws", known, **barred)
    assert key.unwrap(key.wrap(DATA_KEY, CHAIN), CHAIN) == DATA_KEY


def test_a_connections_role_comes_before_the_uris(opened: OpenKey, strict: MotoServer, key_id: str) -> None:
    user = user_of(strict, "airflow-assumes", ["sts:AssumeRole"])
    first = role_of(strict, "of-the-connection", ["sts:AssumeRole"])
    last = role_of(strict, "of-the-uri", ["kms:Encrypt"])
    strict.deny_strangers()
    keys = {"login": user["AWS_ACCESS_KEY_ID"], "password": user["AWS_SECRET_ACCESS_KEY"]}
    known = connection(**keys, extra={"endpoint_url": strict.endpoint, "role_arn": first})
    uri = f"aws:///{key_id}?REGION={REGION}&conn_id=my_aws"
    assert "refused access" in refusal(opened(uri, known), "wrap", BadInput)
    assert opened(f"{uri}&ASSUME_ROLE={last}", known).wrap(DATA_KEY, CHAIN)


def test_connections_that_cannot_be_used(opened: OpenKey) -> None:
    uri = f"aws:///{KEY}?REGION={REGION}&conn_id=my_aws"
    with pytest.raises(NotFound, match="no connection 'my_aws'"):
        opened(uri)
    with pytest.raises(BadInput, match="needs both the access key"):
        opened(uri, connection(login="A"))
    with pytest.raises(BadInput, match="aws:/// needs one of the type 'aws'"):
        opened(uri, connection(conn_type="azure"))


def test_the_machines_own_credentials(opened: OpenKey, moto: MotoServer, key_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = moto.uri(key_id, AUTH="implicit", AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")
    assert "no usable AWS credentials" in refusal(opened(uri), "wrap", BadInput)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "A")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    assert opened(uri).wrap(DATA_KEY, CHAIN)


@pytest.mark.parametrize("access", ["AUTH=implicit", "conn_id=my_aws", "AUTH=implicit&ASSUME_ROLE=arn:aws:iam::1:role/r"])
def test_the_machines_own_credentials_may_be_forbidden(opened: OpenKey, access: str) -> None:
    with pytest.raises(Refused, match="SPANVAULT_EXTERNAL_IO_DISABLE_IMPLICIT_CREDENTIALS"):
        opened(f"aws:///{KEY}?REGION={REGION}&{access}", connection(), external_io_disable_implicit_credentials=True)


def test_endpoints_in_uris_may_be_forbidden(opened: OpenKey) -> None:
    with pytest.raises(Refused, match="SPANVAULT_EXTERNAL_IO_DISABLE_HTTP") as caught:
        opened(stub_uri(9), external_io_disable_http=True)
    assert "hunter2" not in str(caught.value)


def test_nothing_shows_the_secret(opened: OpenKey) -> None:
    key = opened(stub_uri(9))
    assert "hunter2" not in repr(key) + str(key) + key.key + key.key_id
