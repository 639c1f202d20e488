"""The validation level `schema_only`: a backup's schema restored into a server that exists for that only."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spanvault.config.clusters import Cluster
    from spanvault.engine.context import Context
    from spanvault.model.request import RestoreRequest

DATABASE = "schema_check"


def restore_schema_into_scratch(engine: Context, collection: str, subdir: str) -> str:
    """Create everything but rows of a backup in a scratch PostgreSQL; the path of the backup.

    Raises NotFound for a backup that does not exist, Damaged for a schema whose bytes have changed, and whatever the
    scratch server refuses: also an extension that is not among those of PostgreSQL itself.
    """
    from spanvault.collection.lookup import find_subdir
    from spanvault.engine.restore_local import run_restore

    found = find_subdir(engine.storage(collection), subdir)
    request = _request(engine, collection, found)
    with _scratch_cluster(engine.settings.scratch_dir, request.options.into_db) as cluster:
        run_restore(engine, cluster, request, processes=False)
    return found


def _request(engine: Context, collection: str, subdir: str) -> RestoreRequest:
    """All that the backup holds, without rows; schemas and tables go into one empty database."""
    from spanvault.collection.chain import resolve
    from spanvault.model.request import RestoreOptions, RestoreRequest
    from spanvault.model.target import SchemaTarget, TableTarget

    target = resolve(engine.storage(collection), subdir)[-1].request.target
    into_db = DATABASE if isinstance(target, SchemaTarget | TableTarget) else None
    options = RestoreOptions(schema_only=True, into_db=into_db)
    return RestoreRequest(target=target, subdir=subdir, collection=collection, options=options)


@contextmanager
def _scratch_cluster(scratch_dir: Path | None, database: str | None) -> Iterator[Cluster]:
    """A PostgreSQL that is deleted afterwards, with the empty `database` if one is asked for."""
    from spanvault.config.clusters import cluster_from_url
    from spanvault.database.postgres.connect import connect
    from spanvault.embedded.postgres import PostgresServer

    folder = Path(tempfile.mkdtemp(prefix="spanvault-schema-", dir=scratch_dir))
    try:
        folder.chmod(0o755)  # the server may run as another user
        with PostgresServer(folder / "server", name="schema-check") as server:
            cluster = cluster_from_url(server.url(), "schema-check")
            if database is not None:
                with connect(cluster.primary, purpose="schema check") as connection:
                    connection.execute(f'CREATE DATABASE "{database}" TEMPLATE template0')
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)
