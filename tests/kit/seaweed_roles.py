"""SeaweedFS with an STS of its own: roles that may be assumed, one that nobody may, and tokens that last a minute."""

from __future__ import annotations

import base64
import json
import secrets
from pathlib import Path

from spanvault.embedded.seaweed import SeaweedServer

ACCOUNT = "arn:aws:iam::000000000000:role"
FIRST, SECOND, FORBIDDEN = (f"{ACCOUNT}/{name}" for name in ("first", "second", "forbidden"))


def seaweed_with_roles(directory: Path) -> SeaweedServer:
    """A server, not started, whose administrator may assume FIRST and SECOND, as may each of these, and not FORBIDDEN."""
    directory.mkdir(parents=True)
    file = directory / "iam.json"
    file.write_text(json.dumps(_configuration()))
    return SeaweedServer(directory, name="seaweed-roles", options=(f"-s3.iam.config={file}",))


def _configuration() -> dict[str, object]:
    everything = {"Effect": "Allow", "Action": ["s3:*", "sts:*"], "Resource": ["*"]}
    return {
        # A minute is less than the ten that botocore wants to be left, so every call gets fresh credentials.
        "sts": {
            "issuer": "spanvault",
            "signingKey": base64.b64encode(secrets.token_bytes(32)).decode(),
            "tokenDuration": "1m",
            "maxSessionLength": "1h",
        },
        "policy": {"defaultEffect": "Deny", "storeType": "memory"},
        "policies": [{"name": "everything", "document": {"Version": "2012-10-17", "Statement": [everything]}}],
        "roles": [_role(FIRST, "Allow"), _role(SECOND, "Allow"), _role(FORBIDDEN, "Deny")],
    }


def _role(arn: str, effect: str) -> dict[str, object]:
    trust = {"Effect": effect, "Principal": {"AWS": "*"}, "Action": ["sts:AssumeRole"]}
    return {
        "roleName": arn.rpartition("/")[2],
        "roleArn": arn,
        "attachedPolicies": ["everything"],
        "trustPolicy": {"Version": "2012-10-17", "Statement": [trust]},
    }
