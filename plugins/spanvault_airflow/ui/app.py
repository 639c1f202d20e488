"""The Backups page: a FastAPI application that Airflow mounts below its own address. It reads and never writes.

Every route first asks a guard (access.py) whether the visitor may see it. Names that FastAPI reads parameters by must be names
of this module: inside a function every dependency would become a parameter of the address.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException as StarletteHTTPException

from spanvault.errors import SpanvaultError
from spanvault.model.clock import Clock
from spanvault.model.clock import now as system_clock
from spanvault.model.uri import redact_text
from spanvault_airflow.ui import formats, views
from spanvault_airflow.ui.catalog import Catalog, NotShown
from spanvault_airflow.ui.page import URL_PREFIX
from spanvault_airflow.ui.shelf import Shelf

_HERE = Path(__file__).parent
_MEDIA = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_STATIC = {
    file.name: (file.read_bytes(), _MEDIA[file.suffix])
    for file in (_HERE / "static").iterdir()
    if file.suffix in _MEDIA and file.is_file()
}
# Nothing but what this server sends is loaded, and only Airflow itself may frame the page.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; form-action 'self';"
        " base-uri 'none'; frame-ancestors 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_SENTENCES = {
    401: ("Not logged in", "Log in to Airflow first, then come back to this page."),
    403: ("Not allowed", "Your role in Airflow may not see plugins and DAG runs, which this page shows."),
    404: ("Not found", "There is no such page."),
    405: ("Not possible", "This page only shows; it changes nothing."),
}

Page = Annotated[int, Query(ge=1, le=1_000_000)]
Name = Annotated[str, Query(max_length=250)]


def create_app(guard: Callable[..., None], clock: Clock = system_clock) -> FastAPI:
    """The application. `guard` is a FastAPI dependency that raises HTTPException unless the visitor may see all of it;
    `clock` says what "ago" counts from."""
    app = FastAPI(title="Spanvault: backups", docs_url=None, redoc_url=None, openapi_url=None, dependencies=[Depends(guard)])
    pages = _Pages(clock)
    app.add_api_route("/", pages.collections, response_class=HTMLResponse)
    app.add_api_route("/static/{name}", pages.static)
    app.add_api_route("/collections/{name}", pages.chains, response_class=HTMLResponse)
    app.add_api_route("/collections/{name}/table", pages.table, response_class=HTMLResponse)
    app.add_api_route("/collections/{name}/{year}/{month}/{rest}", pages.chain, response_class=HTMLResponse)
    app.add_exception_handler(StarletteHTTPException, pages.refused)
    app.add_exception_handler(RequestValidationError, pages.mistyped)
    app.add_exception_handler(SpanvaultError, pages.unreadable)
    app.add_exception_handler(Exception, pages.broken)
    app.middleware("http")(_with_headers)
    return app


async def _with_headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await call_next(request)
    response.headers.update(_HEADERS)
    return response


class _Pages:
    """The routes. Those that read storage are plain functions: FastAPI runs them in threads."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._sizes: dict[tuple[object, ...], int] = {}
        self._templates = Environment(
            loader=FileSystemLoader(_HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        self._templates.lstrip_blocks = True
        named = ("moment", "lasted", "size", "count", "change", "plural", "run_of", "line")
        self._templates.globals.update({name: getattr(formats, name) for name in named})

    def collections(self, request: Request) -> HTMLResponse:
        """All collections."""
        shelf = Shelf()
        found, more = views.collections(shelf, self._sizes)
        return self._page(request, "collections.html", found=found, more=more, base_uri=shelf.uri)

    def chains(self, request: Request, name: str, page: Page = 1) -> HTMLResponse:
        """One collection's chains."""
        shelf = Shelf()
        shown, more = views.chains(Catalog(shelf.collection(name), self._sizes), page)
        return self._page(request, "chains.html", name=name, uri=shelf.uri_of(name), shown=shown, more=more)

    def chain(
        self,
        request: Request,
        name: str,
        year: str,
        month: str,
        rest: str,
        page: Page = 1,
        tables: Page = 1,
        find: Name = "",
    ) -> HTMLResponse:
        """One chain's layers, and the tables at its newest restorable time."""
        catalog = Catalog(Shelf().collection(name), self._sizes)
        chain = catalog.chain(f"{year}/{month}/{rest}")
        head = views.chain_view(catalog, chain)
        return self._page(
            request,
            "chain.html",
            name=name,
            head=head,
            layers=views.layers(catalog, chain, page),
            tables=views.newest_tables(head.last, find, tables),
            find=find,
        )

    def table(self, request: Request, name: str, table: Name, page: Page = 1) -> HTMLResponse:
        """One table over the layers of a collection."""
        catalog = Catalog(Shelf().collection(name), self._sizes)
        shown = views.table_rows(catalog, table, page)
        return self._page(request, "table.html", name=name, table=table, shown=shown)

    def static(self, name: str) -> Response:
        """The style sheet, the script and the icons."""
        if name not in _STATIC:
            raise HTTPException(404)
        data, media = _STATIC[name]
        return Response(data, media_type=media)

    async def refused(self, request: Request, error: Exception) -> Response:
        """What Airflow's login, or a wrong address, says."""
        status = error.status_code if isinstance(error, StarletteHTTPException) else 400
        title, sentence = _SENTENCES.get(status, ("Not possible", "This cannot be shown."))
        return self._problem(request, status, title, sentence)

    async def mistyped(self, request: Request, _error: Exception) -> Response:
        """A parameter of the address that cannot be read."""
        return self._problem(request, 400, "Not possible", "The address has a page number or a name that cannot be used.")

    async def unreadable(self, request: Request, error: Exception) -> Response:
        """What the engine says, without secrets."""
        missing = isinstance(error, NotShown)
        title = "Not found" if missing else "The backups cannot be read now"
        return self._problem(request, 404 if missing else 503, title, redact_text(str(error)))

    async def broken(self, request: Request, _error: Exception) -> Response:
        """Anything else: the log has it, the page has none of it."""
        response = self._problem(request, 503, "This page could not be made", "The log of Airflow's API server says why.")
        response.headers.update(_HEADERS)
        return response

    def _problem(self, request: Request, status: int, title: str, sentence: str) -> HTMLResponse:
        return self._page(request, "problem.html", status=status, title=title, sentence=sentence, logged_out=status == 401)

    def _page(self, request: Request, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
        links = _Links(str(request.scope.get("root_path", "")))
        now = self._clock()
        text = self._templates.get_template(template).render(
            **values, links=links, now=now, ago=lambda time: formats.age(time, now)
        )
        return HTMLResponse(text, status_code=status)


class _Links:
    """Addresses for the templates, each whole from the server's root, every part quoted."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._airflow = root.removesuffix(URL_PREFIX)

    def home(self) -> str:
        return f"{self._root}/"

    def static(self, name: str) -> str:
        return f"{self._root}/static/{name}"

    def collection(self, name: str, **query: object) -> str:
        return _address(f"{self._root}/collections/{quote(name, safe='')}", query)

    def chain(self, name: str, subdir: str, **query: object) -> str:
        return _address(f"{self.collection(name)}/{quote(subdir)}", query)

    def table(self, name: str, table: str, **query: object) -> str:
        return _address(f"{self.collection(name)}/table", {"table": table, **query})

    def run(self, run_key: str) -> str | None:
        path = formats.run_path(run_key)
        return path and f"{self._airflow}{path}"

    def login(self) -> str:
        return f"{self._airflow}/auth/login"


def _address(path: str, query: dict[str, object]) -> str:
    given = {name: value for name, value in query.items() if value not in {"", None}}
    return f"{path}?{urlencode(given)}" if given else path
