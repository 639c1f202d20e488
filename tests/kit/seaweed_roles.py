"""SeaweedFS with an STS of its own: roles that may be assumed, one that nobody may, and tokens that last a minute."""

from __future__ import annotations

import base64
import json
import secrets
from pathlib import Path

from spanvault.embedded.seaweed import SeaweedServer

ACCOUNT = "arn:aws:iam::000000000000:role"
FIRST, SECOND, FORBIDDEN, UNVERSIONED = (f"{ACCOUNT}/{name}" for name in ("first", "second", "forbidden", "unversioned"))


def seaweed_with_roles(directory: Path) -> SeaweedServer:
    """A server, not started, whose administrator may assume FIRST and SECOND, as may each of these, and not FORBIDDEN.
    UNVERSIONED has the rights that a bucket without versions needs, and no others."""
    directory.mkdir(parents=True)
    file = directory / "iam.json"
    file.write_text(json.dumps(_configuration()))
    return SeaweedServer(directory, name="seaweed-roles", options=(f"-s3.iam.config={file}",))


def _configuration() -> dict[str, object]:
    everything = {"Effect": "Allow", "Action": ["s3:*", "sts:*"], "Resource": ["*"]}
    rights = [f"s3:{right}" for right in ("ListBucket", "GetObject", "PutObject", "DeleteObject")]
    plain = {"Effect": "Allow", "Action": rights, "Resource": ["*"]}
    return {
        # A minute is less than the ten that botocore wants to be left, so every call gets fresh credentials.
        "sts": {
            "issuer": "spanvault",
            "signingKey": base64.b64encode(secrets.token_bytes(32)).decode(),
            "tokenDuration": "1m",
            "maxSessionLength": "1h",
        },
        "policy": {"defaultEffect": "Deny", "storeType": "memory"},
        "policies": [
            {"name": "everything", "document": {"Version": "2012-10-17", "Statement": [everything]}},
            {"name": "plain", "document": {"Version": "2012-10-17", "Statement": [plain]}},
        ],
        "roles": [
            _role(FIRST, "Allow"),
            _role(SECOND, "Allow"),
            _role(FORBIDDEN, "Deny"),
            _role(UNVERSIONED, "Allow", policy="plain"),
        ],
    }


def _role(arn: str, effect: str, policy: str = "everything") -> dict[str, object]:
    trust = {"Effect": effect, "Principal": {"AWS": "*"}, "Action": ["sts:AssumeRole"]}
    return {
        "roleName": arn.rpartition("/")[2],
        "roleArn": arn,
        "attachedPolicies": [policy],
        "trustPolicy": {"Version": "2012-10-17", "Statement": [trust]},
    }
