"""Deletion of old backups, weekly and as a dry run by default."""

from spanvault_airflow.builder import expire_dag

DOC = """
# expire_backups

Says which chains (a full backup and what builds upon it) the policy no longer keeps, and with *Dry run* switched off deletes
them. Sundays at 04:17 UTC once it is unpaused, always as a dry run unless you change the default in `dags/expire_backups.py`.

A chain stays if **either** rule keeps it: it is one of the last *Keep last*, or it is needed to restore to some time in
*Keep window*. Only whole chains go; the newest finished chain and chains of running backups always stay.

## When it is red

The last line of the log says why: mostly storage that refuses a deletion (missing privilege, object lock). No chain is ever left
half deleted and looking whole: its manifest goes before its files. Clear the task; `spanvault collection sweep --delete` removes
what an interrupted deletion left.
"""

dag = expire_dag("expire_backups", schedule="17 4 * * 0", collection="full", description="Delete old backups", doc_md=DOC)
