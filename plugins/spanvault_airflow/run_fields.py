"""What a run was given, against what its DAG's form has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def require_known_fields(dag_run: Any, known: Sequence[str]) -> None:
    """Raise BadInput for a run that was given a field which the DAG's form does not have: Airflow takes any, and a slip in a
    name would leave the field at its default."""
    from spanvault.errors import BadInput
    from spanvault.model.sentences import nearest

    for name in dict(dag_run.conf or {}):
        if name not in known:
            raise BadInput(
                f"The run was given the field {name!r}, which the form of {dag_run.dag_id} does not have{nearest(name, known)};"
                f" it has {', '.join(known)}. Nothing was done; trigger the run anew."
            )
