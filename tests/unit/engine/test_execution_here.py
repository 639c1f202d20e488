"""EXECUTION LOCALITY and the machine on which a statement is typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from spanvault.config.clusters import Cluster, Endpoint
from spanvault.config.settings import Settings
from spanvault.engine.context import Context
from spanvault.engine.local import run_backup
from spanvault.engine.restore_local import run_restore
from spanvault.errors import NotFound, Refused, Retryable
from spanvault.model.locality import Locality
from spanvault.model.request import BackupOptions, BackupRequest, RestoreOptions, RestoreRequest

NODE = Endpoint(
    node="one", host="127.0.0.1", port=1, user="postgres", database="postgres", locality=Locality.parse("region=us,zone=b")
)
NOWHERE = Cluster(name="shop", endpoints=(NODE,))


def backup(here: str, folder: Path) -> None:
    request = BackupRequest(into=f"file://{folder}", options=BackupOptions(execution_locality="region=us"))
    run_backup(Context(settings=Settings(locality=here)), NOWHERE, request, processes=False)


def restore(here: str, folder: Path) -> None:
    request = RestoreRequest(collection=f"file://{folder}", options=RestoreOptions(execution_locality="region=us"))
    run_restore(Context(settings=Settings(locality=here)), NOWHERE, request, processes=False)


@pytest.mark.parametrize("run", [backup, restore])
def test_a_machine_elsewhere_refuses_before_anything(run: object, tmp_path: Path) -> None:
    assert callable(run)
    with pytest.raises(Refused, match=r"EXECUTION LOCALITY = 'region=us' does not match this machine, .* is region=eu; run the"):
        run("region=eu", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("here", ["", "region=us", "region=us,zone=a"])
def test_a_machine_there_or_without_a_locality_goes_on(here: str, tmp_path: Path) -> None:
    with pytest.raises(Retryable):
        backup(here, tmp_path)
    with pytest.raises(NotFound):
        restore(here, tmp_path)
