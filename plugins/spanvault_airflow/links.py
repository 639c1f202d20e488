"""Extra links of the operators."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey


class ManifestLink(BaseOperatorLink):
    """Where the manifest that a task wrote stands: AWS's console for S3 itself, the plain URI for other storage."""

    name = "Manifest"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """The address, or nothing while there is no manifest."""
        from airflow.sdk.execution_time.xcom import XCom

        uri = XCom.get_value(ti_key=ti_key, key="manifest")
        return browser_address(uri) if uri else ""


def manifest_uri(into: str, subdir: str, number: int) -> str:
    """The URI of a layer's manifest, secrets redacted."""
    from spanvault.collection.layout import manifest_key
    from spanvault.model.places import Places

    return Places.parse(into).default.join(manifest_key(subdir, number)).redacted()


def browser_address(uri: str) -> str:
    """An address that a browser can open, where there is one: objects at AWS's own endpoint have a console page."""
    from spanvault.model.uri import StorageUri

    parsed = StorageUri.parse(uri)
    if parsed.scheme != "s3" or not {"AWS_ENDPOINT", "conn_id"}.isdisjoint(parsed.params):
        return uri
    return f"https://s3.console.aws.amazon.com/s3/object/{parsed.host}?prefix={quote(parsed.path)}"
