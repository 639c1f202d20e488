"""Backups with revision history, hourly by default."""

from spanvault_airflow.builder import backup_dag

DOC = """
# revision_history_backup

As `incremental_backup`, with **every** committed change instead of the last one of each row: any time between the first and
the last layer's end can be restored, to the transaction. Costs storage for each change. Ends at minute 52 of each hour (UTC)
once it is unpaused.

A scheduled run stands for its data interval, however late it is. Missed intervals need nothing: the next run writes a layer
for each; backfill them to have them sooner. A run whose interval is covered already is skipped; the last line of `plan` says
by which layer.

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
    "revision_history_backup",
    kind="revision_history",
    schedule="52 * * * *",
    collection="revision_history",
    description="Chains of a full backup and hourly layers with every change",
    doc_md=DOC,
)
