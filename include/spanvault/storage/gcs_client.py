"""Calls to Google Cloud Storage: one signed-in session for all of them, with bounded waits and tries.

Google's library counts no tries, only seconds, so each of its calls is made once and tried again here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import requests
from google.api_core.exceptions import GoogleAPICallError, from_http_response
from google.auth.transport.requests import AuthorizedSession
from google.cloud.storage import Blob, Bucket, Client  # type: ignore[import-untyped]
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from spanvault.config.settings import Settings
from spanvault.errors import BadInput, Retryable
from spanvault.storage.gcs_errors import GcsError, GcsPlace, translate
from spanvault.storage.limit import CallLimit

GENERATION = "X-Goog-Generation"
LENGTH = "Content-Length"
_CONNECTIONS = 32
_Answer = TypeVar("_Answer")


class GcsClient:
    """The bucket of `place`. May be used from several threads. Raises the libraries' errors (gcs_errors.GcsError)."""

    def __init__(self, place: GcsPlace, settings: Settings) -> None:
        self._place = place
        self._attempts = settings.storage_attempts
        self._calls = CallLimit.of(settings.storage_calls)
        self.timeout = (settings.storage_connect_timeout, settings.storage_read_timeout)
        self._lock = threading.Lock()
        self._made: tuple[AuthorizedSession, Client] | None = None

    def tries(self) -> Retrying:
        """Tries of one call, with random pauses that double up to 20 s, as long as the error may pass."""
        return Retrying(
            retry=retry_if_exception(self._may_pass),
            wait=wait_random_exponential(multiplier=0.5, max=20),
            stop=stop_after_attempt(self._attempts),
            reraise=True,
        )

    def call(self, function: Callable[[], _Answer]) -> _Answer:
        """What `function` returns, with tries."""
        return self.tries()(function)

    def bucket(self) -> Bucket:
        """The library's handle; nothing is asked."""
        return self._client().bucket(self._place.bucket, user_project=self._place.access.billing_project)

    def pages(self, **query: Any) -> Iterator[Any]:
        """The pages of a listing, each when it is needed."""
        token: str | None = None
        while True:
            # A listing of the library ends silently after an error, so each page is one of its own.
            found, page = self.call(lambda token=token: self._page(token, query))  # type: ignore[misc]
            yield page
            token = found.next_page_token
            if token is None:
                return

    def download(self, blob: Blob, offset: int, generation: str | None) -> requests.Response:
        """The answer, which has both headers, with the bytes from `offset` on not read yet; of that generation if given."""
        params = {"alt": "media", "generation": generation, "userProject": self._place.access.billing_project}
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"

        def ask() -> requests.Response:
            url = f"{self._client().api_endpoint}/download/storage/v1{blob.path}"
            answer = checked(self.request("GET", url, params=params, headers=headers, stream=True), {206 if offset else 200})
            if not all(name in answer.headers for name in (GENERATION, LENGTH)):
                answer.close()
                raise requests.ConnectionError("The head of the answer broke off.")
            return answer

        return self.call(ask)

    def request(self, method: str, url: str, **arguments: Any) -> requests.Response:
        """One request, made once."""
        session: requests.Session = self._opened()[0]
        return session.request(method, url, timeout=self.timeout, **arguments)

    def _page(self, token: str | None, query: dict[str, Any]) -> tuple[Any, Any]:
        # https://cloud.google.com/storage/docs/json_api/v1/objects/list: 1,000 are the recommended most.
        asked = {"page_size": 1000, "page_token": token, **query}
        found = self._client().list_blobs(self.bucket(), timeout=self.timeout, retry=None, **asked)
        return found, next(found.pages)

    def _client(self) -> Client:
        return self._opened()[1]

    def _opened(self) -> tuple[AuthorizedSession, Client]:
        """Made at the first call, since finding the machine's own credentials may ask the network."""
        with self._lock:
            if self._made is None:
                access = self._place.access
                credentials = access.sign_in()
                session = AuthorizedSession(credentials)  # type: ignore[no-untyped-call]
                for scheme in ("https://", "http://"):
                    session.mount(scheme, _InTurn(self._calls))
                options = {"api_endpoint": access.endpoint} if access.endpoint else None
                try:
                    client = Client(project=None, credentials=credentials, _http=session, client_options=options)
                except ValueError as error:
                    raise BadInput(f"{self._place.where} cannot be reached as described: {str(error).rstrip('.')}.") from None
                # For traces, wanted or not, it would read the bucket's properties in a thread and with tries of its own.
                client._bucket_metadata_cache = None
                self._made = session, client
            return self._made

    def _may_pass(self, error: BaseException) -> bool:
        return isinstance(error, GcsError) and isinstance(translate(error, self._place, ""), Retryable)


class _InTurn(requests.adapters.HTTPAdapter):
    """Sends each request when its turn has come. A download counts until its first bytes come; signing in, which has a
    session of its own, does not count."""

    def __init__(self, calls: CallLimit | None) -> None:
        super().__init__(pool_maxsize=_CONNECTIONS)
        self._calls = calls

    def send(self, *request: Any, **options: Any) -> requests.Response:
        if self._calls is None:
            return super().send(*request, **options)
        self._calls.enter()
        try:
            return super().send(*request, **options)
        finally:
            self._calls.leave()


def checked(answer: requests.Response, expected: set[int]) -> requests.Response:
    """The answer, if it has one of these statuses. Raises GoogleAPICallError."""
    if answer.status_code in expected:
        return answer
    with answer:
        error: GoogleAPICallError = from_http_response(answer)  # type: ignore[no-untyped-call]
        raise error
