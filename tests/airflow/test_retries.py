"""Error types and stop requests, in operators run by hand in a process of their own."""

from __future__ import annotations

import json
import textwrap

from tests.kit.airflow import AirflowSite

SCRIPT = """
import json, os, signal, time
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from spanvault import errors
from spanvault_airflow.hooks.connections import AirflowConnections
from spanvault_airflow.operators.base import SpanvaultOperator

class Step(SpanvaultOperator):
    def __init__(self, action, **kwargs):
        super().__init__(**kwargs)
        self.action = action
    def step(self, context):
        return self.action()

def outcome(action):
    operator = Step(task_id="t", action=action)
    try:
        operator.execute({})
    except Exception as error:
        return [type(error).__name__, str(error), error.__suppress_context__]
    return ["returned", "", True]

def failing(kind):
    def action():
        raise kind("a sentence.")
    return action

closed = []
def stopped():
    signal.signal(signal.SIGTERM, lambda *_: running.on_kill())
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    finally:
        closed.append(True)

running = Step(task_id="r", action=stopped)
try:
    running.execute({})
    stop = ["returned"]
except Exception as error:
    stop = [type(error).__name__, str(error)]
running.on_kill()  # after the step: nothing to stop, so nothing is raised

def resolved(conn_id):
    try:
        return AirflowConnections().resolve(conn_id).model_dump(mode="json")
    except errors.SpanvaultError as error:
        return [type(error).__name__, str(error)]

print(json.dumps({
    "kinds": {kind.__name__: outcome(failing(kind)) for kind in (
        errors.BadInput, errors.NotFound, errors.Refused, errors.Damaged, errors.BrokenChain,
        errors.AlreadyCovered, errors.Retryable, errors.Busy, errors.StateUnknown, ZeroDivisionError)},
    "stop": stop, "closed": closed,
    "found": resolved("good"), "missing": resolved("nowhere"), "odd": resolved("odd"),
}))
"""


def test_errors_stop_requests_and_connections(site: AirflowSite) -> None:
    site.variables = {
        "AIRFLOW_CONN_GOOD": "postgres://me:hidden@db:5433/shop?sslmode=require",
        "AIRFLOW_CONN_ODD": json.dumps({"conn_type": "postgres", "host": "db", "extra": "[1, 2]"}),
    }
    answer = json.loads(site.python("-c", textwrap.dedent(SCRIPT)).splitlines()[-1])
    for permanent in ("BadInput", "NotFound", "Refused", "Damaged", "BrokenChain"):
        assert answer["kinds"][permanent] == ["AirflowFailException", "a sentence.", True], permanent
    for passing in ("Retryable", "Busy", "StateUnknown"):
        assert answer["kinds"][passing] == ["AirflowException", "a sentence.", True], passing
    assert answer["kinds"]["AlreadyCovered"] == ["AirflowSkipException", "a sentence.", True]
    assert answer["kinds"]["ZeroDivisionError"][0] == "ZeroDivisionError", "a fault of our own must show as one"

    assert answer["stop"][0] == "AirflowException"
    assert answer["closed"] == [True], "what the step had opened was not closed"

    found = answer["found"]
    assert (found["host"], found["port"], found["schema_name"], found["extra"]) == ("db", 5433, "shop", {"sslmode": "require"})
    assert "hidden" not in json.dumps(found)
    assert answer["missing"][0] == "NotFound"
    assert "nowhere" in answer["missing"][1]
    assert answer["odd"][0] == "BadInput"
