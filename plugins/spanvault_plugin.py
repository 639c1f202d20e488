"""What Airflow loads from the plugins folder: the only file it scans (see .airflowignore).

Every Airflow process imports this module, so it stays light: the engine is imported inside the tasks.
"""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin

from spanvault_airflow.links import ManifestLink


class SpanvaultPlugin(AirflowPlugin):
    """Registers the extra links of the operators."""

    name = "spanvault"
    operator_extra_links: list[Any] = [ManifestLink()]  # noqa: RUF012 - as Airflow declares it
