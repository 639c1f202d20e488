"""Incremental backups, hourly by default."""

from spanvault_airflow.builder import backup_dag

DOC = """
# incremental_backup

Keeps a chain of the first cluster of `include/config/clusters.yaml`: a full backup, then each hour a layer with the last
change of each row since the layer before. Ends at minute 22 of each hour (UTC) once it is unpaused, and every such end is a
time that can be restored. The form's *Full backup every* begins a new chain, by default each week.

A scheduled run stands for its data interval: its layer ends exactly at the interval's end, however late the run is. A run
triggered by hand ends its layer now.

**Missed intervals**: nothing to do, the next run writes a layer for each. To have them sooner, backfill them in any order
(*Trigger*, *Backfill*, or `airflow backfill create`). A run whose interval is covered already is skipped; the last line of
`plan` says by which layer.

**Before the first run**: as of `full_backup`.

## When it is red

| red task | what it means | what to do |
|---|---|---|
| plan | missing privilege, a chain that cannot go on, a time that is forgotten | its last line says what to do; clear it |
| export | only in a run that takes a full: a span could not be read or written | clear it: finished spans are kept |
| seal | the change log, or a table that is new to the chain, could not be read or written | clear it |
| write_manifest | storage is away, or other runs were faster each time | clear it |
| validate | the layer is there but not whole: **do not rely on it** | look at the storage; the next run does not build on it |
| advance_protection | the source keeps more log than it needs | clear it soon: the log fills the source's disk |

A failed run never blocks a later one: the next run covers its interval too.
"""

dag = backup_dag(
    "incremental_backup",
    kind="incremental",
    schedule="22 * * * *",
    collection="incremental",
    description="Chains of a full backup and hourly incrementals",
    doc_md=DOC,
)
