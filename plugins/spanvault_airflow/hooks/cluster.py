"""The hook for a source or target cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook

from spanvault_airflow.hooks.engine import engine_context

if TYPE_CHECKING:
    import psycopg
    from psycopg.rows import TupleRow

    from spanvault.config.clusters import Cluster
    from spanvault.engine.context import Context


class ClusterHook(BaseHook):
    """A cluster of clusters.yaml, its nodes reached through Airflow Connections of type `postgres`.

    :param cluster: the cluster's name in clusters.yaml
    """

    hook_name = "Spanvault cluster"

    def __init__(self, cluster: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cluster_name = cluster

    @property
    def engine(self) -> Context:
        """The engine's context, with this hook's log."""
        return engine_context(self.log)

    def get_cluster(self) -> Cluster:
        """The cluster with its nodes' addresses, logins and localities.

        Raises NotFound for an unknown cluster or connection, BadInput for a malformed file or a URL: a URL would carry
        its password into rendered fields.
        """
        from spanvault.errors import BadInput

        if "://" in self.cluster_name:
            raise BadInput("In Airflow a cluster is named as in clusters.yaml; a URL would show its password in the UI.")
        return self.engine.cluster(self.cluster_name)

    def get_conn(self) -> psycopg.Connection[TupleRow]:
        """A session on the primary with the settings that Spanvault pins."""
        from spanvault.database.postgres.connect import connect

        return connect(self.get_cluster().primary, purpose="hook")

    def test_connection(self) -> tuple[bool, str]:
        """Whether the primary takes a session, and a sentence."""
        from spanvault.errors import SpanvaultError

        try:
            with self.get_conn() as connection:
                row = connection.execute("show server_version").fetchone()
        except SpanvaultError as error:
            return False, str(error)
        return True, f"Cluster {self.cluster_name} answers as PostgreSQL {row[0] if row else 'of unknown version'}."
