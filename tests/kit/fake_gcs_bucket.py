"""FakeGcsBucket: what fake-gcs-server does not do as Google Cloud Storage does: resumable uploads that break off and go on,
conditions on them, versions, retention, holds.

One bucket, named `bucket`, on HTTP; it asks nobody for credentials. Held to
https://cloud.google.com/storage/docs/performing-resumable-uploads,
https://cloud.google.com/storage/docs/json_api/v1/objects, https://cloud.google.com/storage/docs/object-lock,
https://cloud.google.com/storage/docs/object-holds and, for what is refused,
https://cloud.google.com/storage/docs/json_api/v1/status-codes. Where they leave open what a refusal says, it says what others
have seen the service say.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c

UNIT = 256 << 10


def told_date(date: datetime) -> str:
    """As the service writes dates, always of UTC."""
    return f"{date.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"


@dataclass
class FakeObject:
    """One generation of an object. `policy_until`: when the bucket's retention policy lets it go; `retention` as in its JSON."""

    name: str
    generation: int
    data: bytes
    metadata: dict[str, str]
    live: bool = True
    policy_until: datetime | None = None
    retention: dict[str, str] | None = None
    temporary_hold: bool = False
    event_based_hold: bool = False

    def resource(self) -> dict[str, Any]:
        """Its JSON."""
        until = self._until()
        told = {
            "retention": self.retention,
            "retentionExpirationTime": until and told_date(until),
            "temporaryHold": self.temporary_hold,
            "eventBasedHold": self.event_based_hold,
        }
        return {
            "name": self.name,
            "generation": str(self.generation),
            "size": str(len(self.data)),
            "timeCreated": "2026-11-23T00:00:00Z",
            "metadata": self.metadata,
            **{name: value for name, value in told.items() if value},
        }

    def kept(self) -> tuple[int, str, str] | None:
        """Why it can be neither deleted nor replaced now: status, reason and message."""
        for held, kind in ((self.temporary_hold, "Temporary"), (self.event_based_hold, "Event-Based")):
            if held:
                said = f"under active {kind} hold and cannot be deleted, overwritten or archived until hold is removed."
                return 403, "forbidden", f"Object 'bucket/{self.name}' is {said}"
        until = self._until()
        if until is None or until <= datetime.now(UTC):
            return None
        said = f"subject to bucket's retention policy or object retention and cannot be deleted or overwritten until {until}"
        return 403, "retentionPolicyNotMet", f"Object 'bucket/{self.name}' is {said}"

    def retain(self, asked: dict[str, str]) -> tuple[int, str, str] | None:
        """Set the retention, or say why not. `overrideUnlockedRetention` is nothing that this fake takes."""
        if before := self.retention:
            shorter = datetime.fromisoformat(asked["retainUntilTime"]) < datetime.fromisoformat(before["retainUntilTime"])
            if before["mode"] == "Locked" and (shorter or asked["mode"] != "Locked"):
                return 403, "forbidden", "The locked object retention cannot be removed, its mode not changed, it not shortened."
            if before["mode"] == "Unlocked" and (shorter or asked["mode"] != "Unlocked"):
                return (
                    403,
                    "forbidden",
                    "The unlocked object retention needs an override unlocked retention intent and permission.",
                )
        self.retention = {"mode": asked["mode"], "retainUntilTime": asked["retainUntilTime"]}
        return None

    def _until(self) -> datetime | None:
        own = datetime.fromisoformat(self.retention["retainUntilTime"]) if self.retention else None
        return max((date for date in (own, self.policy_until) if date is not None), default=None)


@dataclass
class FakeUpload:
    """A resumable upload that was begun."""

    resource: dict[str, Any]
    create_only: bool
    data: bytearray = field(default_factory=bytearray)


@dataclass
class Fault:
    """What happens to a request to an upload, which sends bytes or asks how many are there: `stored` of them arrive (None:
    all), then it is answered with `status`, or if that is None not at all. 308 with fewer bytes than were sent is no fault:
    the service may take fewer."""

    stored: int | None
    status: int | None


class FakeGcsBucket:
    """A context manager. `faults` hit the next requests to uploads; `ranges` are the Content-Range headers that came.
    Whether it keeps versions it tells nobody if `hidden`. A page of a listing has at most `page` objects. `retention`: object
    retention is enabled. `may_lock`: who uses it may. Without `whole` it refuses uploads in one call with 501."""

    def __init__(
        self,
        *,
        versioning: bool = False,
        hidden: bool = False,
        page: int = 1000,
        retention: bool = False,
        may_lock: bool = True,
        whole: bool = True,
    ) -> None:
        self.versioning = versioning
        self.retention = retention
        self.may_lock = may_lock
        self.whole = whole
        self.page = page
        self.hidden = hidden
        self.objects: list[FakeObject] = []
        self.uploads: dict[str, FakeUpload] = {}
        self._count = 0
        self.faults: list[Fault] = []
        self.ranges: list[str] = []
        self.requests: list[str] = []
        self._inserting = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"bucket": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def port(self) -> int:
        return self._server.server_port

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> FakeGcsBucket:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def live(self, name: str) -> FakeObject | None:
        """The current generation."""
        return next((found for found in self.objects if found.name == name and found.live), None)

    def add(self, name: str, data: bytes, metadata: dict[str, str] | None = None, **protection: Any) -> FakeObject:
        """A new current generation, with these fields of FakeObject."""
        before = self.live(name)
        if before is not None:
            before.live = False
            if not self.versioning:
                self.objects.remove(before)
        self.objects.append(FakeObject(name, self.count(), data, metadata or {}, **protection))
        return self.objects[-1]

    def insert(self, resource: dict[str, Any], data: bytes, *, create_only: bool) -> FakeObject | tuple[int, str, str]:
        """What an upload makes, or why it makes nothing: status, reason and message."""
        with self._inserting:
            before = self.live(resource["name"])
            if create_only and before is not None:
                return 412, "conditionNotMet", "At least one of the pre-conditions you specified did not hold."
            if before is not None and not self.versioning and (kept := before.kept()):
                return kept
            if wrong := self.wrong_lock(resource):
                return wrong
            lock = {"retention": resource.get("retention"), "temporary_hold": resource.get("temporaryHold", False)}
            return self.add(resource["name"], data, resource.get("metadata"), **lock)

    def wrong_lock(self, resource: dict[str, Any]) -> tuple[int, str, str] | None:
        """Why the lock that is asked for cannot be set: status, reason and message."""
        asked = resource.get("retention")
        if not self.may_lock and (asked or "temporaryHold" in resource):
            return 403, "forbidden", "x does not have storage.objects.setRetention access to the Google Cloud Storage object."
        if asked is None:
            return None
        if not self.retention:
            return 400, "invalid", "Object retention is not enabled on the bucket."
        if asked["mode"] not in {"Locked", "Unlocked"}:
            return 400, "invalid", f"Invalid value for: {asked['mode']} is not a valid value"
        if datetime.fromisoformat(asked["retainUntilTime"]) <= datetime.now(UTC):
            return 400, "invalid", "Retain until time cannot be in the past."
        return None

    def count(self) -> int:
        """A number that grows: generations do, and names of uploads differ."""
        self._count += 1
        return self._count


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # Writers come 16 at a time.


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bucket: FakeGcsBucket

    def do_GET(self) -> None:
        path, query = self._asked()
        if path == "/storage/v1/b/bucket":
            if self.bucket.hidden:
                self._refuse(403, "forbidden", "no storage.buckets.get")
            else:
                retention = {"objectRetention": {"mode": "Enabled"}} if self.bucket.retention else {}
                self._json(200, {"name": "bucket", "versioning": {"enabled": self.bucket.versioning}, **retention})
        elif path == "/storage/v1/b/bucket/o":
            self._json(200, self._listed(query))
        elif (one := self._named(path, query)) is None:
            self._refuse(404, "notFound", "No such object")
        elif query.get("alt") == "media":
            self._bytes(200, one.data, {"X-Goog-Generation": str(one.generation)})
        else:
            self._json(200, one.resource())

    def _named(self, path: str, query: dict[str, str]) -> FakeObject | None:
        name, wanted = path.partition("/storage/v1/b/bucket/o/")[2], query.get("generation")
        if wanted is None:
            return self.bucket.live(name)
        return next((found for found in self.bucket.objects if (found.name, str(found.generation)) == (name, wanted)), None)

    def _listed(self, query: dict[str, str]) -> dict[str, Any]:
        prefix, start = query.get("prefix", ""), int(query.get("pageToken", "0"))
        found = [one for one in self.bucket.objects if (one.live or "versions" in query) and one.name.startswith(prefix)]
        found.sort(key=lambda one: (one.name.encode(), one.generation))
        if "delimiter" in query:
            # All on one page: the tests that list folders have few.
            below = [one.name.removeprefix(prefix).partition("/") for one in found]
            return {"prefixes": list(dict.fromkeys(f"{prefix}{part}/" for part, slash, _ in below if slash))}
        end = start + min(self.bucket.page, int(query["maxResults"]))
        more = {"nextPageToken": str(end)} if end < len(found) else {}
        return {"items": [one.resource() for one in found[start:end]], **more}

    def do_DELETE(self) -> None:
        path, query = self._asked()
        if "upload_id" in query:
            gone = self.bucket.uploads.pop(query["upload_id"], None)
            self._refuse(404 if gone is None else 499, "", "")
            return
        one = self._named(path, query)
        if one is None:
            self._refuse(404, "notFound", "No such object")
        elif "generation" not in query and self.bucket.versioning:
            # What is protected can be made noncurrent all the same.
            one.live = False
            self._json(204, None)
        elif kept := one.kept():
            self._refuse(*kept)
        else:
            self.bucket.objects.remove(one)
            self._json(204, None)

    def do_POST(self) -> None:
        _, query = self._asked()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        create_only = query.get("ifGenerationMatch") == "0"
        if query["uploadType"] != "resumable":
            self._take_whole(body, create_only=create_only)
            return
        if wrong := self.bucket.wrong_lock(json.loads(body)):
            self._refuse(*wrong)
            return
        name = f"upload-{self.bucket.count()}"
        self.bucket.uploads[name] = FakeUpload(json.loads(body), create_only)
        self._json(200, {}, {"Location": f"{self.bucket.endpoint}/upload/storage/v1/b/bucket/o?upload_id={name}"})

    def _take_whole(self, body: bytes, *, create_only: bool) -> None:
        """multipart/related, of the object's JSON and its bytes."""
        boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])
        if not self.bucket.whole or boundary is None:
            self._refuse(501, "", "only resumable uploads here")
            return
        parts = body.split(b"--" + boundary[1].encode())[1:3]
        resource, data = (part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for part in parts)
        made = self.bucket.insert(json.loads(resource), data, create_only=create_only)
        self._json(200, made.resource()) if isinstance(made, FakeObject) else self._refuse(*made)

    def do_PATCH(self) -> None:
        path, query = self._asked()
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        one = self._named(path, query)
        if one is None:
            self._refuse(404, "notFound", "No such object")
        elif wrong := self.bucket.wrong_lock(asked) or one.retain(asked["retention"]):
            self._refuse(*wrong)
        else:
            self._json(200, one.resource())

    def do_PUT(self) -> None:
        _, query = self._asked()
        self.bucket.ranges.append(self.headers["Content-Range"])
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        upload = self.bucket.uploads.get(query["upload_id"])
        place = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", self.headers["Content-Range"])
        fault = self.bucket.faults.pop(0) if self.bucket.faults else Fault(None, 200)
        if upload is None or place is None:
            self._refuse(404 if upload is None else 400, "", "")
            return
        if place[1] is not None:
            first, last = int(place[1]), int(place[2])
            # Bytes that are there already are passed over; a gap is an error.
            wrong = first > len(upload.data) or last - first + 1 != len(sent) or (place[3] == "*" and len(sent) % UNIT != 0)
            if wrong:
                self._refuse(400, "invalid", "Invalid request: the range does not fit")
                return
            upload.data += sent[len(upload.data) - first : fault.stored]
        if place[3] != "*" and len(upload.data) == int(place[3]) and fault.status in {200, None}:
            answered = self._end(query["upload_id"], upload, answer=fault.status is not None)
            if answered:
                return
        if fault.status is None:
            self.close_connection = True
        elif fault.status in {200, 308}:
            self._json(308, None, {"Range": f"bytes=0-{len(upload.data) - 1}"} if upload.data else {})
        else:
            self._refuse(fault.status, "backendError", "as the test asked")

    def _end(self, upload_id: str, upload: FakeUpload, *, answer: bool) -> bool:
        """The object comes into being, if it may; an ended upload tells so to whoever asks later."""
        said = re.search(r"crc32c=([^,]+)", self.headers.get("X-Goog-Hash", ""))
        if said and base64.b64decode(said[1]) != google_crc32c.value(bytes(upload.data)).to_bytes(4, "big"):
            self._refuse(400, "invalid", 'Provided CRC32C "a" doesn\'t match calculated CRC32C "b".')
            return True
        name = upload.resource["name"]
        there = self.bucket.live(name)
        mine = there is not None and there.metadata == upload.resource.get("metadata")
        made = (
            there if there and mine else self.bucket.insert(upload.resource, bytes(upload.data), create_only=upload.create_only)
        )
        if not isinstance(made, FakeObject):
            self._refuse(*made)
            return True
        if answer:
            self._json(200, made.resource())
        return answer

    def _asked(self) -> tuple[str, dict[str, str]]:
        self.bucket.requests.append(f"{self.command} {self.path}")
        parts = urlsplit(self.path)
        return unquote(parts.path), {name: values[0] for name, values in parse_qs(parts.query).items()}

    def _refuse(self, status: int, reason: str, message: str) -> None:
        self._json(status, {"error": {"code": status, "message": message, "errors": [{"reason": reason, "message": message}]}})

    def _json(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        self._bytes(status, b"" if body is None else json.dumps(body).encode(), headers or {})

    def _bytes(self, status: int, text: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(text)), **headers}.items():
            if status != 204:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""
