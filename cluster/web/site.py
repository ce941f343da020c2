"""What every page of ours is served with: a strict policy, files from the package, and an address of its own.

What a page shows was written by models or stands in datasets, so it is untrusted. Pages put it into the document as
text alone (``shared/dom.js``), and the policy forbids the browser to run or fetch anything that is not in the package.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from importlib.resources import files
from ipaddress import ip_address
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from affect_rl.errors import AffectError

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
PALETTE = Path(str(files("affect_rl.experiments.report"))) / "palette.css"
"""The colours that pages share with the report of an experiment."""


def guard_local(site: FastAPI, host: str) -> None:
    """On a loopback address answer to local names alone: a foreign web site may give itself a name that leads here."""
    if is_loopback(host):
        site.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", host])


def make_site(page: Path, host: str) -> FastAPI:
    """An application that serves a page and nothing else; the caller adds what the page asks for.

    Args:
        page: see `add_page`.
        host: that it will listen on. On a loopback address it answers to local names alone, so that a foreign web
            site cannot reach it under a name of its own.
    """
    site = FastAPI(openapi_url=None)  # whose documentation would load scripts from elsewhere
    guard_local(site, host)
    add_page(site, page)

    @site.exception_handler(AffectError)
    def explain(request: Request, error: AffectError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=404)

    return site


def add_page(site: FastAPI, page: Path, policy: str = POLICY) -> None:
    """Let an application serve a page at ``/``, and protect all of its answers.

    Args:
        site: the application.
        page: directory with ``index.html`` and its own scripts and styles, which it names as ``page/...``. Those of
            all pages are ``shared/...``.
        policy: the Content-Security-Policy of every answer that brings none of its own.
    """
    site.mount("/page", StaticFiles(directory=page))
    site.mount("/shared", StaticFiles(directory=Path(__file__).parent / "shared"))
    add_file = partial(site.add_api_route, response_model=None, include_in_schema=False)
    add_file("/", lambda: FileResponse(page / "index.html"))
    add_file("/palette.css", lambda: FileResponse(PALETTE))
    site.add_middleware(Protect, headers={"Content-Security-Policy": policy, **HEADERS})


class Protect:
    """Adds headers to every answer, except those that it has already. Streams pass through line by line."""

    def __init__(self, app: ASGIApp, headers: Mapping[str, str]) -> None:
        self._app, self._headers = app, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                for name, value in self._headers.items():
                    MutableHeaders(scope=message).setdefault(name, value)
            await send(message)

        await self._app(scope, receive, protected)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address; port 0: any that is free.

    Raises:
        AffectError: somebody else has the port, or the machine has no such address.
    """
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise AffectError(f"{host}:{port}: cannot listen there ({error.strerror}); choose another --port") from error


def serve(site: FastAPI, at: socket.socket) -> None:
    """Answer at a socket until somebody presses Ctrl-C or asks the process to end."""
    with at, suppress(KeyboardInterrupt):
        uvicorn.Server(uvicorn.Config(site, log_level="warning")).run(sockets=[at])
