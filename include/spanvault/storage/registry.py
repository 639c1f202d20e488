"""From a URI to the Storage behind it."""

from __future__ import annotations

from spanvault.config.connections import ConnectionResolver
from spanvault.config.settings import Settings
from spanvault.model.uri import StorageUri
from spanvault.model.uri_parameters import ObjectLock
from spanvault.storage.base import Storage
from spanvault.storage.limit import limited_in_process
from spanvault.storage.local import LocalStorage


def open_storage(uri: str, *, settings: Settings, connections: ConnectionResolver, lock: ObjectLock | None = None) -> Storage:
    """The Storage that `uri` names. No byte leaves before the settings have allowed it. `lock` stands instead of the one that
    the URI asks for.

    Raises BadInput for a URI or connection that cannot be used, Refused for one that the settings forbid.
    """
    parsed = StorageUri.parse(uri)
    settings.check_destination(parsed)
    return limited_in_process(_backend(parsed, settings, connections, lock), settings.storage_rate_limit)


def _backend(parsed: StorageUri, settings: Settings, connections: ConnectionResolver, lock: ObjectLock | None) -> Storage:
    if parsed.scheme == "s3":
        # Importing the SDK takes most of a second, which the other schemes need not pay.
        from spanvault.storage.s3 import S3Storage
        from spanvault.storage.s3_access import s3_access

        return S3Storage(parsed, s3_access(parsed, settings, connections), settings, lock)
    if parsed.scheme == "azure-blob":
        from spanvault.storage.azure import AzureStorage
        from spanvault.storage.azure_access import azure_access

        return AzureStorage(parsed, azure_access(parsed, settings, connections), settings, lock)
    if parsed.scheme == "gs":
        from spanvault.storage.gcs import GcsStorage
        from spanvault.storage.gcs_access import gcs_access

        return GcsStorage(parsed, gcs_access(parsed, settings, connections), settings, lock)
    return LocalStorage(settings.local_folder(parsed), parsed.redacted())
