"""Every address of the Backups page asks its guard before it reads anything."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from fastapi import HTTPException
from fastapi.testclient import TestClient

from spanvault.storage.local import LocalStorage
from spanvault_airflow.ui.app import create_app
from tests.kit.collections import write_collection

Base = Callable[[str], LocalStorage]


@pytest.fixture(params=[401, 403])
def outsider(request: pytest.FixtureRequest, base: Base) -> Iterator[tuple[TestClient, int]]:
    """The pages to a visitor whom the guard refuses."""

    def refuse() -> None:
        raise HTTPException(request.param, "Not authenticated")

    write_collection(base("full"))
    with TestClient(create_app(refuse), root_path="/backups") as client:
        yield client, request.param


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/collections/full",
        "/collections/full/2026/11/22-143000.12",
        "/collections/full/table?table=x",
        "/static/backups.css",
    ],
)
def test_every_route_asks_the_guard_first(outsider: tuple[TestClient, int], path: str) -> None:
    client, status = outsider
    answer = client.get(path)
    assert answer.status_code == status
    assert "2026/11" not in answer.text and "nodelocal" not in answer.text
    assert ("Log in to Airflow" in answer.text) == (status == 401)


def test_no_route_is_left_unguarded() -> None:
    def refuse() -> None:
        raise HTTPException(401)

    app = create_app(refuse)
    with TestClient(app) as client:
        for route in app.routes:
            path = re.sub(r"\{\w+\}", "x", getattr(route, "path", ""))
            assert client.get(path).status_code == 401, path
            assert client.post(path).status_code == 405, path
