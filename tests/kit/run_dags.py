"""`python -m tests.kit.run_dags`: run DAGs by `dag.test()`. Each line of its input is a JSON list of runs; of each it prints
one line, `MARK` and JSON on the results.

A process of its own, because Airflow reads its environment when it is imported; one for many runs, because it takes long to
start.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from datetime import datetime
from typing import Any
from unittest import mock

from airflow.dag_processing.dagbag import DagBag

MARK = "ANSWER "  # `AirflowSite.dag_tests` looks for it


def main() -> None:
    """Run what is asked for, in turn."""
    bag = DagBag()
    if bag.import_errors:
        raise SystemExit(str(bag.import_errors))
    with ExitStack() as stored:
        for line in sys.stdin:
            answers = []
            for run in json.loads(line):
                answers.append(one(bag.dags[run["dag_id"]], run["conf"], datetime.fromisoformat(run["run_after"])))
                # The first run has stored all DAGs; each further one would parse and store all of them again.
                stored.enter_context(mock.patch("airflow.dag_processing.dagbag.BundleDagBag"))
                stored.enter_context(mock.patch("airflow.dag_processing.dagbag.sync_bag_to_db"))
            print(f"{MARK}{json.dumps(answers)}", flush=True)


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
    main()
