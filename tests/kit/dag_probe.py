"""`python -m tests.kit.dag_probe`: load plugins and DAGs as Airflow does and print what came of it as a JSON line.

A process of its own: it also tells which modules were imported on the way.
"""

from __future__ import annotations

import collections
import json
import sys
from types import SimpleNamespace
from typing import Any

from airflow import plugins_manager
from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.serialized_objects import DagSerialization

HEAVY = ("pyarrow", "duckdb", "psycopg", "boto3", "asyncpg", "lark")


def main() -> None:
    """Load and print."""
    by_airflow = set(sys.modules)
    plugins, plugin_errors = plugins_manager._get_plugins()
    bag = DagBag()
    heavy = [name for name in HEAVY if name in sys.modules and name not in by_airflow]
    names = collections.defaultdict(list)
    for name, module in list(sys.modules.items()):
        if "spanvault" in (file := getattr(module, "__file__", None) or ""):
            names[file].append(name)
    answer = {
        "plugin_errors": plugin_errors,
        "plugins": {plugin.name: str(plugin.source) for plugin in plugins},
        "links": [link.name for link in plugins_manager.get_operator_extra_links()],
        "import_errors": bag.import_errors,
        "heavy": heavy,
        "twice": {file: known for file, known in names.items() if len(known) > 1},
        "scanned": [name for name in sys.modules if name in {"builder", "plan", "seal", "params", "links", "retries", "base"}],
        "dags": {dag_id: describe(dag) for dag_id, dag in bag.dags.items()},
    }
    print(json.dumps(answer, default=str))


def describe(dag: Any) -> dict[str, Any]:
    """The facts of a DAG, after a round trip through what the database stores."""
    stored = json.dumps(DagSerialization.to_dict(dag))
    again = DagSerialization.from_dict(json.loads(stored))
    return {
        "stored_tasks": sorted(again.task_ids),
        "doc_md": dag.doc_md,
        "catchup": again.catchup,
        "paused": dag.is_paused_upon_creation,
        "max_active_runs": again.max_active_runs,
        "summary": again.timetable.summary,
        "has_intervals": type(again.timetable).__name__,
        "allowed_run_types": sorted(map(str, again.allowed_run_types or [])),
        "tags": sorted(again.tags),
        "params": {
            name: {"value": param.value, "schema": param.schema, "description": param.description}
            for name, param in ((name, dag.params.get_param(name)) for name in dag.params)
        },
        "tasks": {task.task_id: describe_task(task) | {"weight": weight(again, task.task_id)} for task in dag.tasks},
    }


def weight(stored: Any, task_id: str) -> int:
    """What the scheduler orders the task's instances by."""
    task = stored.get_task(task_id)
    return int(task.weight_rule.get_weight(SimpleNamespace(task=task)))


def describe_task(task: Any) -> dict[str, Any]:
    """The facts of a task."""
    return {
        "operator": task.operator_class.__name__,
        "doc_md": task.doc_md,
        "class_doc": task.operator_class.__doc__,
        "upstream": sorted(task.upstream_task_ids),
        "downstream": sorted(task.downstream_task_ids),
        "trigger_rule": task.trigger_rule.value,
        "retries": task.retries,
        "pool": task.pool,
        "queue": task.queue,
        "fields": templates(task),
        "known_fields": list((getattr(task, "partial_kwargs", None) or vars(task)).get("known_fields", ())),
        "links": [link.name for link in task.operator_extra_links],
        "map_index_template": getattr(task, "map_index_template", None),
    }


def templates(task: Any) -> dict[str, Any]:
    """The templated fields as they are written in the DAG; of a mapped task those that are the same for all."""
    given = getattr(task, "partial_kwargs", None)
    return {name: given.get(name) if given else getattr(task, name) for name in task.template_fields}


if __name__ == "__main__":
    main()
