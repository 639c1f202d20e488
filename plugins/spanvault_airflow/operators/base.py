"""What all operators share: one step of the engine, errors translated, stop requests raised into the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.sdk import BaseOperator

from spanvault_airflow.retries import Stopped, translated_errors
from spanvault_airflow.run_fields import require_known_fields

if TYPE_CHECKING:
    from airflow.sdk import Context
    from pydantic import BaseModel

    from spanvault.config.clusters import Cluster
    from spanvault.engine.context import Context as EngineContext
    from spanvault.model.manifest import Plan
    from spanvault_airflow.operators.plan import PlanHandle

OptionsT = TypeVar("OptionsT", bound="BaseModel")


class SpanvaultOperator(BaseOperator):
    """Runs `step` with the engine's errors translated to Airflow's (see retries.py).

    :param encryption: what opens encrypted backups and encrypts new ones, by reference and never as a secret:
        ``passphrase_from`` (``connection:ID``, ``variable:NAME`` or ``env:NAME``) or ``kms`` (URIs of keys, one per element
        or line, with ``?conn_id=``); with ``required`` a run that is given neither fails
    :param execution_locality: tiers such as ``region=eu``: the task fails on a worker that is not there, as the worker's
        SPANVAULT_LOCALITY says; empty for any worker
    :param known_fields: the fields of the DAG's form: a run that was given any other fails, as a slip in a name would
        leave the field at its default. Empty: nothing is looked at
    """

    ui_fgcolor = "#16302b"
    template_fields: Sequence[str] = ("encryption", "execution_locality")
    _in_step = False

    def __init__(
        self,
        *,
        encryption: Mapping[str, Any] | None = None,
        execution_locality: str = "",
        known_fields: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.known_fields = tuple(known_fields)
        self.encryption = dict(encryption or {})
        self.execution_locality = execution_locality

    def step(self, context: Context) -> Any:
        """The work; what it returns goes to XCom: ids and URIs only."""
        raise NotImplementedError

    def execute(self, context: Context) -> Any:
        """Run the step."""
        with translated_errors():
            if self.known_fields:
                require_known_fields(context["dag_run"], self.known_fields)
            require_worker_in(self.execution_locality)
            self._in_step = True
            try:
                return self.step(context)
            finally:
                self._in_step = False

    def on_kill(self) -> None:
        """Called from Airflow's SIGTERM handler: leave the step by an exception, so that sessions, temporary slots,
        uploads and child processes are closed on the way out. After a time-out the step has been left already."""
        if self._in_step:
            raise Stopped

    def engine(self) -> EngineContext:
        """The engine's context for this task. Raises BadInput or NotFound for keys that cannot be had."""
        from spanvault_airflow.hooks.engine import engine_context
        from spanvault_airflow.keys import encryption_of

        return engine_context(self.log).unlocking(encryption_of(self.encryption))

    def tell_pool(self, cluster: str) -> None:
        """Say in the log where this DAG's tasks are not in the pool that clusters.yaml names for the run's cluster."""
        from spanvault_airflow.pools import other_pool

        if sentence := other_pool(cluster, self.pool):
            self.log.warning(sentence)

    @staticmethod
    def cluster_named(name: str) -> Cluster:
        """The cluster of clusters.yaml. Raises NotFound."""
        from spanvault_airflow.hooks.cluster import ClusterHook

        return ClusterHook(name).get_cluster()

    @staticmethod
    def collection_uri(uri: str) -> str:
        """The URI, or several, one a line, known to hold no secret. Raises BadInput."""
        from spanvault_airflow.hooks.collection import CollectionHook

        return CollectionHook(uri).checked_uri()

    @staticmethod
    def stored_plan(engine: EngineContext, plan: PlanHandle) -> Plan:
        """The plan's document. Raises NotFound when it is gone: then somebody deleted from the collection; Refused on a worker
        that the plan's execution locality leaves out."""
        from spanvault.collection.plans import read_plan
        from spanvault.errors import NotFound

        stored = read_plan(engine.storage(plan["into"]), plan["subdir"], plan["number"], plan["run_key"])
        if stored is None:
            raise NotFound(f"The plan of the backup {plan['subdir']} is no longer in {plan['into']}; trigger a new run.")
        require_worker_in(stored.request.options.execution_locality)
        return stored

    @staticmethod
    def options_of(kind: type[OptionsT], options: Mapping[str, Any]) -> OptionsT:
        """The options that templates rendered to text, read into their types; an empty text means the default.

        Raises BadInput that names the option.
        """
        from pydantic import ValidationError

        from spanvault.errors import BadInput

        given = {name: value for name, value in options.items() if value not in ("", None, "None")}
        try:
            return kind.model_validate(given)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise BadInput(f"The option {'.'.join(map(str, first['loc']))} cannot be used: {first['msg']}.") from None


def require_worker_in(execution_locality: str | None) -> None:
    """Raise Refused unless this worker is where the run may be worked on; everywhere, if that is not restricted."""
    from spanvault.errors import Refused
    from spanvault.model.locality import Locality
    from spanvault_airflow.hooks.engine import project_settings

    asked = Locality.parse(str(execution_locality or "").strip())
    here = project_settings().locality
    if not asked.matches(Locality.parse(here)):
        raise Refused(
            f"EXECUTION LOCALITY = '{asked}' does not match this worker, whose SPANVAULT_LOCALITY is {here or 'not set'}; "
            f"send the run's tasks to a queue of workers in {asked}."
        )


def run_key(context: Context) -> str:
    """The same for every try and re-run of this DAG run: it finds what an earlier try left."""
    dag_run = context["dag_run"]
    return f"{dag_run.dag_id}/{dag_run.run_id}"


def due(context: Context) -> datetime:
    """When the run was due (UTC): the end of its data interval, or the moment it was triggered; the same for every try."""
    return context["dag_run"].run_after.astimezone(UTC)


def interval_end(context: Context) -> datetime | None:
    """The end (UTC) of the interval that a scheduled or backfill run stands for; None for any other run, which means now
    whatever interval Airflow writes on it."""
    dag_run = context["dag_run"]
    end = dag_run.data_interval_end
    return end.astimezone(UTC) if end is not None and dag_run.run_type in ("scheduled", "backfill") else None
