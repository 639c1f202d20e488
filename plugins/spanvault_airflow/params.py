"""The trigger forms. Nothing here takes a secret: Airflow stores and shows what is typed."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Param

from spanvault.verify.result import BACKUP_LEVELS
from spanvault_airflow.fields import (
    CHAIN,
    DURATION,
    HOW,
    MISSING,
    WHAT,
    WHERE,
    cluster,
    collection,
    execution_locality_field,
    incremental_location_field,
    places,
    subdir,
    target_fields,
)
from spanvault_airflow.operators.compact import MODES

_LEVEL_NAMES = {
    "check_files": "check_files: every file is there and has its size",
    "checksums": "checksums: every byte is what was written",
    "schema_only": "schema_only: the schema restores into a scratch server",
    "verify_backup_table_data": "verify_backup_table_data: and every row can be read as a restore reads it",
}


def backup_fields(default_cluster: str, known_clusters: list[str], into: str) -> dict[str, Any]:
    """The form of a backup."""
    return {
        "cluster": cluster(default_cluster, known_clusters, "Cluster", "The source, as named in `include/config/clusters.yaml`."),
        "into": collection(into, "Where the backup goes."),
        **target_fields("back up"),
        "validate": Param(
            "check_files",
            type="string",
            enum=list(BACKUP_LEVELS),
            values_display=_LEVEL_NAMES,
            title="Check afterwards",
            description="How the committed backup is validated before the source may forget its change log.",
            section=HOW,
        ),
        "fingerprint": Param(
            False,
            type="boolean",
            title="Fingerprint",
            description="Let PostgreSQL compute a count and hash of every table at the cut: the proof that a restore is equal.",
            section=HOW,
        ),
        "protection": Param(
            "4h",
            type="string",
            pattern=DURATION,
            title="Keep history for",
            description_md="How long the source keeps its change log for a backup on top of this one: `4h`, `7d` or `none`.",
            section=HOW,
        ),
        "rate_limit": Param(
            0,
            type="integer",
            minimum=0,
            title="Rate limit",
            description="Bytes a second over all tasks; 0 for none.",
            section=HOW,
        ),
    }


def chain_fields(default_cluster: str, known_clusters: list[str], into: str) -> dict[str, Any]:
    """The form of a backup that adds to a chain: that of a backup, and what only chains have."""
    fields = backup_fields(default_cluster, known_clusters, into)
    fields["into"] = collection(into, "Where the chain is, or will be.")
    fields["protection"] = Param(
        "7d",
        type="string",
        pattern=DURATION,
        title="Keep history for",
        description_md=(
            "How long after a run the source keeps its change log for the next one. Longer than the interval between runs, and "
            "than any time that Airflow may be down: what the source has forgotten is a gap, and the next run takes a full "
            "backup. `none` gives it up at once, so that every run is a full one."
        ),
        section=HOW,
    )
    return {
        **fields,
        "full_every": Param(
            "7d",
            type="string",
            pattern=DURATION,
            title="Full backup every",
            description_md=(
                "A run takes a full backup, and so begins a new chain, when the newest full is older than this. `none`: only "
                "where there is no chain to add to."
            ),
            section=CHAIN,
        ),
        "on_broken_chain": Param(
            "full",
            type="string",
            enum=["full", "fail"],
            values_display={"full": "full: take a full backup", "fail": "fail: change nothing, say why"},
            title="If the chain cannot go on",
            description="What a run does when the source's history has a gap: slot lost, server restored or promoted.",
            section=CHAIN,
        ),
        "without_identity": Param(
            "full",
            type="string",
            enum=["full", "skip", "fail"],
            values_display={
                "full": "full: read them whole whenever they changed",
                "skip": "skip: leave them out and say so",
                "fail": "fail: take no backup without them",
            },
            title="Tables without a key",
            description="Tables whose changes the log cannot tell, because they have no usable replica identity.",
            section=CHAIN,
        ),
        "incremental_location": incremental_location_field(
            "Put the data files of incremental layers below this URI instead of into the collection; the manifests stay in the "
            "collection.",
            CHAIN,
        ),
    }


def locality_fields(into: str, execution_locality: str, revision_history: bool) -> dict[str, Any]:
    """What a locality-aware backup has beside the form of a chain."""
    return {
        "into": places(into, "Where the chain is, or will be: rows go to the URI of the locality of the node that read them."),
        "strict": Param(
            False,
            type="boolean",
            title="Strict",
            description="Fail rather than write the rows of a node whose locality has no URI to the default one.",
            section=WHERE,
        ),
        "execution_locality": execution_locality_field(execution_locality, "Only nodes there read tables."),
        "revision_history": Param(
            revision_history,
            type="boolean",
            title="Revision history",
            description="Keep every committed change instead of the last one of each row.",
            section=CHAIN,
        ),
    }


# For tables and schemas: by option its title, and what it leaves out.
_SKIPPED = {
    "skip_missing_foreign_keys": ("Skip foreign keys", "Leave out foreign keys to tables that are neither restored nor there"),
    "skip_missing_sequences": ("Skip sequences", "Leave out defaults whose sequence belongs to a table that is not restored"),
    "skip_missing_sequence_owners": ("Skip sequence owners", "Restore such sequences without their owner"),
    "skip_missing_views": ("Skip views", "Leave out views that read what is neither restored nor there"),
    "skip_missing_udfs": ("Skip functions", "Leave out functions that cannot be made there, and what calls them"),
}


def restore_fields(default_cluster: str, known_clusters: list[str], into: str, execution_locality: str = "") -> dict[str, Any]:
    """The form of a restore."""
    return {
        "collection": places(into, "Where the backup is."),
        "subdir": subdir("The backup's path or ID as SHOW BACKUPS lists it, or `LATEST`.", ids=True),
        "as_of": Param(
            None,
            type=["null", "string"],
            title="As of",
            description_md=(
                "The time to restore to: `2026-11-22 10:00:00+00`, `-10m` (before the run began) or a log position; empty for "
                "the newest. `spanvault collection windows` lists what can be had."
            ),
            section=WHERE,
        ),
        "incremental_location": incremental_location_field(
            "Where the data files of the incremental layers are now, if they were moved.", WHERE
        ),
        "cluster": cluster(
            default_cluster, known_clusters, "Target cluster", "Where to restore to; nothing there is overwritten."
        ),
        "execution_locality": execution_locality_field(execution_locality, "The target's primary must be there, too."),
        **target_fields("restore"),
        "new_db_name": Param(
            None,
            type=["null", "string"],
            title="New database name",
            description="For one database: restore it under this name, beside the original.",
            section=WHAT,
        ),
        "into_db": Param(
            None,
            type=["null", "string"],
            title="Into database",
            description="For tables and schemas: the existing database that receives them.",
            section=WHAT,
        ),
        "schema_only": Param(
            False, type="boolean", title="Schema only", description="Create everything, load no rows.", section=HOW
        ),
        "verify_backup_table_data": Param(
            False,
            type="boolean",
            title="Verify table data",
            description="With schema only: read and check all rows as well, without loading them.",
            section=HOW,
        ),
        "verify_fingerprint": Param(
            False,
            type="boolean",
            title="Verify fingerprint",
            description="Compare restored tables with the fingerprint in the backup, if it was taken with one.",
            section=HOW,
        ),
        "grants": Param(
            False, type="boolean", title="Grants", description="Give same-named roles the privileges they had.", section=HOW
        ),
        "strict": Param(
            False,
            type="boolean",
            title="Strict",
            description="Refuse to take anything from another moment than the one asked for, such as sequences.",
            section=HOW,
        ),
        "skip_unrestorable_tables": Param(
            False,
            type="boolean",
            title="Skip unrestorable tables",
            description="Leave out the tables that the backup has no rows of at that time, instead of refusing.",
            section=HOW,
        ),
        **{
            name: Param(False, type="boolean", title=title, description=f"{what}, instead of refusing.", section=MISSING)
            for name, (title, what) in _SKIPPED.items()
        },
    }


def validate_fields(into: str) -> dict[str, Any]:
    """The form of a validation."""
    return {
        "collection": places(into, "Where the backup is."),
        "subdir": subdir("The backup's path as SHOW BACKUPS lists it, or `LATEST`."),
        "level": Param(
            "checksums",
            type="string",
            enum=list(BACKUP_LEVELS),
            values_display=_LEVEL_NAMES,
            title="Level",
            description_md="More coverage takes more time; only a restore proves everything.",
            section=HOW,
        ),
    }


def expire_fields(into: str) -> dict[str, Any]:
    """The form of an expiry."""
    return {
        "collection": places(into, "Whose old backups to delete."),
        "keep_last": Param(
            7,
            type=["null", "integer"],
            minimum=1,
            title="Keep last",
            description="Keep this many of the newest chains (a full backup and what builds upon it).",
            section="Policy",
        ),
        "window": Param(
            "30d",
            type=["null", "string"],
            pattern=r"^([0-9]+(\.[0-9]+)?[dhms])+$",
            title="Keep window",
            description_md="Keep every chain that is needed to restore to any time in this window, such as `30d`.",
            section="Policy",
        ),
        "dry_run": Param(
            True,
            type="boolean",
            title="Dry run",
            description="Only list what would go. Nothing is deleted until this is switched off.",
            section="Safety",
        ),
    }


def compact_fields(into: str) -> dict[str, Any]:
    """The form of a compaction."""
    return {
        "collection": places(into, "Whose layers to merge."),
        "subdir": subdir("The chain's path as SHOW BACKUPS lists it, or `LATEST`."),
        "mode": Param(
            "incrementals",
            type="string",
            enum=list(MODES),
            values_display={
                "incrementals": "incrementals: all of them into one",
                "synthetic_full": "synthetic full: the full and its incrementals into a full",
            },
            title="Merge",
            description="Which layers become one. The source is not asked, and the originals stay until they expire.",
            section=WHAT,
        ),
        "up_to": Param(
            None,
            type=["null", "integer"],
            minimum=1,
            title="Up to layer",
            description="The number of the last layer that is merged, as SHOW BACKUP shows it; empty for the newest.",
            section=WHAT,
        ),
    }
