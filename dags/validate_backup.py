"""Validation of a backup, daily by default."""

from spanvault_airflow.builder import validate_dag

DOC = """
# validate_backup

Checks the newest backup of a collection, or the one you name. Daily at 06:37 UTC once it is unpaused.

| level | finds | does not see | time |
|---|---|---|---|
| `check_files` | missing files, wrong sizes | changed bytes | seconds |
| `checksums` | any byte that is not what was written | whether the schema restores | reads everything once |
| `schema_only` | a schema that does not restore (into a scratch server that it starts and deletes) | rows | seconds to minutes |
| `verify_backup_table_data` | as `schema_only`, and rows that no restore could read | older times | reads what a restore reads |

Only a restore proves everything: run `restore` under another name now and then.

## When it is red

`Damaged` in the log: the backup is not what was written. Trigger `full_backup` at once, keep the damaged one (undamaged
tables of it still restore), and find out what wrote to the storage. Any other sentence is about storage or
connection, and says what to do.
"""

dag = validate_dag("validate_backup", schedule="37 6 * * *", collection="full", description="Validate a backup", doc_md=DOC)
