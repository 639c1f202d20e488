"""FakeGoogle: the hosts that hand out Google's access tokens, and a bucket that only says who asks. For FakeHosts.

Held to https://developers.google.com/identity/protocols/oauth2/service-account,
https://cloud.google.com/iam/docs/reference/credentials/rest/v1/projects.serviceAccounts/generateAccessToken and
https://cloud.google.com/iam/docs/reference/sts/rest/v1/TopLevel/token. It does not prove Google's own rights.
"""

from __future__ import annotations

import itertools
import json
import re
import uuid
from collections.abc import Mapping
from urllib.parse import parse_qs

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth import jwt

from tests.kit.fake_hosts import Answer

HOSTS = ["oauth2.googleapis.com", "iamcredentials.googleapis.com", "sts.googleapis.com", "storage.googleapis.com"]
SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"


class FakeGoogle:
    """`may_become` are (who, account) of which the first may act as the second; `tokens` says whose each token is; `asked` are
    (who, path and query) of the requests to the bucket; `denied` tokens are answered 401; `down` hosts 503."""

    def __init__(self) -> None:
        self.may_become: set[tuple[str | None, str]] = set()
        self.tokens: dict[str, str] = {}
        self.asked: list[tuple[str | None, str]] = []
        self.denied: set[str] = set()
        self.down: set[str] = set()
        self._keys: dict[str, tuple[str, bytes]] = {}

    def add_account(self, email: str) -> dict[str, str]:
        """A service account; returns its key file."""
        private = rsa.generate_private_key(65537, 2048)
        pem = serialization.Encoding.PEM
        key_id = uuid.uuid4().hex
        self._keys[key_id] = (email, private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
        return {
            "type": "service_account",
            "private_key_id": key_id,
            "private_key": private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode(),
            "client_email": email,
            "token_uri": "https://oauth2.googleapis.com/token",
        }

    def revoke(self, key_file: Mapping[str, str]) -> None:
        """The key is no key of the account's any more."""
        del self._keys[key_file["private_key_id"]]

    def answer(self, method: str, host: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """What each host says."""
        if host in self.down:
            return Answer(503, {"error": {"code": 503, "status": "UNAVAILABLE"}})
        if host == "oauth2.googleapis.com":
            return self._oauth(parse_qs(body.decode()))
        if host == "sts.googleapis.com":
            return self._exchange(parse_qs(body.decode()))
        token = headers.get("authorization", "").removeprefix("Bearer ")
        if host == "iamcredentials.googleapis.com":
            return self._impersonate(self.tokens.get(token), target, json.loads(body or b"{}"))
        if token in self.denied or token not in self.tokens:
            return Answer(401, {"error": {"code": 401, "errors": [{"reason": "authError"}], "message": "Invalid Credentials"}})
        self.asked.append((self.tokens[token], target))
        return Answer(200, {"items": []})

    def _oauth(self, asked: dict[str, list[str]]) -> Answer:
        if "refresh_token" in asked:
            known = asked["refresh_token"] == ["a-users-refresh-token"] and asked["client_secret"] == ["a-clients-secret"]
            return self._token("user") if known else Answer(400, {"error": "invalid_grant", "error_description": "Bad Request"})
        assert asked["grant_type"] == [_GRANT]
        assertion = asked["assertion"][0]
        try:
            email, public = self._keys[jwt.decode_header(assertion)["kid"]]  # type: ignore[no-untyped-call]
            claims = jwt.decode(assertion, certs=public, verify=True)  # type: ignore[no-untyped-call]
        except (KeyError, ValueError):
            return Answer(400, {"error": "invalid_grant", "error_description": "Invalid JWT Signature."})
        assert claims["iss"] == email
        return self._token(email)

    def _exchange(self, asked: dict[str, list[str]]) -> Answer:
        if asked["subject_token"] != ["the-machines-own-token"]:
            return Answer(400, {"error": "invalid_request"})
        return self._token("machine")

    def _impersonate(self, source: str | None, target: str, asked: dict[str, list[str]]) -> Answer:
        wanted = re.fullmatch(r"/v1/projects/-/serviceAccounts/(.+):generateAccessToken", target)
        if wanted is None or asked["scope"] != [SCOPE]:
            return Answer(404, {"error": {"code": 404, "status": "NOT_FOUND"}})
        chain = [source, *(name.removeprefix("projects/-/serviceAccounts/") for name in asked["delegates"]), wanted[1]]
        if not all((who, str(account)) in self.may_become for who, account in itertools.pairwise(chain)):
            message = "Permission 'iam.serviceAccounts.getAccessToken' denied on resource (or it may not exist)."
            return Answer(403, {"error": {"code": 403, "message": message, "status": "PERMISSION_DENIED"}})
        given = self._token(wanted[1])
        return Answer(200, {"accessToken": given.body["access_token"], "expireTime": "2999-01-01T00:00:00Z"})

    def _token(self, who: str) -> Answer:
        token = uuid.uuid4().hex
        self.tokens[token] = who
        issued = "urn:ietf:params:oauth:token-type:access_token"
        return Answer(200, {"access_token": token, "expires_in": 3600, "token_type": "Bearer", "issued_token_type": issued})
