"""ALTER BACKUP: other keys for a chain, without touching its data."""

from __future__ import annotations

from spanvault.collection.lookup import find_subdir
from spanvault.crypto.keyring import change_keys
from spanvault.engine.context import Context
from spanvault.errors import BadInput
from spanvault.model.encryption import KmsKey
from spanvault.model.request import AlterBackupRequest
from spanvault.model.result import Result

COLUMNS = ("path", "info", "keys")


def alter_backup(context: Context, request: AlterBackupRequest) -> Result:
    """Let the new keys open the chain; one row with the keys that do so from now on, and a note for each old encryption
    info that a lock keeps.

    Raises KeyMismatch when the old ones do not open it, BadInput when the new passphrase is the old one.
    """
    subdir = find_subdir(context.storage(request.collection), request.subdir)
    old, new = context.unlocking(request.old, "old"), context.unlocking(request.new, "new")
    if new.encryption.passphrase is not None and new.encryption.passphrase == old.encryption.passphrase:
        old.keyring(request.collection).require(subdir)
        raise BadInput("The new passphrase is the old one, so nothing would change; give another.")
    stored = old.stored(request.collection)
    info = change_keys(stored, subdir, old.credentials(), new.credentials(), context.clock, context.progress.note)
    keys = [entry.key if isinstance(entry, KmsKey) else "passphrase" for entry in info.keys]
    return Result(columns=COLUMNS, rows=((subdir, info.number, ", ".join(keys)),))
