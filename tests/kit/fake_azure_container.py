"""FakeAzureContainer: what Azurite does not do as Azure Blob Storage does: versions, immutability policies, legal holds.

One container, named `container`, of the account `account`, on HTTP; it checks no signatures. Held to
https://learn.microsoft.com/azure/storage/blobs/versioning-overview,
https://learn.microsoft.com/azure/storage/blobs/immutable-version-level-worm-policies,
https://learn.microsoft.com/rest/api/storageservices/set-blob-immutability-policy, .../put-blob, .../put-block-list,
.../delete-blob, .../list-blobs and .../blob-service-error-codes. Where they leave open what a refusal says (a policy in a
container that takes none), it gives one of the codes that all services share.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

Refusal = tuple[int, str]
MISSING: Refusal = (404, "BlobNotFound")


@dataclass(eq=False)
class FakeVersion:
    """A version of a blob; `version` is empty for one that was written when none were kept. `mode` is Locked or Unlocked."""

    name: str
    data: bytes
    version: str
    current: bool = True
    metadata: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/octet-stream"
    until: datetime | None = None
    mode: str = ""
    hold: bool = False
    etag: str = ""

    def kept(self) -> Refusal | None:
        """Why it cannot be deleted."""
        if self.hold:
            return 409, "BlobImmutableDueToLegalHold"
        return (409, "BlobImmutableDueToPolicy") if self.until and self.until > datetime.now(UTC) else None

    def headers(self) -> dict[str, str]:
        """As Get Blob Properties tells them."""
        told = {"ETag": self.etag, "Last-Modified": _date(datetime.now(UTC)), "Content-Type": self.content_type}
        told |= {"x-ms-blob-type": "BlockBlob", **{f"x-ms-meta-{name}": value for name, value in self.metadata.items()}}
        if self.version:
            told["x-ms-version-id"] = self.version
            told |= {"x-ms-is-current-version": "true"} if self.current else {}
        if self.until:
            told |= {"x-ms-immutability-policy-until-date": _date(self.until), "x-ms-immutability-policy-mode": self.mode.lower()}
        return told | ({"x-ms-legal-hold": "true"} if self.hold else {})

    def listed(self, include: set[str]) -> str:
        """As List Blobs tells it."""
        about = f"<Last-Modified>{_date(datetime.now(UTC))}</Last-Modified><Etag>{self.etag}</Etag>"
        about += f"<Content-Length>{len(self.data)}</Content-Length><Content-Type>{self.content_type}</Content-Type>"
        about += "<BlobType>BlockBlob</BlobType>"
        if self.until and "immutabilitypolicy" in include:
            about += f"<ImmutabilityPolicyUntilDate>{_date(self.until)}</ImmutabilityPolicyUntilDate>"
            about += f"<ImmutabilityPolicyMode>{self.mode.lower()}</ImmutabilityPolicyMode>"
        if self.hold and "legalhold" in include:
            about += "<LegalHold>true</LegalHold>"
        version = f"<VersionId>{self.version}</VersionId>" if self.version and "versions" in include else ""
        current = "<IsCurrentVersion>true</IsCurrentVersion>" if version and self.current else ""
        return f"<Blob><Name>{escape(self.name)}</Name>{version}{current}<Properties>{about}</Properties></Blob>"


class FakeAzureContainer:
    """A context manager. `versioning`: the account keeps versions; `locks`: the container takes policies and holds, for which
    it must. `may_lock`, `may_delete_versions` and `may_see_container`: what who uses it may do."""

    def __init__(
        self,
        *,
        versioning: bool = True,
        locks: bool = True,
        may_lock: bool = True,
        may_delete_versions: bool = True,
        may_see_container: bool = True,
    ) -> None:
        self.versioning = versioning
        self.locks = locks and versioning
        self.may_lock = may_lock
        self.may_delete_versions = may_delete_versions
        self.may_see_container = may_see_container
        self.versions: list[FakeVersion] = []
        self.blocks: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []
        self._count = 0
        self._writing = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"container": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def port(self) -> int:
        return self._server.server_port

    def uri(self, path: str, params: Mapping[str, str] = MappingProxyType({})) -> str:
        """An azure-blob:// URI of a place in it."""
        endpoint = f"http://127.0.0.1:{self.port}/account"
        given = {"AZURE_ACCOUNT_NAME": "account", "AZURE_ACCOUNT_KEY": "a2V5", "AZURE_ENDPOINT": endpoint, **params}
        return f"azure-blob://container/{path}?" + "&".join(f"{name}={value}" for name, value in given.items())

    def __enter__(self) -> FakeAzureContainer:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def of(self, name: str) -> list[FakeVersion]:
        """All versions of a blob, the oldest first."""
        return [found for found in self.versions if found.name == name]

    def current(self, name: str) -> FakeVersion | None:
        """The blob itself."""
        return next((found for found in self.of(name) if found.current), None)

    def write(self, name: str, data: bytes, headers: dict[str, str]) -> FakeVersion | Refusal:
        """Put Blob, and the end of Put Block List; or why it was refused. An overwritten version stays, however it is
        protected."""
        with self._writing:
            before = self.current(name)
            if before is not None and headers.get("if-none-match") == "*":
                return 409, "BlobAlreadyExists"
            if wrong := self.wrong_lock(headers):
                return wrong
            if before is not None:
                self.retire(before)
            made = FakeVersion(name, data, self._version_id(), etag=f'"{self._count}"')
            made.metadata = {key.removeprefix("x-ms-meta-"): value for key, value in headers.items() if "x-ms-meta-" in key}
            made.content_type = headers.get("x-ms-blob-content-type", made.content_type)
            made.hold = headers.get("x-ms-legal-hold", "").lower() == "true"
            made.until, made.mode = _asked(headers)
            self.versions.append(made)
            self.blocks.pop(name, None)
            return made

    def retire(self, version: FakeVersion) -> None:
        """The current version becomes a previous one where versions are kept, also one that was written before they were."""
        if self.versioning:
            version.version = version.version or self._version_id()
            version.current = False
        else:
            self.versions.remove(version)

    def delete(self, name: str, version_id: str | None) -> Refusal | None:
        """Delete Blob; None if it took place."""
        if version_id is not None and not self.may_delete_versions:
            return 403, "AuthorizationPermissionMismatch"
        chosen = [found for found in self.of(name) if (found.current if version_id is None else found.version == version_id)]
        if not chosen:
            return MISSING
        if version_id is not None and chosen[0].current:
            return 403, "OperationNotAllowedOnRootBlob"
        if kept := chosen[0].kept():
            return kept
        if version_id is None:
            self.retire(chosen[0])
        else:
            self.versions.remove(chosen[0])
        return None

    def set_policy(self, name: str, headers: dict[str, str]) -> Refusal | None:
        """Set Blob Immutability Policy; None if it took place."""
        found = self.current(name)
        if found is None:
            return MISSING
        if wrong := self.wrong_lock(headers):
            return wrong
        until, mode = _asked(headers)
        if found.mode == "Locked" and found.until and until and (mode != "Locked" or until < found.until):
            return 409, "BlobImmutableDueToPolicy"
        found.until, found.mode = until, mode
        return None

    def wrong_lock(self, headers: dict[str, str]) -> Refusal | None:
        """Why the lock that is asked for cannot be set."""
        until, mode = _asked(headers)
        if until is None and "x-ms-legal-hold" not in headers:
            return None
        if not self.may_lock:
            return 403, "AuthorizationPermissionMismatch"
        if not self.locks:
            return 400, "UnsupportedHeader"
        wrong = until is not None and (mode not in {"Locked", "Unlocked"} or until <= datetime.now(UTC))
        return (400, "InvalidHeaderValue") if wrong else None

    def _version_id(self) -> str:
        self._count += 1
        return f"2026-01-01T00:00:00.{self._count:07d}Z" if self.versioning else ""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    container: FakeAzureContainer

    def do_GET(self) -> None:
        name, query, _ = self._taken()
        if query.get("comp") == "list":
            self._answer(200, {"Content-Type": "application/xml"}, self._listed(query))
        elif query.get("restype") == "container":
            self._tell_container()
        elif query.get("comp") == "blocklist":
            self._tell_blocks(name)
        elif (found := self.container.current(name)) is None:
            self._refuse(MISSING)
        else:
            first, last = map(int, re.findall(r"\d+", self.headers.get("x-ms-range") or self.headers["Range"]))
            part = found.data[first : last + 1]
            where = f"bytes {first}-{first + len(part) - 1}/{len(found.data)}"
            self._answer(206, {**found.headers(), "Content-Range": where}, part) if part else self._refuse((416, "InvalidRange"))

    def do_HEAD(self) -> None:
        name, _, _ = self._taken()
        found = self.container.current(name)
        if found is None:
            self._refuse(MISSING)
        else:
            self._answer(200, found.headers(), found.data)

    def do_PUT(self) -> None:
        name, query, body = self._taken()
        headers = {key.lower(): value for key, value in self.headers.items()}
        if query.get("comp") == "block":
            self.container.blocks.setdefault(name, {})[query["blockid"]] = body
            self._answer(201, {})
        elif query.get("comp") == "immutabilityPolicies":
            self._end(200, self.container.set_policy(name, headers))
        else:
            if query.get("comp") == "blocklist":
                listed = re.findall(r"<(?:Latest|Uncommitted)>([^<]+)<", body.decode())
                body = b"".join(self.container.blocks.get(name, {})[block] for block in listed)
            made = self.container.write(name, body, headers)
            if isinstance(made, FakeVersion):
                self._answer(201, made.headers())
            else:
                self._refuse(made)

    def do_DELETE(self) -> None:
        name, query, _ = self._taken()
        self._end(202, self.container.delete(name, query.get("versionid")))

    def _listed(self, query: dict[str, str]) -> bytes:
        include, prefix = set(query.get("include", "").split(",")), query.get("prefix", "")
        found = [one for one in self.container.versions if one.current or "versions" in include]
        found = sorted((one for one in found if one.name.startswith(prefix)), key=lambda one: (one.name.encode(), one.version))
        blobs = [one.listed(include) for one in found]
        if "delimiter" in query:
            below = [one.name.removeprefix(prefix).partition("/") for one in found]
            folders = dict.fromkeys(f"{prefix}{part}/" for part, slash, _ in below if slash)
            blobs = [blob for blob, (_, slash, _) in zip(blobs, below, strict=True) if not slash]
            blobs += [f"<BlobPrefix><Name>{escape(folder)}</Name></BlobPrefix>" for folder in folders]
        listed = f"<Blobs>{''.join(blobs)}</Blobs><NextMarker/>"
        return f"<?xml version='1.0' encoding='utf-8'?><EnumerationResults>{listed}</EnumerationResults>".encode()

    def _tell_container(self) -> None:
        if self.container.may_see_container:
            takes = str(self.container.locks).lower()
            told = {"x-ms-immutable-storage-with-versioning-enabled": takes, "ETag": '"1"', "x-ms-has-legal-hold": "false"}
            self._answer(200, {**told, "Last-Modified": _date(datetime.now(UTC))})
        else:
            self._refuse((403, "AuthorizationResourceTypeMismatch"))

    def _tell_blocks(self, name: str) -> None:
        if name not in self.container.blocks:
            self._refuse(MISSING)
            return
        blocks = "".join(f"<Block><Name>{block}</Name><Size>1</Size></Block>" for block in self.container.blocks[name])
        told = f"<BlockList><CommittedBlocks/><UncommittedBlocks>{blocks}</UncommittedBlocks></BlockList>"
        self._answer(200, {"Content-Type": "application/xml"}, told.encode())

    def _taken(self) -> tuple[str, dict[str, str], bytes]:
        """The blob's name, the parameters and the body."""
        parts = urlsplit(self.path)
        self.container.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return unquote(parts.path).removeprefix("/account/container").removeprefix("/"), dict(parse_qsl(parts.query)), body

    def _end(self, status: int, refusal: Refusal | None) -> None:
        if refusal is None:
            self._answer(status, {})
        else:
            self._refuse(refusal)

    def _refuse(self, refusal: Refusal) -> None:
        status, code = refusal
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>No.</Message></Error>".encode()
        self._answer(status, {"x-ms-error-code": code, "Content-Type": "application/xml"}, body)

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def _asked(headers: dict[str, str]) -> tuple[datetime | None, str]:
    """Until when, and in which mode, a request asks to be protected. Without a mode it is Unlocked."""
    until = headers.get("x-ms-immutability-policy-until-date")
    return (parsedate_to_datetime(until), headers.get("x-ms-immutability-policy-mode", "Unlocked")) if until else (None, "")


def _date(date: datetime) -> str:
    return format_datetime(date.astimezone(UTC), usegmt=True)
