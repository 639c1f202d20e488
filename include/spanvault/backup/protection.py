"""The life of a protection: taken before the plan, renewed while the run shows signs of life, moved on at the commit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta

import psycopg

from spanvault.config.clusters import Cluster
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.protect import Owner, advance, mark, release
from spanvault.model.manifest import Manifest, Plan
from spanvault.model.request import BackupRequest
from spanvault.model.units import parse_duration

_log = logging.getLogger(__name__)

RUN_PROTECTION = timedelta(hours=4)  # how long a run that shows no sign of life keeps the source's log


def protection_length(request: BackupRequest) -> timedelta:
    """How long the source keeps its log after a sign of life: at least as long as a run may be silent."""
    asked = request.options.protection
    return RUN_PROTECTION if asked == "none" else max(RUN_PROTECTION, parse_duration(asked))


def renew(cluster: Cluster, plan: Plan, clock: Callable[[], datetime]) -> None:
    """A sign of life of a running backup, so that nobody takes its protections for forgotten ones.

    Several workers may do it at once; one of them is enough.
    """
    expires_at = clock() + protection_length(plan.request)
    owner = Owner(collection_id=plan.collection_id, collection=plan.request.into, expires_at=expires_at)
    for planned in plan.databases:
        with connect(cluster.primary, planned.database.name, purpose="protection") as connection:
            try:
                mark(connection, planned.protection.publication, owner)
            except (psycopg.InternalError, psycopg.ProgrammingError) as error:
                # Another worker marks it at this moment; or it is gone, which the seal will say in its own words.
                _log.debug("The protection of %s was not renewed: %s", planned.database.name, error)


def give_up(cluster: Cluster, plan: Plan) -> None:
    """Release the protections of a plan that can never be finished."""
    for planned in plan.databases:
        with connect(cluster.primary, planned.database.name, purpose="protection") as connection:
            release(connection, planned.protection.slot, planned.protection.publication)


def move_on(cluster: Cluster, manifest: Manifest, clock: Callable[[], datetime]) -> None:
    """After the commit: move every slot to the layer's end, or give the protection up if the backup asked for that.

    Idempotent; a slot is never moved backwards.
    """
    keep = manifest.request.options.protection != "none"
    expires_at = clock() + protection_length(manifest.request)
    owner = Owner(collection_id=manifest.collection_id, collection=manifest.request.into, expires_at=expires_at)
    for entry in manifest.databases:
        protection = entry.protection
        with connect(cluster.primary, protection.database, purpose="protection") as connection:
            if not keep:
                release(connection, protection.slot, protection.publication)
                continue
            # A run that is repeated long after its protection ended finds nothing to move.
            if advance(connection, protection.slot, manifest.end.lsn):
                mark(connection, protection.publication, owner)
