"""The web server of the console: checks each request, opens sessions, serves the page's files, and passes on the rest.

    GET /open/TOKEN                opens a session, once
    GET /static/console.css        the style sheet of pages without a session
    GET /SESSION/static/NAME       a file of the page; contains nothing of the stack
    GET /SESSION/...               a page, if the cookie of the session comes with the request

A page's files are below the session's path. So a browser takes none from its cache that an earlier version served, or a
server that had the port before.

All answers forbid scripts but the page's own, frames, and requests to other addresses.
"""

from __future__ import annotations

import html
import importlib.util
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from observatory.console.access import COOKIE, SESSION_SECONDS, Sessions, refusal, sent_secrets
from observatory.console.worker import Worker, WorkerError
from observatory.operations import ConsoleLinks

METHODS = ("GET", "HEAD")
STATIC = Path(__file__).parent / "static"
FILES, STYLES = "static/", "console.css"
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
NO_STORE = {"cache-control": "no-store"}
AGAIN_SECONDS = 15  # after which a browser reads a page again whose reading failed as a whole
FILE_SECONDS = 3600  # that a browser keeps the page's files without a question

_NOTICE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>{more}<link rel="icon" href="data:,"><link rel="stylesheet" href="/static/console.css"></head>
<body class="notice"><main><h1>{title}</h1><p>{text}</p></main></body></html>
"""


def plotly_file() -> Path:
    """Return the JavaScript of plotly, which its Python package carries; the package is not imported."""
    found = importlib.util.find_spec("plotly")
    assert found is not None  # noqa: S101 - a requirement of this package
    assert found.submodule_search_locations is not None  # noqa: S101
    return Path(found.submodule_search_locations[0], "package_data", "plotly.min.js")


@dataclass(frozen=True, kw_only=True)
class Console:
    """The endpoints. `links` are the links that may be opened, `worker` renders pages."""

    links: ConsoleLinks
    worker: Worker
    sessions: Sessions = field(default_factory=Sessions)
    files: Mapping[str, Path] = field(
        default_factory=lambda: {
            STYLES: STATIC / STYLES,
            "console.js": STATIC / "console.js",
            "plotly.min.js": plotly_file(),
        }
    )

    def application(self, port: int) -> ASGIApp:
        """Return the application that listens on a port of loopback."""
        routes = [
            Route("/", self.without_session, methods=METHODS),
            Route("/open/{token}", self.open, methods=METHODS),
            Route(f"/{FILES}{STYLES}", self.styles, methods=METHODS),
            Route("/{session}", self.page, methods=METHODS),
            Route("/{session}/{path:path}", self.page, methods=METHODS),
        ]
        return _Guard(Starlette(routes=routes), frozenset({f"127.0.0.1:{port}", f"localhost:{port}"}))

    async def without_session(self, _request: Request) -> Response:
        """Explain how to open the console."""
        return _notice(
            HTTPStatus.UNAUTHORIZED,
            "This console is locked",
            "Run <code>observatory console</code> and open the link that it prints.",
        )

    async def open(self, request: Request) -> Response:
        """Exchange a link for a session. A HEAD request, as of a preview, opens nothing."""
        if request.method == "HEAD" or not self.links.redeem(request.path_params["token"]):
            return _notice(
                HTTPStatus.FORBIDDEN,
                "This link is not valid",
                "A link works once, within five minutes, for the stack that made it. Run <code>observatory "
                "console</code> for another.",
            )
        session = self.sessions.open()
        # Not a redirect: a browser that another site sent here would follow it without a cookie that is strict.
        answer = _notice(
            HTTPStatus.OK,
            "Opening the console",
            f'<a href="/{session.path}/">Continue</a>',
            more=f'<meta http-equiv="refresh" content="0;url=/{session.path}/">',
        )
        answer.set_cookie(
            COOKIE,
            session.secret,
            max_age=SESSION_SECONDS,
            path=f"/{session.path}/",
            httponly=True,
            samesite="strict",
        )
        return answer

    async def styles(self, _request: Request) -> Response:
        """Return the style sheet of pages without a session."""
        return self._file(STYLES)

    def _file(self, name: str) -> Response:
        """Return a file of the page."""
        path = self.files.get(name)
        if path is None:
            return PlainTextResponse("no such file", HTTPStatus.NOT_FOUND)
        return FileResponse(path, headers={"cache-control": f"private, max-age={FILE_SECONDS}"})

    async def page(self, request: Request) -> Response:
        """Return a page of the session whose path and cookie the request has."""
        sent = sent_secrets(request.headers.getlist("cookie"))
        session = self.sessions.find(request.path_params["session"], *sent)
        if session is None:
            return await self.without_session(request)
        path = request.path_params.get("path", "")
        if path.startswith(FILES):
            return self._file(path.removeprefix(FILES))
        try:
            answer = await run_in_threadpool(self.worker.answer, path, dict(request.query_params))
        except WorkerError as error:
            again = f'<meta http-equiv="refresh" content="{AGAIN_SECONDS}">'
            why = f"{html.escape(str(error))}. This page is read again every {AGAIN_SECONDS} s."
            return _notice(HTTPStatus.SERVICE_UNAVAILABLE, "The stack cannot be read", why, more=again)
        return Response(answer.body, answer.status, NO_STORE, answer.kind)


class _Guard:
    """Refuses what no page of the console sends, and adds the headers of every answer."""

    def __init__(self, inner: ASGIApp, hosts: frozenset[str]) -> None:
        self._inner, self._hosts = inner, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in HEADERS.items())]
            await send(message)

        await self._answerer(scope)(scope, receive, guarded)

    def _answerer(self, scope: Scope) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        given = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        hosts = sum(name == "host" for name, _ in given)
        if reason := refusal(dict(given), self._hosts, host_headers=hosts):
            return PlainTextResponse(reason, HTTPStatus.FORBIDDEN)
        if scope["method"] not in METHODS:
            return PlainTextResponse("this console is read-only", HTTPStatus.METHOD_NOT_ALLOWED, {"allow": "GET, HEAD"})
        return self._inner


def _notice(status: HTTPStatus, title: str, text: str, *, more: str = "") -> HTMLResponse:
    """Return a page without content of the stack; the arguments are HTML."""
    return HTMLResponse(_NOTICE.format(title=title, text=text, more=more), status, NO_STORE)
