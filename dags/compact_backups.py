"""Compaction, triggered by hand."""

from spanvault_airflow.builder import compact_dag

DOC = """
# compact_backups

Merges layers of a chain, so that a restore reads fewer and smaller files.

- **incrementals**: layers 1 to *Up to layer* become one. Times between their ends stay restorable from the originals; with
  revision history the merged layer keeps every change.
- **synthetic full**: the full and its incrementals up to that layer become a full, inside the chain and without touching the
  source. This is also how to have a full backup for a time that has passed.

Nothing is deleted: the originals stay until the chain expires, and each restore takes the cheapest layers that give its time.

## When it is red

Nothing changed: the merged layer exists only once it is committed. The last line of the log says why: a layer's file is
damaged or away, a number that the chain does not have, or no room in the scratch folder. Clear the task.
"""

dag = compact_dag("compact_backups", schedule=None, collection="incremental", description="Merge layers of a chain", doc_md=DOC)
