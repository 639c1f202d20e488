"""Encrypted chains of full and incremental backups, hourly by default."""

from spanvault_airflow.builder import backup_dag

DOC = """
# encrypted_backup

Keeps a chain as `incremental_backup` does, and everything in it encrypted before it leaves the worker: rows, manifests,
schema and what a run leaves behind. `docs/security.md` says what an observer of the storage still sees.

**Before the first run**: add a Connection `spanvault_passphrase` (type *generic*) whose password is the passphrase, or name
keys of AWS KMS, Google Cloud KMS or Azure Key Vault under *Keys of key services*. The form takes references, never a
secret. **Keep the passphrase, or access to one of the keys, where a lost Airflow does not take it along**: without it there
is no restore.

A chain stays with the key that its full backup began with. More keys, or another passphrase: `ALTER BACKUP` on the command
line. `restore`, `validate_backup`, `compact_backups` and `expire_backups` ask for the same references.

## When it is red

| red task | what it means | what to do |
|---|---|---|
| plan | no key is named, it does not fit, or as of `incremental_backup` | its last line says which; clear it |
| export, seal, write_manifest | as of `incremental_backup`, or the key service cannot be reached | clear it |
| validate | the layer is there but not whole: **do not rely on it** | look at the storage; the next run does not build on it |
| advance_protection | the source keeps more log than it needs | clear it soon: the log fills the source's disk |

The run fails, and never backs up in the clear, when it is given no key.
"""

dag = backup_dag(
    "encrypted_backup",
    kind="incremental",
    schedule="42 * * * *",
    collection="encrypted",
    description="Encrypted chains of a full backup and hourly incrementals",
    doc_md=DOC,
    tags=("encrypted",),
    passphrase_from="connection:spanvault_passphrase",  # noqa: S106 - where it is kept
)
