"""The hook for a backup collection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook

from spanvault_airflow.hooks.engine import engine_context

if TYPE_CHECKING:
    from spanvault.storage.base import Storage


class CollectionHook(BaseHook):
    """A collection by its URI; credentials come from an Airflow Connection named with `?conn_id=` or from the environment.

    :param uri: the collection's URI, without secrets
    """

    hook_name = "Spanvault collection"

    def __init__(self, uri: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.uri = uri

    def checked_uri(self) -> str:
        """The URI, if nothing in it is a secret: it is going to be stored in XCom and shown in the UI.

        Raises BadInput.
        """
        from spanvault.errors import BadInput
        from spanvault.model.uri import StorageUri

        if StorageUri.parse(self.uri).has_inline_secrets:
            raise BadInput(
                "The collection's URI carries a secret, which Airflow would store and show; "
                "put it into a Connection and name that with ?conn_id=..."
            )
        return self.uri

    def get_conn(self) -> Storage:
        """The storage below the collection's URI."""
        return engine_context(self.log).storage(self.checked_uri())
