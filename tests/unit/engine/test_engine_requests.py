"""Requests that come by a form or a call obey the same rules as statements, and before anything is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from spanvault.config.clusters import cluster_from_url
from spanvault.embedded.ports import free_ports
from spanvault.engine.context import Context
from spanvault.engine.restore_steps import plan_restore
from spanvault.engine.steps import plan_backup
from spanvault.errors import BadInput
from spanvault.model.request import BackupOptions, BackupRequest, RestoreOptions, RestoreRequest
from spanvault.model.target import DatabaseTarget, TablePattern, TableTarget

SHOP = DatabaseTarget(names=("shop",))
ORDERS = TableTarget(patterns=(TablePattern(name="orders"),))


@pytest.fixture
def nowhere() -> str:
    """The URL of a server that is not there."""
    return f"postgresql://backup@127.0.0.1:{free_ports(1)[0]}/shop"


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (BackupRequest(target=DatabaseTarget(names=("shop", "shop")), into=""), "'shop' is named twice"),
        (BackupRequest(into="", options=BackupOptions(protection="forever")), "'forever' is not a duration"),
    ],
)
def test_a_backup_that_contradicts_itself(request_: BackupRequest, reason: str, nowhere: str, tmp_path: Path) -> None:
    asked = request_.model_copy(update={"into": f"file://{tmp_path}/backups"})
    with pytest.raises(BadInput, match=reason):
        plan_backup(Context(), cluster_from_url(nowhere), asked, run_key="run")
    assert not (tmp_path / "backups").exists()


@pytest.mark.parametrize(
    ("target", "options", "reason"),
    [
        (SHOP, {"verify_backup_table_data": True}, "the schema_only option must be set"),
        (SHOP, {"verify_fingerprint": True, "schema_only": True}, "give one of them"),
        (SHOP, {"into_db": "copy"}, "use new_db_name"),
        (ORDERS, {"new_db_name": "copy"}, "with a single target database"),
        (TableTarget(patterns=ORDERS.patterns * 2), {}, "'public.orders' is named twice"),
    ],
)
def test_a_restore_that_contradicts_itself(
    target: DatabaseTarget | TableTarget, options: dict[str, bool | str], reason: str, nowhere: str, tmp_path: Path
) -> None:
    asked = RestoreRequest(target=target, collection=f"file://{tmp_path}/backups", options=RestoreOptions.model_validate(options))
    with pytest.raises(BadInput, match=reason):
        plan_restore(Context(), cluster_from_url(nowhere), asked)
