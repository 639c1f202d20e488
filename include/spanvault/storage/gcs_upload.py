"""Writing one object of Google Cloud Storage: in one call if it is small, else by a resumable upload, in bounded memory.

The object comes into being with the last bytes of an upload, so one that is not ended shows nothing. The library's own
writer ends it whenever it is closed, so the protocol is spoken here:
https://cloud.google.com/storage/docs/performing-resumable-uploads
"""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager

import google_crc32c
import requests
from google.api_core.exceptions import ServiceUnavailable

from spanvault.errors import Retryable
from spanvault.storage.gcs_client import GcsClient, checked
from spanvault.storage.gcs_errors import GcsError

# What goes in one call: it must be sent within the time in which a connection must stand.
WHOLE_BYTES = 1 << 20
_UNIT = 256 << 10  # Chunks are multiples of this, all but the last.
_LEAST_CHUNK = 8 << 20
_SLICE = 64 << 10
_INCOMPLETE = 308
_DONE = {200, 201}
_GONE = {404, 410, 499}
_CANCELLED = {204, 404, 410, 499}
_log = logging.getLogger(__name__)


def chunk_bytes(memory: int) -> int:
    """How much is sent at a time: half of `memory`, because one chunk is being filled while another is on its way."""
    return max(_LEAST_CHUNK, memory // 2 // _UNIT * _UNIT)


def checksum(crc32c: int) -> str:
    """The form of https://cloud.google.com/storage/docs/xml-api/reference-headers#xgooghash"""
    return f"crc32c={base64.b64encode(crc32c.to_bytes(4, 'big')).decode()}"


class GcsWriter:
    """A Writer whose bytes become the object by `finish()`, or go away by `abort()`.

    `store` writes a small object in one call; `start` begins an upload and gives its address, which whoever knows it may
    write to. `guard` translates errors; `gone` is raised for an upload that does not exist any more.
    """

    def __init__(
        self,
        client: GcsClient,
        *,
        memory: int,
        store: Callable[[bytes], None],
        start: Callable[[], str],
        guard: Callable[[], AbstractContextManager[None]],
        gone: Retryable,
    ) -> None:
        self._client = client
        self._chunk = chunk_bytes(memory)
        self._store = store
        self._start = start
        self._guard = guard
        self._gone = gone
        self._buffer = bytearray()
        self._upload: _Upload | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None
        self.publishing = False  # Whether a call was made that makes the object visible.

    def write(self, data: bytes | memoryview, /) -> int:
        """Take all of `data`; waits while a chunk is on its way and the next one is full."""
        view = memoryview(data).cast("B")
        position = 0
        while position < len(view):
            # Only with more to come: the last chunk must not be empty.
            if len(self._buffer) == self._chunk:
                with self._guard():
                    self._send()
            taken = view[position : position + self._chunk - len(self._buffer)]
            self._buffer += taken
            position += len(taken)
        return len(view)

    def finish(self) -> None:
        """Make the object visible."""
        with self._guard():
            if self._upload is None and len(self._buffer) <= WHOLE_BYTES:
                self.publishing = True
                self._store(bytes(self._buffer))
                return
            upload = self._await()
            self._close_thread()
            self.publishing = True
            upload.send(bytes(self._buffer), last=True)

    def abort(self) -> None:
        """Give up what was sent. What cannot be removed now the service forgets after a week."""
        self._close_thread()
        if self._upload is not None:
            self._upload.cancel()

    def _send(self) -> None:
        upload = self._await()
        chunk, self._buffer = bytes(self._buffer), bytearray()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="spanvault-upload")
        self._pending = self._thread.submit(upload.send, chunk, last=False)

    def _await(self) -> _Upload:
        """The upload, with everything that was handed to it sent."""
        if self._upload is None:
            self._upload = _Upload(self._client, self._start(), self._gone)
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
        return self._upload

    def _close_thread(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)


class _Upload:
    """One resumable upload at `address`. `stored` is how many bytes the service has said that it has."""

    def __init__(self, client: GcsClient, address: str, gone: Retryable) -> None:
        self._client = client
        self._address = address
        self._gone = gone
        self._stored = 0
        self._ended = False
        self._crc32c = 0

    def send(self, chunk: bytes, *, last: bool) -> None:
        """Send the next bytes, with tries that go on after what has arrived."""
        start, end = self._stored, self._stored + len(chunk)
        self._crc32c = google_crc32c.extend(self._crc32c, chunk)
        total = str(end) if last else "*"
        for attempt in self._client.tries():
            with attempt:
                if attempt.retry_state.attempt_number > 1:
                    self._put(b"", total, last=last)
                while not self._ended and (last or self._stored < end):
                    before = self._stored
                    if not start <= before <= end:
                        raise self._gone  # Bytes that were stored are not any more, and are not here either.
                    self._put(memoryview(chunk)[before - start :], total, last=last)
                    if not self._ended and self._stored == before:
                        raise ServiceUnavailable("Nothing was stored.")  # type: ignore[no-untyped-call]

    def cancel(self) -> None:
        """Let the service forget it."""
        try:
            checked(self._client.request("DELETE", self._address), _CANCELLED)
        except GcsError as error:
            _log.warning("An unfinished upload could not be removed (%s); the service does it in a week.", type(error).__name__)

    def _put(self, data: bytes | memoryview, total: str, *, last: bool) -> None:
        """Send bytes; with none, ask how many are stored, which ends an upload that has all."""
        place = f"{self._stored}-{self._stored + len(data) - 1}" if data else "*"
        headers = {"Content-Range": f"bytes {place}/{total}"}
        if last:
            headers["X-Goog-Hash"] = checksum(self._crc32c)
        # requests would send an empty body without its length.
        body = _Body(data) if data else b""
        answer: requests.Response = self._client.request("PUT", self._address, headers=headers, data=body)
        ended = answer.status_code in _DONE
        if answer.status_code in _GONE or (ended and not last):
            raise self._gone
        checked(answer, {_INCOMPLETE, *_DONE})
        if ended:
            self._ended = True
            return
        stored = re.fullmatch(r"bytes=0-(\d+)", answer.headers.get("Range", ""))
        self._stored = int(stored[1]) + 1 if stored else 0


class _Body:
    """Bytes that are sent slice by slice: a socket's time limit holds for each sending, and a chunk in one would have to be
    through before it. Not a file, because a request that is repeated with a fresh token starts anew."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[memoryview]:
        return (self._data[start : start + _SLICE] for start in range(0, len(self._data), _SLICE))
