"""Full backups, nightly by default."""

from spanvault_airflow.builder import backup_dag

DOC = """
# full_backup

Takes a full backup of the first cluster of `include/config/clusters.yaml` while the application goes on writing: Parquet
files, the schema and a manifest, all right for one moment (the cut). Nightly at 00:07 UTC once it is unpaused; trigger it
for any other cluster, collection or selection with the form.

**Before the first run**: add the Connection that the cluster names (`spanvault_source`), and see that
`spanvault cluster preflight` has nothing to say.

## When it is red

| red task | what it means | what to do |
|---|---|---|
| plan | bad name, missing privilege, no room for a replication slot | the last line of its log says what to change; clear it |
| export | a span could not be read or written | clear it: finished spans are kept |
| seal | no cut could be taken, often a lock or a long transaction | clear it: it takes a new cut and keeps all spans |
| write_manifest | somebody else committed into the same place, or storage is away | the log names who; clear it |
| validate | the backup is there but not whole: **do not rely on it** | keep it, trigger a new run, look at the storage |
| advance_protection | the source keeps more log than it needs | clear it soon: the log fills the source's disk |

Tasks retry by themselves where that may help; one that is red already did, or cannot be helped by trying again. A run that
is cleared as a whole continues from what is on storage, and a finished one changes nothing. A failed run keeps its replication
slot for as long as `Keep history for` says; `spanvault protection list` shows it, `release` gives it back at once.

Backfilling it is refused: a full backup reads the present, which must not be labelled with a past date.
"""

dag = backup_dag(
    "full_backup",
    schedule="7 0 * * *",
    collection="full",
    description="Full backup of a cluster, databases, schemas or tables",
    doc_md=DOC,
)
