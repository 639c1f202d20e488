"""What a person or a schedule asks for, in whatever way: statement, form or API. Pure values."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Literal

from pydantic import Field

from spanvault.model.base import Value
from spanvault.model.target import ClusterTarget, Target


class BackupOptions(Value):
    """The options of BACKUP. `protection`: how long the source keeps history for this backup's successors after the
    last sign of life, as a duration such as `4h`, or `none` to give it up at commit. `fingerprint`: let PostgreSQL
    compute a count and hash of every table at the cut. `rate_limit`: bytes a second over all workers, 0 for none.
    `span_bytes`: table bytes a span aims at."""

    protection: str = "4h"
    fingerprint: bool = False
    rate_limit: int = Field(default=0, ge=0)
    span_bytes: int = Field(default=64 << 20, ge=8192)
    workers: int = Field(default=2, ge=1, le=256)
    detached: bool = False


class BackupRequest(Value):
    """BACKUP [targets] INTO 'uri' [WITH options]."""

    kind: Literal["backup"] = "backup"
    target: Target = ClusterTarget()
    into: str
    options: BackupOptions = BackupOptions()

    def digest(self) -> str:
        """Equal for requests that ask for the same thing; says whether an unfinished run may be continued."""
        return hashlib.sha256(self.model_dump_json(exclude={"options": {"workers", "detached"}}).encode()).hexdigest()


class RestoreOptions(Value):
    """The options of RESTORE, named as in CockroachDB where it has them."""

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
    as_of: datetime | None = None
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
