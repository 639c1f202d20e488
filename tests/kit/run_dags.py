"""`python -m tests.kit.run_dags RUNS_JSON`: run DAGs by `dag.test()` and print a JSON line on the results.

A process of its own, because Airflow reads its environment when it is imported.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any

from airflow.dag_processing.dagbag import DagBag


def main(runs: list[dict[str, Any]]) -> None:
    """Run them in turn."""
    bag = DagBag()
    if bag.import_errors:
        raise SystemExit(str(bag.import_errors))
    print(json.dumps([one(bag.dags[run["dag_id"]], run["conf"], datetime.fromisoformat(run["run_after"])) for run in runs]))


def one(dag: Any, conf: dict[str, Any], moment: datetime) -> dict[str, Any]:
    """Run one; what came of it. Retries follow at once: waiting is the scheduler's business."""
    for task in dag.tasks:
        task.retries = 0
    run = dag.test(run_after=moment, logical_date=moment, run_conf=conf)
    tasks = [
        {"task": ti.task_id, "map_index": ti.map_index, "state": ti.state, "label": ti.rendered_map_index}
        for ti in run.get_task_instances()
    ]
    return {"state": run.state, "run_id": run.run_id, "tasks": tasks}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
