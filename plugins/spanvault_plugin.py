"""What Airflow loads from the plugins folder: the only file it scans (see .airflowignore).

Every Airflow process imports this module, so it stays light: the engine is imported inside the tasks, the Backups page when
somebody opens it.
"""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin

from spanvault_airflow.links import ManifestLink
from spanvault_airflow.ui.page import NAVIGATION, URL_PREFIX, BackupsPage


class SpanvaultPlugin(AirflowPlugin):
    """Registers the extra links of the operators and the Backups page."""

    name = "spanvault"
    operator_extra_links: list[Any] = [ManifestLink()]  # noqa: RUF012 - as Airflow declares it
    fastapi_apps: list[Any] = [{"app": BackupsPage(), "url_prefix": URL_PREFIX, "name": "Spanvault: backups"}]  # noqa: RUF012
    external_views: list[Any] = [NAVIGATION]  # noqa: RUF012
