"""What a run is given that the form of its DAG does not have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from spanvault.errors import BadInput
from spanvault.model.sentences import nearest
from spanvault_airflow.run_fields import require_known_fields


def run_given(conf: dict[str, Any] | None) -> Any:
    return SimpleNamespace(dag_id="restore", conf=conf)


def test_a_slip_in_a_field_is_refused() -> None:
    """The field would stay at its default: a restore of the newest state instead of the one that was asked for."""
    with pytest.raises(BadInput) as caught:
        require_known_fields(run_given({"uri": "file:///c", "as_off": "-1h"}), ["uri", "as_of"])
    assert str(caught.value) == (
        "The run was given the field 'as_off', which the form of restore does not have (did you mean 'as_of'?); it has uri, "
        "as_of. Nothing was done; trigger the run anew."
    )
    for conf in (None, {}, {"as_of": "-1h"}):
        require_known_fields(run_given(conf), ["uri", "as_of"])


def test_the_nearest_name() -> None:
    assert nearest("as_off", ["uri", "as_of"]) == " (did you mean 'as_of'?)"
    assert nearest("zzz", ["uri", "as_of"]) == ""
