"""The life of a protection: taken before the plan, renewed while the run shows signs of life, moved on at the commit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta

import psycopg

from spanvault.config.clusters import Cluster
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.protect import Owner, advance, mark, release
from spanvault.database.postgres.server import Connection
from spanvault.errors import BadInput, Busy
from spanvault.model.manifest import Manifest, Plan, Protection
from spanvault.model.places import Places
from spanvault.model.request import BackupRequest
from spanvault.model.units import parse_duration

_log = logging.getLogger(__name__)

RUN_PROTECTION = timedelta(hours=4)  # how long a run that shows no sign of life keeps the source's log


def protection_length(request: BackupRequest, at_least: timedelta = timedelta(0)) -> timedelta:
    """How long the source keeps its log after a sign of life: as the request asks, and at least as long as a run may be
    silent and as `at_least` says."""
    asked = request.options.protection
    return max(RUN_PROTECTION, at_least, timedelta(0) if asked == "none" else parse_duration(asked))


def renew(cluster: Cluster, plan: Plan, clock: Callable[[], datetime]) -> None:
    """A sign of life of a running backup, so that nobody takes its protections for forgotten ones.

    Several workers may do it at once; one of them is enough.
    """
    owner = _owner(plan, clock(), protection_length(plan.request))
    for planned in plan.databases:
        with connect(cluster.primary, planned.database.name, purpose="protection") as connection:
            _mark(connection, planned.protection, owner)


def _owner(run: Plan | Manifest, now: datetime, length: timedelta) -> Owner:
    return Owner(
        collection_id=run.collection_id,
        collection=str(Places.parse(run.request.into).default),
        expires_at=now + length,
        run_key=run.run_key,
        seen_at=now,
    )


def _mark(connection: Connection, protection: Protection, owner: Owner) -> None:
    try:
        mark(connection, protection.publication, owner)
    except (psycopg.InternalError, psycopg.ProgrammingError, Busy, BadInput) as error:
        # Another worker marks it, or DDL holds it, at this moment; or it is gone, which the next reader of the log says in
        # its own words.
        _log.debug("The protection of %s was not renewed: %s", protection.database, error)


def give_up(cluster: Cluster, plan: Plan) -> None:
    """Release the protections of a plan that can never be finished."""
    for planned in plan.databases:
        with connect(cluster.primary, planned.database.name, purpose="protection") as connection:
            release(connection, planned.protection.slot, planned.protection.publication)


def move_on(cluster: Cluster, manifest: Manifest, clock: Callable[[], datetime], *, at_least: timedelta = timedelta(0)) -> None:
    """After the commit: move every slot to the layer's end, also over an empty window, and put the protection's end off;
    or give the protection up if the backup asked for that. `at_least`: how long to keep it, at the least, for the next
    run of a schedule.

    Idempotent; a slot is never moved backwards. A crash before this leaves a slot that lags, which the next layer's run
    moves on. A protection that is gone by now is no error here: this layer stands.
    """
    keep = manifest.request.options.protection != "none"
    owner = _owner(manifest, clock(), protection_length(manifest.request, at_least))
    for entry in manifest.databases:
        protection = entry.protection
        with connect(cluster.primary, protection.database, purpose="protection") as connection:
            if not keep:
                release(connection, protection.slot, protection.publication)
            elif advance(connection, protection.slot, manifest.end.lsn):
                _mark(connection, protection, owner)
            else:
                _log.warning("The slot %s holds no log any more: the chain ends at %s.", protection.slot, manifest.end)
