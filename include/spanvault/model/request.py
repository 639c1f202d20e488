"""What a person or a schedule asks for, in whatever way: statement, form or API. Pure values."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Literal

from pydantic import Field

from spanvault.model.base import Value
from spanvault.model.cut import Lsn
from spanvault.model.target import ClusterTarget, Target


class BackupOptions(Value):
    """The options of BACKUP. `protection`: how long the source keeps history for this backup's successors after the
    last sign of life, as a duration such as `4h`, or `none` to give it up at commit. `fingerprint`: let PostgreSQL
    compute a count and hash of every table at the cut. `rate_limit`: bytes a second over all workers, 0 for none.
    `span_bytes`: table bytes a span aims at.

    Of incremental backups: `revision_history` keeps every committed change instead of the last one of each key;
    `incremental_location` is the URI that their data files go to; `without_identity` says what happens to tables whose
    changes the log does not tell: read whole each time they changed, skipped, or the backup fails; `on_broken_chain`
    whether a chain that cannot go on is followed by a full backup; `max_clock_skew` how far commit times may run
    backwards in the log."""

    protection: str = "4h"
    revision_history: bool = False
    incremental_location: str | None = None
    without_identity: Literal["full", "skip", "fail"] = "full"
    on_broken_chain: Literal["full", "fail"] = "full"
    max_clock_skew: str = "5m"
    fingerprint: bool = False
    rate_limit: int = Field(default=0, ge=0)
    span_bytes: int = Field(default=64 << 20, ge=8192)
    workers: int = Field(default=2, ge=1, le=256)
    detached: bool = False


class BackupRequest(Value):
    """BACKUP [targets] INTO [LATEST IN | 'subdir' IN] 'uri' [AS OF SYSTEM TIME ...] [WITH options].

    `append` names the chain (LATEST or a path) that gets an incremental layer, None asks for a new full. `as_of` is the
    time at which the layer ends, None for now.
    """

    kind: Literal["backup"] = "backup"
    target: Target = ClusterTarget()
    append: str | None = None
    into: str
    as_of: datetime | None = None
    options: BackupOptions = BackupOptions()

    def digest(self) -> str:
        """Equal for requests that ask for the same thing; says whether an unfinished run may be continued."""
        return hashlib.sha256(self.model_dump_json(exclude={"options": {"workers", "detached"}}).encode()).hexdigest()


class RestoreOptions(Value):
    """The options of RESTORE, named as in CockroachDB where it has them. `strict` refuses to take anything from another
    position than the restore's cut; `skip_unrestorable_tables` leaves out the tables that the cut has no rows of."""

    strict: bool = False
    skip_unrestorable_tables: bool = False
    incremental_location: str | None = None
    new_db_name: str | None = None
    into_db: str | None = None
    schema_only: bool = False
    verify_backup_table_data: bool = False
    verify_fingerprint: bool = False
    grants: bool = False
    workers: int = Field(default=2, ge=1, le=256)
    detached: bool = False
    on_failure: Literal["keep", "clean"] = "keep"


class RestoreRequest(Value):
    """RESTORE [targets] FROM LATEST | 'subdir' IN 'uri' [AS OF SYSTEM TIME ...] [WITH options]."""

    kind: Literal["restore"] = "restore"
    target: Target = ClusterTarget()
    subdir: str = "LATEST"
    collection: str
    as_of: datetime | Lsn | None = None
    options: RestoreOptions = RestoreOptions()


class ShowBackupsRequest(Value):
    """SHOW BACKUPS IN 'uri'."""

    kind: Literal["show_backups"] = "show_backups"
    collection: str


class ShowBackupRequest(Value):
    """SHOW BACKUP [FROM] LATEST | 'subdir' IN 'uri' [WITH check_files, as_json]."""

    kind: Literal["show_backup"] = "show_backup"
    subdir: str = "LATEST"
    collection: str
    check_files: bool = False
    as_json: bool = False


Request = BackupRequest | RestoreRequest | ShowBackupsRequest | ShowBackupRequest
