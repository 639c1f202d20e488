"""FakeGcsBucket: what fake-gcs-server does not do as Google Cloud Storage does: resumable uploads that break off and go on,
conditions on them, versions, retention.

One bucket, named `bucket`, on HTTP; it asks nobody for credentials. Held to
https://cloud.google.com/storage/docs/performing-resumable-uploads,
https://cloud.google.com/storage/docs/json_api/v1/objects and, for what is refused,
https://cloud.google.com/storage/docs/json_api/v1/status-codes.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c

UNIT = 256 << 10


@dataclass
class FakeObject:
    """One generation of an object. `kept`: by a retention policy."""

    name: str
    generation: int
    data: bytes
    metadata: dict[str, str]
    live: bool = True
    kept: bool = False

    def resource(self) -> dict[str, Any]:
        """Its JSON."""
        return {
            "name": self.name,
            "generation": str(self.generation),
            "size": str(len(self.data)),
            "timeCreated": "2026-11-23T00:00:00Z",
            "metadata": self.metadata,
        }


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
    Whether it keeps versions it tells nobody if `hidden`. A page of a listing has at most `page` objects."""

    def __init__(self, *, versioning: bool = False, hidden: bool = False, page: int = 1000) -> None:
        self.versioning = versioning
        self.page = page
        self.hidden = hidden
        self.objects: list[FakeObject] = []
        self.uploads: dict[str, FakeUpload] = {}
        self._count = 0
        self.faults: list[Fault] = []
        self.ranges: list[str] = []
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"bucket": self}))
        self._server.daemon_threads = True
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

    def add(self, name: str, data: bytes, metadata: dict[str, str] | None = None, *, kept: bool = False) -> FakeObject:
        """A new current generation."""
        before = self.live(name)
        if before is not None:
            before.live = False
            if not self.versioning:
                self.objects.remove(before)
        self.objects.append(FakeObject(name, self.count(), data, metadata or {}, kept=kept))
        return self.objects[-1]

    def count(self) -> int:
        """A number that grows: generations do, and names of uploads differ."""
        self._count += 1
        return self._count


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bucket: FakeGcsBucket

    def do_GET(self) -> None:
        path, query = self._asked()
        if path == "/storage/v1/b/bucket":
            if self.bucket.hidden:
                self._refuse(403, "forbidden", "no storage.buckets.get")
            else:
                self._json(200, {"name": "bucket", "versioning": {"enabled": self.bucket.versioning}})
        elif path == "/storage/v1/b/bucket/o":
            self._json(200, self._listed(query))
        else:
            one = self.bucket.live(path.removeprefix("/storage/v1/b/bucket/o/"))
            self._json(200, one.resource()) if one else self._refuse(404, "notFound", "No such object")

    def _listed(self, query: dict[str, str]) -> dict[str, Any]:
        prefix, start = query.get("prefix", ""), int(query.get("pageToken", "0"))
        found = [one for one in self.bucket.objects if (one.live or "versions" in query) and one.name.startswith(prefix)]
        found.sort(key=lambda one: (one.name.encode(), one.generation))
        end = start + min(self.bucket.page, int(query["maxResults"]))
        more = {"nextPageToken": str(end)} if end < len(found) else {}
        return {"items": [one.resource() for one in found[start:end]], **more}

    def do_DELETE(self) -> None:
        path, query = self._asked()
        if "upload_id" in query:
            gone = self.bucket.uploads.pop(query["upload_id"], None)
            self._refuse(404 if gone is None else 499, "", "")
            return
        name = path.removeprefix("/storage/v1/b/bucket/o/")
        wanted = query.get("generation")
        one = next(
            (found for found in self.bucket.objects if found.name == name and str(found.generation) == wanted),
            self.bucket.live(name) if wanted is None else None,
        )
        if one is None:
            self._refuse(404, "notFound", "No such object")
        elif one.kept and (wanted or not self.bucket.versioning):
            self._refuse(403, "retentionPolicyNotMet", f"Object 'bucket/{name}' is subject to bucket's retention policy")
        elif wanted is None and self.bucket.versioning:
            one.live = False
            self._json(204, None)
        else:
            self.bucket.objects.remove(one)
            self._json(204, None)

    def do_POST(self) -> None:
        _, query = self._asked()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if query["uploadType"] != "resumable":
            self._refuse(501, "", "only resumable uploads here")
            return
        name = f"upload-{self.bucket.count()}"
        self.bucket.uploads[name] = FakeUpload(json.loads(body), query.get("ifGenerationMatch") == "0")
        self._json(200, {}, {"Location": f"{self.bucket.endpoint}/upload/storage/v1/b/bucket/o?upload_id={name}"})

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
        if upload.create_only and there is not None and not mine:
            self._refuse(412, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")
            return True
        if not mine:
            there = self.bucket.add(name, bytes(upload.data), upload.resource.get("metadata"))
        if answer:
            self._json(200, there.resource() if there else {})
        return answer

    def _asked(self) -> tuple[str, dict[str, str]]:
        self.bucket.requests.append(f"{self.command} {self.path}")
        parts = urlsplit(self.path)
        return unquote(parts.path), {name: values[0] for name, values in parse_qs(parts.query).items()}

    def _refuse(self, status: int, reason: str, message: str) -> None:
        self._json(status, {"error": {"code": status, "message": message, "errors": [{"reason": reason, "message": message}]}})

    def _json(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        text = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(text)), **(headers or {})}.items():
            if status != 204:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""
