"""How long a full backup takes in Airflow, and how much of that is Airflow's.

    python -m benchmarks.airflow_share [--size 4000000] [--folder DIR]

The same database is backed up by the command line and by a run of the DAG `full_backup` with the scheduler at two tasks at a
time, each two times; the first run of a fresh Airflow is apart, as its first tasks load everything anew. A run's time is from
its trigger to its end, validation and all.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks.full_backup import SERVER_SETTINGS, aim, run_statement
from benchmarks.shapes import DATABASE, SHAPES, load
from spanvault.demo.airflow import DemoAirflow
from spanvault.embedded.ports import LOOPBACK
from spanvault.embedded.postgres import PostgresServer

_DAG = "full_backup"
_RUNS = 3


def main() -> int:
    """Measure, print, and return 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.airflow_share", description="Airflow's share of a run.")
    parser.add_argument("--size", type=int, default=SHAPES["lines"].size, help=SHAPES["lines"].unit)
    parser.add_argument("--folder", type=Path, help="where server and backups are kept meanwhile (default: the system's)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="spanvault-benchmark-", dir=arguments.folder) as name:
        folder = Path(name)
        folder.chmod(0o755)
        with PostgresServer(folder / "server", settings=SERVER_SETTINGS) as server:
            load(server, SHAPES["lines"], arguments.size)
            alone = _command_line(server, folder)
            in_airflow = _in_airflow(server, folder)
    print(f"\ncommand line {alone:.1f} s; runs of {_DAG} {', '.join(f'{one:.1f}' for one in in_airflow)} s")
    aim("seconds are Airflow's in a warm run", min(in_airflow[1:]) - alone, 15, at_most=True)
    return 0


def _command_line(server: PostgresServer, folder: Path) -> float:
    found = []
    for _ in range(2):
        shutil.rmtree(folder / "alone", ignore_errors=True)
        statement = f"BACKUP DATABASE {DATABASE} INTO 'file://{folder}/alone' WITH protection = 'none'"
        found.append(run_statement(server, statement).seconds)
    return min(found)


def _in_airflow(server: PostgresServer, folder: Path) -> list[float]:
    clusters = folder / "clusters.yaml"
    clusters.write_text(yaml.safe_dump({"clusters": {"bench": {"nodes": [{"name": "primary", "conn_id": "bench"}]}}}))
    node = {"conn_type": "postgres", "host": LOOPBACK, "port": server.port, "login": server.SUPERUSER, "schema": "postgres"}
    variables = {
        "SPANVAULT_CLUSTERS_FILE": str(clusters),
        "SPANVAULT_COLLECTION_BASE": f"file://{folder}/airflow-backups",
        "AIRFLOW_CONN_BENCH": json.dumps(node),
    }
    airflow = DemoAirflow(folder)
    try:
        airflow.prepare()
        airflow.start(variables)
        airflow.wait_until_ready(_DAG)
        return [_run(airflow, folder) for _ in range(_RUNS)]
    finally:
        airflow.stop()


def _run(airflow: DemoAirflow, folder: Path) -> float:
    begun = time.monotonic()
    run_id = airflow.trigger(_DAG, {"scope": "database", "names": [DATABASE]})
    state = airflow.follow(_DAG, run_id, lambda _: None)
    seconds = time.monotonic() - begun
    tasks = airflow.tasks(_DAG, run_id)
    print(f"  {state} in {seconds:.1f} s: {', '.join(f'{one.name} {one.seconds or 0:.1f}' for one in tasks)}", flush=True)
    if state != "success":
        raise RuntimeError(f"the run failed; its logs are below {folder}")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
