"""The engine's context inside an Airflow task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spanvault.config.settings import Settings
    from spanvault.engine.context import Context
    from spanvault_airflow.progress import Log


def project_settings() -> Settings:
    """The settings of the environment; without SPANVAULT_CLUSTERS_FILE the clusters are those of the project's
    `include/config/clusters.yaml`. Raises BadInput."""
    import spanvault
    from spanvault.config.settings import Settings

    settings = Settings.load()
    if settings.clusters_file is not None:
        return settings
    return settings.model_copy(update={"clusters_file": Path(spanvault.__file__).parents[1] / "config" / "clusters.yaml"})


def engine_context(log: Log) -> Context:
    """Settings from the environment, connections from Airflow, progress into `log`."""
    from spanvault.engine.context import Context
    from spanvault_airflow.hooks.connections import AirflowConnections
    from spanvault_airflow.progress import LogProgress

    return Context(settings=project_settings(), connections=AirflowConnections(), progress=LogProgress(log))
