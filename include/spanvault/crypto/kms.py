"""From a key's URI to the key service behind it. The services' SDKs are imported when one is opened."""

from __future__ import annotations

from spanvault.config.connections import ConnectionResolver
from spanvault.config.settings import Settings
from spanvault.crypto.key_service import KeyService
from spanvault.crypto.kms_access import check_settings
from spanvault.model.kms_uri import AWS, GOOGLE, KmsUri

__all__ = ["KeyService", "open_key"]


def open_key(uri: str, *, settings: Settings, connections: ConnectionResolver) -> KeyService:
    """The key that `uri` names; its key service is not contacted before the first call.

    Raises BadInput or NotFound for a URI or connection that cannot be used, Refused for one that the settings forbid.
    """
    parsed = KmsUri.parse(uri)
    check_settings(parsed, settings)
    if parsed.scheme == AWS:
        from spanvault.crypto.kms_aws import aws_key

        return aws_key(parsed, settings, connections)
    if parsed.scheme == GOOGLE:
        from spanvault.crypto.kms_google import google_key

        return google_key(parsed, settings, connections)
    from spanvault.crypto.kms_azure import azure_key

    return azure_key(parsed, settings, connections)
