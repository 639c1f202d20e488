"""What a person or a schedule asks for, in whatever way: statement, form or API. Pure values."""

from __future__ import annotations

import hashlib
import re
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, SecretStr, model_validator

from spanvault.errors import BadInput
from spanvault.model.base import Value
from spanvault.model.cut import Lsn
from spanvault.model.kms_uri import KmsUri
from spanvault.model.locality import Locality
from spanvault.model.target import ClusterTarget, Target
from spanvault.model.uri import REDACTED

# What Airflow takes as the ID of a connection and as the name of a variable; environment variables as in POSIX.
_REFERENCE = re.compile(
    r"connection:[\w#!()\-.:/\\]{1,200}|variable:[^\s\x00-\x1f\x7f]{1,250}|env:[A-Za-z_]\w{0,250}|prompt", re.ASCII
)


class EncryptionOptions(Value):
    """With what a backup is encrypted or read: a passphrase, a reference to one, or keys in key services.

    `passphrase_from` says who is asked for the passphrase, and is no secret: `connection:ID` (an Airflow connection's
    password), `variable:NAME` (an Airflow variable), `env:NAME` (an environment variable) or `prompt` (the person at the
    terminal). `kms` are URIs as KmsUri reads them, which may hold secrets. Raises BadInput, never with a value in the
    message, for more than one of the three, an empty passphrase and anything of another form.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    passphrase: SecretStr | None = None
    passphrase_from: str | None = None
    kms: tuple[SecretStr, ...] = ()

    @property
    def given(self) -> bool:
        """Whether there is anything to encrypt or read with."""
        return self.passphrase is not None or self.passphrase_from is not None or bool(self.kms)

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.kms and (self.passphrase is not None or self.passphrase_from is not None):
            raise BadInput("A backup cannot have both encryption_passphrase and kms option set; give one of them.")
        if self.passphrase is not None:
            if self.passphrase_from is not None:
                raise BadInput("encryption_passphrase and encryption_passphrase_from both name a passphrase; give one of them.")
            _check_passphrase(self.passphrase.get_secret_value())
        if self.passphrase_from is not None and not _REFERENCE.fullmatch(self.passphrase_from):
            raise BadInput("Where a passphrase comes from is written connection:ID, variable:NAME, env:NAME or prompt.")
        for uri in self.kms:
            KmsUri.parse(uri.get_secret_value())
        return self


def _check_passphrase(passphrase: str) -> None:
    if not passphrase.strip():
        raise BadInput("The encryption passphrase is empty; give one that nobody guesses.")
    if passphrase == REDACTED:
        raise BadInput(f"{REDACTED!r} stands where a passphrase was taken out of a statement; write the passphrase there again.")
    try:
        passphrase.encode()
    except UnicodeEncodeError:
        raise BadInput("The encryption passphrase holds a character that cannot be written in UTF-8.") from None


def _locality_text(text: str) -> str:
    return str(Locality.parse(text))


ExecutionLocality = Annotated[str, AfterValidator(_locality_text)]
"""Tiers as `region=eu,zone=a`; empty for no restriction."""


class BackupOptions(Value):
    """The options of BACKUP. `protection`: how long the source keeps history for this backup's successors after the
    last sign of life, as a duration such as `4h`, or `none` to give it up at commit. `fingerprint`: let PostgreSQL
    compute a count and hash of every table at the cut. `rate_limit`: bytes a second over all workers, 0 for none.
    `span_bytes`: table bytes a span aims at. `execution_locality`: only nodes there read tables, and only workers there do
    the work (empty: all); `strict`: of several URIs a node without one of its own must not write to the default.

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
    execution_locality: ExecutionLocality = ""
    strict: bool = False
    workers: int = Field(default=2, ge=1, le=256)
    detached: bool = False


class BackupRequest(Value):
    """BACKUP [targets] INTO [LATEST IN | 'subdir' IN] 'uri' [AS OF SYSTEM TIME ...] [WITH options]. Here and below places are
    texts as model/places.py reads them: one URI, or several with localities, one a line.

    `append` names the chain (LATEST or a path) that gets an incremental layer, None asks for a new full. `as_of` is the
    time at which the layer ends, None for now. `encryption` is in no dump and no digest of a request, so that no document
    and no message between tasks holds it: every process is given it anew.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    kind: Literal["backup"] = "backup"
    target: Target = ClusterTarget()
    append: str | None = None
    into: str
    as_of: datetime | None = None
    options: BackupOptions = BackupOptions()
    encryption: EncryptionOptions = Field(default=EncryptionOptions(), exclude=True, repr=False)

    def digest(self) -> str:
        """Equal for requests that ask for the same thing; says whether an unfinished run may be continued."""
        return hashlib.sha256(self.model_dump_json(exclude={"options": {"workers", "detached"}}).encode()).hexdigest()


class RestoreOptions(Value):
    """The options of RESTORE, named as in CockroachDB where it has them. `strict` refuses to take anything from another
    position than the restore's cut; `skip_unrestorable_tables` leaves out the tables that the cut has no rows of. The others
    of that name leave out what needs something that is neither restored nor in the target."""

    strict: bool = False
    skip_unrestorable_tables: bool = False
    skip_missing_foreign_keys: bool = False
    skip_missing_sequences: bool = False
    skip_missing_sequence_owners: bool = False
    skip_missing_views: bool = False
    skip_missing_udfs: bool = False
    incremental_location: str | None = None
    new_db_name: str | None = None
    into_db: str | None = None
    schema_only: bool = False
    verify_backup_table_data: bool = False
    verify_fingerprint: bool = False
    grants: bool = False
    execution_locality: ExecutionLocality = ""
    workers: int = Field(default=2, ge=1, le=256)
    detached: bool = False
    on_failure: Literal["keep", "clean"] = "keep"


class RestoreRequest(Value):
    """RESTORE [targets] FROM LATEST | 'subdir' | 'ID' IN 'uri' [AS OF SYSTEM TIME ...] [WITH options]; `encryption` as in
    BackupRequest."""

    model_config = ConfigDict(hide_input_in_errors=True)

    kind: Literal["restore"] = "restore"
    target: Target = ClusterTarget()
    subdir: str = "LATEST"
    collection: str
    as_of: datetime | Lsn | None = None
    options: RestoreOptions = RestoreOptions()
    encryption: EncryptionOptions = Field(default=EncryptionOptions(), exclude=True, repr=False)


class ShowBackupsRequest(Value):
    """SHOW BACKUPS IN 'uri' [NEWER THAN ...] [OLDER THAN ...] [WITH options].

    Any of the four asks for single backups with their IDs, a layer each, instead of the paths of chains: those that end
    later than `newer_than` and earlier than `older_than`.
    """

    kind: Literal["show_backups"] = "show_backups"
    collection: str
    newer_than: datetime | None = None
    older_than: datetime | None = None
    ids: bool = False
    revision_start_time: bool = False

    @property
    def layers(self) -> bool:
        """Whether single backups are asked for."""
        return self.ids or self.revision_start_time or self.newer_than is not None or self.older_than is not None


class ShowBackupRequest(Value):
    """SHOW BACKUP [SCHEMAS] [FROM] LATEST | 'subdir' | 'ID' IN 'uri' [WITH options]; `encryption` as in BackupRequest."""

    model_config = ConfigDict(hide_input_in_errors=True)

    kind: Literal["show_backup"] = "show_backup"
    subdir: str = "LATEST"
    collection: str
    schemas: bool = False
    privileges: bool = False
    debug_ids: bool = False
    check_files: bool = False
    as_json: bool = False
    incremental_location: str | None = None
    encryption: EncryptionOptions = Field(default=EncryptionOptions(), exclude=True, repr=False)


class AlterBackupRequest(Value):
    """ALTER BACKUP LATEST | 'subdir' IN 'uri': a chain that `old` opens can be opened with `new`, too (keys in key
    services) or from now on (a passphrase). Both are in no dump, as in BackupRequest."""

    model_config = ConfigDict(hide_input_in_errors=True)

    kind: Literal["alter_backup"] = "alter_backup"
    subdir: str = "LATEST"
    collection: str
    old: EncryptionOptions = Field(default=EncryptionOptions(), exclude=True, repr=False)
    new: EncryptionOptions = Field(default=EncryptionOptions(), exclude=True, repr=False)


Request = BackupRequest | RestoreRequest | ShowBackupsRequest | ShowBackupRequest | AlterBackupRequest
