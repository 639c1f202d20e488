"""Which collections there are: the folders below SPANVAULT_COLLECTION_BASE that hold a COLLECTION.json.

A visitor names a collection by its folder, never by a URI, so nobody can make the API server read anything else.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from spanvault.collection.layout import COLLECTION_KEY
from spanvault.model.uri import StorageUri
from spanvault.storage.keys import key_flaw
from spanvault.storage.registry import open_storage
from spanvault_airflow.hooks.engine import project_settings
from spanvault_airflow.ui.catalog import NotShown

if TYPE_CHECKING:
    from pydantic import SecretStr

    from spanvault.config.connections import ConnectionInfo
    from spanvault.storage.base import Storage

MOST_FOLDERS = 200
"""Folders of the base that are looked into for one page."""
_QUICK = {"storage_attempts": 2, "storage_connect_timeout": 3.0, "storage_read_timeout": 15.0}
# Somebody waits for the page, so it gives up on storage sooner than a backup does.


class Shelf:
    """The collections below the base."""

    def __init__(self) -> None:
        """Raises BadInput for settings that cannot be used."""
        self._settings = project_settings().model_copy(update=_QUICK)
        self._base = StorageUri.parse(self._settings.collection_base)

    @property
    def uri(self) -> str:
        """The base without secrets, for people."""
        return self._base.redacted()

    def names(self) -> tuple[list[str], bool]:
        """The collections' names, ascending, and whether folders were left out because there are too many.

        Raises Retryable, BadInput, Refused when the storage cannot be read.
        """
        storage = self._open(self._base)
        folders = list(islice(storage.list_folders(), MOST_FOLDERS + 1))
        names = [folder.removesuffix("/") for folder in folders[:MOST_FOLDERS]]
        return [name for name in names if _holds_collection(storage, name)], len(folders) > MOST_FOLDERS

    def collection(self, name: str) -> Storage:
        """The storage of a collection. Raises NotShown unless there is one of that name just below the base."""
        if "/" in name or "\\" in name or key_flaw(name) or not _holds_collection(self._open(self._base), name):
            raise NotShown(f"There is no collection {name!r} in {self.uri}.")
        return self._open(self._base.join(name))

    def uri_of(self, name: str) -> str:
        """A collection's URI without secrets."""
        return self._base.join(name).redacted()

    def _open(self, uri: StorageUri) -> Storage:
        return open_storage(uri.revealed(), settings=self._settings, connections=_Connections())


class _Connections:
    """Airflow's connections, for a base that names one with `?conn_id=`."""

    def resolve(self, conn_id: str) -> ConnectionInfo:
        from spanvault_airflow.hooks.connections import AirflowConnections

        return AirflowConnections().resolve(conn_id)

    def variable(self, name: str) -> SecretStr:
        from spanvault_airflow.hooks.connections import AirflowConnections

        return AirflowConnections().variable(name)


def _holds_collection(storage: Storage, name: str) -> bool:
    return not key_flaw(name) and storage.head(f"{name}/{COLLECTION_KEY}") is not None
