"""The hook for a backup collection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook

from spanvault_airflow.hooks.engine import engine_context

if TYPE_CHECKING:
    from spanvault.storage.base import Storage


class CollectionHook(BaseHook):
    """A collection by its URI, or by its URIs for several localities, one a line; credentials come from an Airflow Connection
    named with `?conn_id=` or from the environment.

    :param uri: the collection's URI or URIs, without secrets
    """

    hook_name = "Spanvault collection"

    def __init__(self, uri: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.uri = uri

    def checked_uri(self) -> str:
        """The URI, or several, one a line, if nothing in them is a secret: they are going to be stored in XCom and shown in
        the UI.

        Raises BadInput.
        """
        from spanvault.errors import BadInput
        from spanvault.model.places import Places
        from spanvault.model.uri import StorageUri

        # A text field ends its lines in its own way, and people leave empty ones.
        lines = [line.strip() for line in self.uri.splitlines() if line.strip()] or [""]
        if any(StorageUri.parse(line).has_inline_secrets for line in lines):
            raise BadInput(
                "The collection's URI carries a secret, which Airflow would store and show; "
                "put it into a Connection and name that with ?conn_id=..."
            )
        Places.of(lines)
        return "\n".join(lines)

    def get_conn(self) -> Storage:
        """The storage below the collection's URI."""
        return engine_context(self.log).storage(self.checked_uri())
