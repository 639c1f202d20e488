"""The fields of the trigger forms. Nothing here takes a secret: Airflow stores and shows what is typed."""

from __future__ import annotations

from typing import Any, Final

from airflow.sdk import Param

from spanvault.verify.result import BACKUP_LEVELS
from spanvault_airflow.targets import SCOPES

# JSON schema regular expression, also run by the browser: a scheme, and no parameter whose value would be a secret.
SAFE_URI: Final = (
    r"^[a-z][a-z0-9-]*://(?!.*(SECRET|secret|TOKEN|token|PASSWORD|password|PASSPHRASE|passphrase|CREDENTIALS|ACCOUNT_KEY)"
    r"[A-Za-z_]*=)[^@\s]*$"
)
_SUBDIR: Final = r"^(LATEST|/?\d{4}/\d{2}/\d{2}-\d{6}\.\d{2}/?)$"
_DURATION: Final = r"^(none|([0-9]+(\.[0-9]+)?[dhms])+)$"

_WHERE, _WHAT, _HOW = "Where", "What", "How"


def collection(default: str, what: str) -> Param:
    """A collection's URI."""
    return Param(
        default,
        type="string",
        pattern=SAFE_URI,
        title="Collection",
        description_md=(
            f"{what} For example `s3://bucket/path?conn_id=my_s3`, `nodelocal://self/path` or `file:///path`. "
            "No keys or passwords: `conn_id` names an Airflow Connection that holds them."
        ),
        section=_WHERE,
    )


def cluster(default: str, known: list[str], title: str, what: str) -> Param:
    """A cluster of clusters.yaml."""
    return Param(default, type="string", minLength=1, examples=known, title=title, description_md=what, section=_WHERE)


def backup_fields(default_cluster: str, known_clusters: list[str], into: str) -> dict[str, Any]:
    """The form of a backup."""
    return {
        "cluster": cluster(default_cluster, known_clusters, "Cluster", "The source, as named in `include/config/clusters.yaml`."),
        "into": collection(into, "Where the backup goes."),
        **_target_fields("back up"),
        "validate": Param(
            "check_files",
            type="string",
            enum=list(BACKUP_LEVELS),
            values_display=_LEVEL_NAMES,
            title="Check afterwards",
            description="How the committed backup is validated before the source may forget its change log.",
            section=_HOW,
        ),
        "fingerprint": Param(
            False,
            type="boolean",
            title="Fingerprint",
            description="Let PostgreSQL compute a count and hash of every table at the cut: the proof that a restore is equal.",
            section=_HOW,
        ),
        "protection": Param(
            "4h",
            type="string",
            pattern=_DURATION,
            title="Keep history for",
            description_md="How long the source keeps its change log for a backup on top of this one: `4h`, `7d` or `none`.",
            section=_HOW,
        ),
        "rate_limit": Param(
            0,
            type="integer",
            minimum=0,
            title="Rate limit",
            description="Bytes a second over all tasks; 0 for none.",
            section=_HOW,
        ),
    }


def restore_fields(default_cluster: str, known_clusters: list[str], into: str) -> dict[str, Any]:
    """The form of a restore."""
    return {
        "collection": collection(into, "Where the backup is."),
        "subdir": _subdir("The backup's path as SHOW BACKUPS lists it, or `LATEST`."),
        "cluster": cluster(
            default_cluster, known_clusters, "Target cluster", "Where to restore to; nothing there is overwritten."
        ),
        **_target_fields("restore"),
        "new_db_name": Param(
            None,
            type=["null", "string"],
            title="New database name",
            description="For one database: restore it under this name, beside the original.",
            section=_WHAT,
        ),
        "into_db": Param(
            None,
            type=["null", "string"],
            title="Into database",
            description="For tables and schemas: the existing database that receives them.",
            section=_WHAT,
        ),
        "schema_only": Param(
            False, type="boolean", title="Schema only", description="Create everything, load no rows.", section=_HOW
        ),
        "verify_backup_table_data": Param(
            False,
            type="boolean",
            title="Verify table data",
            description="With schema only: read and check all rows as well, without loading them.",
            section=_HOW,
        ),
        "verify_fingerprint": Param(
            False,
            type="boolean",
            title="Verify fingerprint",
            description="Compare restored tables with the fingerprint in the backup, if it was taken with one.",
            section=_HOW,
        ),
        "grants": Param(
            False, type="boolean", title="Grants", description="Give same-named roles the privileges they had.", section=_HOW
        ),
    }


def validate_fields(into: str) -> dict[str, Any]:
    """The form of a validation."""
    return {
        "collection": collection(into, "Where the backup is."),
        "subdir": _subdir("The backup's path as SHOW BACKUPS lists it, or `LATEST`."),
        "level": Param(
            "checksums",
            type="string",
            enum=list(BACKUP_LEVELS),
            values_display=_LEVEL_NAMES,
            title="Level",
            description_md="More coverage takes more time; only a restore proves everything.",
            section=_HOW,
        ),
    }


def expire_fields(into: str) -> dict[str, Any]:
    """The form of an expiry."""
    return {
        "collection": collection(into, "Whose old backups to delete."),
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


_LEVEL_NAMES = {
    "check_files": "check_files: every file is there and has its size",
    "checksums": "checksums: every byte is what was written",
    "schema_only": "schema_only: the schema restores into a scratch server",
}


def _subdir(what: str) -> Param:
    return Param("LATEST", type="string", pattern=_SUBDIR, title="Backup", description_md=what, section=_WHERE)


def _target_fields(verb: str) -> dict[str, Any]:
    return {
        "scope": Param(
            "cluster",
            type="string",
            enum=list(SCOPES),
            title="Scope",
            description=f"What to {verb}: everything, or what is named below.",
            section=_WHAT,
        ),
        "names": Param(
            [],
            type="array",
            items={"type": "string", "minLength": 1},
            title="Names",
            description_md=(
                "One per line: `shop` (a database), `shop.public` (a schema), `shop.public.orders` or `shop.public.*` (tables)."
            ),
            section=_WHAT,
        ),
    }
