"""What CockroachDB knows and this version does not do: told apart from mistakes, with the reason and the right form."""

from __future__ import annotations

import re

FULL_AS_OF = (
    "A full backup reads the present and takes no AS OF SYSTEM TIME; take an incremental up to that time (BACKUP ... INTO "
    "LATEST IN 'uri' AS OF SYSTEM TIME ...), or merge what is there with `spanvault collection compact --full`"
)
BACKUP_AS_OF_POSITION = (
    "BACKUP takes a time, not a log position: where the layer ends in the log follows from the commits' times; write it as "
    "in '2026-11-22 14:30:00' or '-10m'"
)
FULL_LOCATION = (
    "Option incremental_location is the place of an incremental backup's data; a full backup's lies in the collection: leave "
    "the option out, or write INTO LATEST IN 'uri'"
)
BACKUP_TO = "BACKUP ... TO was removed from CockroachDB, too; write BACKUP ... INTO 'uri'"
RESTORE_FROM_URI = "RESTORE ... FROM 'uri' was removed from CockroachDB, too; write RESTORE ... FROM LATEST IN 'uri'"
SHOW_BACKUP_IN = (
    "SHOW BACKUP needs to know which one: write SHOW BACKUP FROM LATEST IN 'uri', or SHOW BACKUPS IN 'uri' for the list"
)
SYSTEM_USERS = "this version cannot restore roles alone: a restore of the whole cluster brings them"

_VIRTUAL = "PostgreSQL has no virtual clusters"
_REGIONS = "PostgreSQL's databases have no regions"
_ONLINE = (
    "an online restore is CockroachDB's storage at work and has no counterpart in PostgreSQL; every restore here copies the data"
)

OPTIONS: dict[str, dict[str, str]] = {
    "BACKUP": {
        "include_all_virtual_clusters": _VIRTUAL,
        "updates_cluster_monitoring_metrics": (
            "this version publishes no metrics; Airflow tells how runs went and how long they took, SHOW BACKUP rows and bytes"
        ),
    },
    "RESTORE": {
        "skip_localities_check": _REGIONS,
        "remove_regions": _REGIONS,
        "strip_localities": _REGIONS,
        "experimental copy": _ONLINE,
        "experimental deferred copy": _ONLINE,
        "unsafe_restore_incompatible_version": "a backup restores into newer versions without it, never into older ones",
        "virtual_cluster": _VIRTUAL,
        "virtual_cluster_name": _VIRTUAL,
    },
    "SHOW BACKUP": {
        "skip size": "sizes are stored with the backup here and cost nothing to show",
    },
}

_SCHEDULES = (
    "this version has no schedule statements; the DAGs full_backup, incremental_backup, revision_history_backup and "
    "encrypted_backup have a schedule in Airflow"
)
_JOBS = "this version has no job statements; runs are shown, stopped and started in Airflow"
_STATEMENTS: tuple[tuple[str, str], ...] = (
    (r"(create|alter|drop|pause|resume|show(\s+create)?)\s+(backup\s+)?schedules?", _SCHEDULES),
    (r"show\s+(running|paused)\s+schedules", _SCHEDULES),
    (r"(show|pause|resume|cancel)\s+(automatic\s+)?jobs?", _JOBS),
    (
        r"check\s+external\s+connections?",
        "this version has no external connections; `spanvault storage check` tries a URI, which may name an Airflow connection "
        "(?conn_id=...)",
    ),
    (
        r"(create|drop|show(\s+create)?)\s+external\s+connections?",
        "this version has no external connections; name an Airflow connection in the URI (?conn_id=...)",
    ),
    (
        r"show\s+backup\s+(files|ranges)",
        "a backup here is Parquet files, not key ranges; SHOW BACKUP ... WITH check_files adds up"
        " their bytes, and WITH as_json names the list of them",
    ),
    (r"show\s+backup\s+validate", "`spanvault collection check` validates backups, at four levels"),
    (r"show\s+backup\s+connection", "`spanvault storage check` tries a place that backups may go to"),
    (r"set\s+", "this version has no session settings; give options WITH the statement"),
    (r"explain\s+", "there is no EXPLAIN; `spanvault sql --dry-run` says what a statement would do"),
)


def statement(text: str) -> str | None:
    """Why a whole statement of CockroachDB's is not done here, judged by its first words; None for all others."""
    for pattern, reason in _STATEMENTS:
        if re.match(pattern + r"(?!\w)" if pattern[-1] != "+" else pattern, text, re.IGNORECASE):
            return reason
    return None


def option(of: str, name: str) -> str | None:
    """Why an option that CockroachDB's statement `of` has is not taken here; None for names it does not know either."""
    return OPTIONS.get(of, {}).get(name)
