"""Who may see the Backups page: whoever is logged in to Airflow and may see plugins and DAG runs.

Names that FastAPI's dependencies are found by must be names of this module: in a function they would become parameters of
the address.
"""

from __future__ import annotations

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import AccessView, DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import HTTPException


def may_read(user: GetUserDep) -> None:
    """Let the user in, or raise HTTPException: 401 before login, 403 for a role that may not."""
    manager = get_auth_manager()
    # Which DAG is not taken from the request: anybody could name one that he may see.
    allowed = manager.is_authorized_view(access_view=AccessView.PLUGINS, user=user) and manager.is_authorized_dag(
        method="GET", access_entity=DagAccessEntity.RUN, user=user
    )
    if not allowed:
        raise HTTPException(403)
