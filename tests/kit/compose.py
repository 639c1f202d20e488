"""docker-compose.yaml as Docker would read it with no variables set."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

COMPOSE_FILE = Path(__file__).resolve().parents[2] / "docker-compose.yaml"
WORKERS = {"worker-eu": "eu", "worker-us": "us"}
"""The workers with their regions."""
AIRFLOW_SERVICES = ("api-server", "scheduler", "dag-processor", "triggerer", "init", *WORKERS)


@cache
def compose() -> dict[str, Any]:
    """The document, with every `${NAME:-default}` as its default."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", COMPOSE_FILE.read_text()).replace("$$", "$")
    document: dict[str, Any] = yaml.safe_load(text)
    return document


def environment_of(service: str) -> dict[str, str]:
    """The environment that the compose file gives to a service."""
    environment: dict[str, str] = compose()["services"][service]["environment"]
    return dict(environment)
