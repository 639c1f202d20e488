"""FakeGoogleKms: as much of Google Cloud KMS as encrypting with a symmetric key takes, with real AES-256-GCM.

A gRPC server with TLS. The official client comes to it because tests lead the connections that its transport opens here;
it checks the tokens that service accounts sign for themselves. `answer` stands for the sign-in that hands out tokens of
other accounts (behind FakeHosts). What it does not prove: Google's own rights and cryptography. Held to
https://cloud.google.com/kms/docs/reference/rpc/google.cloud.kms.v1 and
https://cloud.google.com/iam/docs/reference/credentials/rest/v1/projects.serviceAccounts/generateAccessToken.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import google_crc32c
import grpc  # type: ignore[import-untyped]
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from google.auth import jwt
from google.cloud.kms_v1 import DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse
from google.cloud.kms_v1.services.key_management_service.transports import KeyManagementServiceGrpcTransport

from tests.kit.certificates import self_signed
from tests.kit.fake_hosts import Answer

HOST = "cloudkms.googleapis.com"
_SERVICE = "google.cloud.kms.v1.KeyManagementService"
_SCOPE = "https://www.googleapis.com/auth/cloudkms"


@dataclass
class FakeCryptoKey:
    """A key: its versions from 1, the last of which is the primary one, and those that are disabled."""

    versions: list[bytes] = field(default_factory=lambda: [os.urandom(32)])
    disabled: set[int] = field(default_factory=set)


class FakeGoogleKms:
    """A context manager. `keys` by resource name; `denied` accounts may do nothing; `may_become` are (account, account) that
    the first may act as; `failures` are given to the next calls instead of answers; `damage` changes an answer on its way;
    `calls` are (method, account) of each call."""

    def __init__(self) -> None:
        self.keys: dict[str, FakeCryptoKey] = {}
        self.denied: set[str] = set()
        self.may_become: set[tuple[str, str]] = set()
        self.failures: list[grpc.StatusCode] = []
        self.damage: Callable[[Any], Any] = lambda answer: answer
        self.calls: list[tuple[str, str]] = []
        self._accounts: dict[str, tuple[str, bytes]] = {}
        self._tokens: dict[str, str] = {}
        self.certificate, private = self_signed([HOST])
        self._server = grpc.server(ThreadPoolExecutor(max_workers=2))
        self.port = self._server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(private, self.certificate)]))
        self._server.add_generic_rpc_handlers((self._handlers(),))

    def __enter__(self) -> FakeGoogleKms:
        self._server.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.stop(None).wait()

    def create_channel(self, host: str = HOST, **options: Any) -> grpc.Channel:
        """What the official transport's create_channel does, with the connection led here; the name is still checked."""
        assert host == f"{HOST}:443"
        given = [*options.pop("options"), ("grpc.ssl_target_name_override", HOST)]
        options["ssl_credentials"] = grpc.ssl_channel_credentials(self.certificate)
        return ORIGINAL_CREATE_CHANNEL(f"127.0.0.1:{self.port}", options=given, **options)

    def add_account(self, name: str) -> dict[str, str]:
        """A service account `name`; returns its key file."""
        private = rsa.generate_private_key(65537, 2048)
        pem = serialization.Encoding.PEM
        public = private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
        key_id, email = uuid.uuid4().hex, f"{name}@p-1.iam.gserviceaccount.com"
        self._accounts[key_id] = (email, public)
        secret = private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
        return {
            "type": "service_account",
            "project_id": "p-1",
            "private_key_id": key_id,
            "private_key": secret,
            "client_email": email,
            "token_uri": "https://oauth2.googleapis.com/token",
        }

    def add_token(self, email: str) -> str:
        """An access token of the account `email`, as the sign-in hands out."""
        token = uuid.uuid4().hex
        self._tokens[token] = email
        return token

    def verified(self, token: str) -> str | None:
        """The account that a token belongs to: one that was handed out, or one that an account signed itself."""
        if token in self._tokens:
            return self._tokens[token]
        try:
            email, public = self._accounts[jwt.decode_header(token)["kid"]]  # type: ignore[no-untyped-call]
            claims = jwt.decode(token, certs=public, verify=True)  # type: ignore[no-untyped-call]
        except (KeyError, ValueError):
            return None
        return email if claims["iss"] == email else None

    def answer(self, method: str, host: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """The sign-in: an account's own token, and tokens of the accounts that it may act as."""
        if (method, host, target) == ("POST", "oauth2.googleapis.com", "/token"):
            account = self.verified(parse_qs(body.decode())["assertion"][0])
            if account is None:
                return Answer(400, {"error": "invalid_grant", "error_description": "Invalid JWT Signature."})
            return Answer(200, {"access_token": self.add_token(account), "expires_in": 3600, "token_type": "Bearer"})
        source, asked = self.verified(headers.get("authorization", "").removeprefix("Bearer ")), json.loads(body)
        wanted = re.fullmatch(r"/v1/projects/-/serviceAccounts/(.+):generateAccessToken", target)
        if host != "iamcredentials.googleapis.com" or wanted is None or asked["scope"] != [_SCOPE]:
            return Answer(404, {"error": {"code": 404, "status": "NOT_FOUND"}})
        chain = [source, *(name.removeprefix("projects/-/serviceAccounts/") for name in asked["delegates"]), wanted[1]]
        if not all(pair in self.may_become for pair in itertools.pairwise(chain)):
            message = "Permission 'iam.serviceAccounts.getAccessToken' denied on resource (or it may not exist)."
            return Answer(403, {"error": {"code": 403, "message": message, "status": "PERMISSION_DENIED"}})
        return Answer(200, {"accessToken": self.add_token(wanted[1]), "expireTime": "2999-01-01T00:00:00Z"})

    def _handlers(self) -> grpc.GenericRpcHandler:
        methods: dict[str, tuple[Any, Any, Any]] = {
            "Encrypt": (self._encrypt, EncryptRequest, EncryptResponse),
            "Decrypt": (self._decrypt, DecryptRequest, DecryptResponse),
        }
        return grpc.method_handlers_generic_handler(
            _SERVICE,
            {
                name: grpc.unary_unary_rpc_method_handler(
                    self._guarded(name, call), request_deserializer=asked.deserialize, response_serializer=given.serialize
                )
                for name, (call, asked, given) in methods.items()
            },
        )

    def _guarded(self, method: str, call: Callable[[Any, FakeCryptoKey, grpc.ServicerContext], Any]) -> Callable[..., Any]:
        def guarded(request: Any, context: grpc.ServicerContext) -> Any:
            if self.failures:
                context.abort(self.failures.pop(0), "as the test asked")
            sent = {str(name): str(value) for name, value in context.invocation_metadata()}
            account = self.verified(sent.get("authorization", "").removeprefix("Bearer "))
            if account is None:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "Request had invalid authentication credentials.")
            self.calls.append((method, str(account)))
            denied = f"Permission 'cloudkms.cryptoKeyVersions.use' denied on resource '{request.name}' (or it may not exist)."
            if account in self.denied:
                context.abort(grpc.StatusCode.PERMISSION_DENIED, denied)
            if request.name not in self.keys:
                context.abort(grpc.StatusCode.NOT_FOUND, f"CryptoKey {request.name} not found.")
            return self.damage(call(request, self.keys[request.name], context))

        return guarded

    def _encrypt(self, request: EncryptRequest, key: FakeCryptoKey, context: grpc.ServicerContext) -> EncryptResponse:
        aad = request.additional_authenticated_data
        _check_crc(request.plaintext, request.plaintext_crc32c, context)
        _check_crc(aad, request.additional_authenticated_data_crc32c, context)
        number, nonce = len(key.versions), os.urandom(12)
        _check_enabled(request.name, key, number, context)
        ciphertext = bytes([number]) + nonce + AESGCM(key.versions[-1]).encrypt(nonce, request.plaintext, aad)
        return EncryptResponse(
            name=f"{request.name}/cryptoKeyVersions/{number}",
            ciphertext=ciphertext,
            ciphertext_crc32c=google_crc32c.value(ciphertext),
            verified_plaintext_crc32c=True,
            verified_additional_authenticated_data_crc32c=True,
        )

    def _decrypt(self, request: DecryptRequest, key: FakeCryptoKey, context: grpc.ServicerContext) -> DecryptResponse:
        _check_crc(request.ciphertext, request.ciphertext_crc32c, context)
        _check_crc(request.additional_authenticated_data, request.additional_authenticated_data_crc32c, context)
        number = request.ciphertext[0] if request.ciphertext else 0
        try:
            secret = key.versions[number - 1] if number else b""
            nonce, sealed = request.ciphertext[1:13], request.ciphertext[13:]
            plaintext = AESGCM(secret).decrypt(nonce, sealed, request.additional_authenticated_data)
        except (InvalidTag, IndexError, ValueError):
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "Decryption failed: verify that 'name' refers to the correct CryptoKey."
            )
        _check_enabled(request.name, key, number, context)
        return DecryptResponse(plaintext=plaintext, plaintext_crc32c=google_crc32c.value(plaintext))


ORIGINAL_CREATE_CHANNEL = KeyManagementServiceGrpcTransport.create_channel


def encoded(key_file: dict[str, str]) -> str:
    """A key file as CREDENTIALS takes it."""
    return base64.urlsafe_b64encode(json.dumps(key_file).encode()).decode()


def _check_crc(data: bytes, expected: Any, context: grpc.ServicerContext) -> None:
    if google_crc32c.value(data) != expected:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "The checksum does not match the data.")


def _check_enabled(name: str, key: FakeCryptoKey, number: int, context: grpc.ServicerContext) -> None:
    if number in key.disabled:
        message = f"{name}/cryptoKeyVersions/{number} is not enabled, current state is: DISABLED."
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, message)
