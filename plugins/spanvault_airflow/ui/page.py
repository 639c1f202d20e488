"""The door of the Backups page: what the plugin registers. Light, because every Airflow process imports it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

URL_PREFIX = "/backups"
"""Where the page stands below Airflow's own address."""

NAVIGATION: dict[str, Any] = {
    "name": "Backups",
    "href": f"{URL_PREFIX[1:]}/",  # relative, so that it is right when Airflow itself stands below a path
    "destination": "nav",
    "nav_top_level": True,
    "url_route": "backups",
    "icon": f"{URL_PREFIX[1:]}/static/icon.svg",
    "icon_dark_mode": f"{URL_PREFIX[1:]}/static/icon-dark.svg",
}
"""The page's entry in Airflow's navigation, as `external_views` of a plugin."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class BackupsPage:
    """An ASGI application that is built when it is first asked: only the API server ever pays for that."""

    def __init__(self) -> None:
        self._app: Application | None = None
        self._lock = threading.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = await asyncio.to_thread(self._build) if self._app is None else self._app
        await app(scope, receive, send)

    def _build(self) -> Application:
        from spanvault_airflow.ui.access import may_read
        from spanvault_airflow.ui.app import create_app

        with self._lock:
            if self._app is None:
                self._app = create_app(may_read)
            return self._app
