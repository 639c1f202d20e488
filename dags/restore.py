"""Restores, triggered by hand."""

from spanvault_airflow.builder import restore_dag
from spanvault_airflow.queues import worker_queues

DOC = """
# restore

Restores a cluster, a database, schemas or tables out of a backup. Nothing that exists is overwritten: restore beside it
(`New database name`, `Into database`), look, then rename.

- **One database under another name**: scope `database`, one name, and `New database name`.
- **Some tables into an existing database**: scope `table`, their names, and `Into database`.
- **A whole cluster**: scope `cluster`, onto a cluster without databases of its own.

- **A locality-aware backup**: *Collection* takes all URIs that it was written to, one a line.
- **Only workers in one locality**: *Execution locality*, or trigger `restore__<queue>`, whose tasks all run in that queue.

Every byte is compared with its checksum before a row of it is used.

## When it is red

| red task | what it means | what to do |
|---|---|---|
| plan | no such backup, object or place, something in the way on the target, a worker elsewhere | its last line says which |
| restore_schema | the target refuses an object, often a missing extension or role | create it there, then clear the task |
| load | target or storage went away, or a file is damaged | clear it: units that are loaded are not loaded again |
| finish_restore | an index or constraint could not be built, or a fingerprint differs | the log names it; mend it and clear |

If Airflow itself is down, the same restore runs from a shell: `spanvault sql "RESTORE ..."`; README.txt in the collection
holds the exact command.
"""

for queue in (None, *worker_queues()):
    dag = restore_dag(
        "restore" if queue is None else f"restore__{queue.suffix}",
        collection="full",
        description="Restore a cluster, database, schema or table" + ("" if queue is None else f", by workers of {queue.name}"),
        doc_md=DOC,
        queue=queue,
    )
