"""`python -m tests.kit.dag_test DAG_ID CONF_JSON [RUN_AFTER]`: run a DAG by `dag.test()` and print a JSON line on the result.

A process of its own, because Airflow reads its environment when it is imported.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime

from airflow.dag_processing.dagbag import DagBag


def main(dag_id: str, conf: str, run_after: str = "") -> None:
    """Run it."""
    bag = DagBag()
    if bag.import_errors:
        raise SystemExit(str(bag.import_errors))
    moment = datetime.fromisoformat(run_after) if run_after else None
    run = bag.dags[dag_id].test(run_after=moment, logical_date=moment, run_conf=json.loads(conf))
    tasks = [
        {"task": ti.task_id, "map_index": ti.map_index, "state": str(ti.state), "label": ti.rendered_map_index}
        for ti in run.get_task_instances()
    ]
    print(json.dumps({"state": str(run.state), "run_id": run.run_id, "tasks": tasks}))


if __name__ == "__main__":
    main(*sys.argv[1:])
