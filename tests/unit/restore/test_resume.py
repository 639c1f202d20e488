"""Which unfinished restore a statement goes on with: the one of the same request, at an older end of the same chain."""

from __future__ import annotations

from pathlib import Path

import pytest

from spanvault.collection.chain import no_locations, resolve
from spanvault.config.clusters import cluster_from_url
from spanvault.merge.history import TableHistory
from spanvault.model.cut import Cut, Lsn
from spanvault.model.request import RestoreOptions, RestoreRequest
from spanvault.model.target import DatabaseTarget
from spanvault.restore.plan import make_plan
from spanvault.restore.resume import Begun, begun_cut
from spanvault.restore.work import Work
from spanvault.storage.local import LocalStorage
from tests.kit.collections import at, write_collection, write_layer

NOWHERE = cluster_from_url("postgresql://nobody@127.0.0.1:1/postgres")


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    """A chain of a full and two layers."""
    storage = LocalStorage(tmp_path, "file:///backups")
    manifest = write_collection(storage)
    for number in (1, 2):
        end = Cut(lsn=Lsn(0x200 + 0x100 * number), time=at(30 + 60 * number))
        manifest = write_layer(storage, manifest, end=end, commits={"shop": [(0x180 + 0x100 * number, at(60 * number))]})
    return storage


def work(storage: LocalStorage, position: int | None = None, name: str = "copy") -> Work:
    """The restore of the database under another name, at the chain's end or at a position."""
    resolved = resolve(storage, as_of=None if position is None else Lsn(position), open_location=no_locations)
    options = RestoreOptions(new_db_name=name)
    request = RestoreRequest(target=DatabaseTarget(names=("shop",)), collection="file:///backups", options=options)
    plan = make_plan(
        resolved,
        lambda origins: {key: TableHistory(origin.table, ()) for key, origin in origins.items()},
        request,
        lambda _: (),
        "postgres",
    )
    return Work(cluster=NOWHERE, storage=storage, resolved=resolved, plan=plan)


def begun(*works: Work) -> list[Begun]:
    return [Begun(one.plan.id, one.plan.layers) for one in works]


def test_what_was_backed_up_since_does_not_keep_a_restore_from_going_on(storage: LocalStorage) -> None:
    found = begun_cut(work(storage), begun(work(storage, 0x200), work(storage, 0x300)), no_locations)
    assert found == Cut(lsn=Lsn(0x300), time=at(90))


def test_another_unfinished_restore_in_the_target_is_not_gone_on_with(storage: LocalStorage) -> None:
    """One that was begun with other options ends nowhere in this request's chain."""
    assert begun_cut(work(storage), begun(work(storage, 0x300, name="other")), no_locations) is None


def test_a_restore_that_was_begun_at_the_newest_end_is_gone_on_with_there(storage: LocalStorage) -> None:
    assert begun_cut(work(storage), begun(work(storage, 0x300), work(storage)), no_locations) is None
