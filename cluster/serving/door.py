"""The door of the HTTP API: who may come in, and with how much."""

from __future__ import annotations

import secrets
from collections.abc import Collection

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN = ("/health", "/", "/page", "/shared", "/palette.css", "/static", "/docs", "/openapi.json")
"""Paths that need no token: they show nothing of anybody's."""


class Token:
    """Refuses requests that do not bring the token, as ``Authorization: Bearer TOKEN``.

    Args:
        app: what is behind the door.
        token: the secret; empty: everybody may come in.
        open_paths: paths, and what lies below them, that need none.
    """

    def __init__(self, app: ASGIApp, token: str, open_paths: Collection[str] = OPEN) -> None:
        self._app, self._token, self._open = app, token.encode(), tuple(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._token or self._is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        kind, _, secret = given.partition(b" ")
        if kind.lower() == b"bearer" and secrets.compare_digest(secret.strip(), self._token):
            await self._app(scope, receive, send)
            return
        response = JSONResponse(
            {"detail": "bring the token that `affect-rl serve` printed, as `Authorization: Bearer TOKEN`"},
            status_code=401,
            headers={"WWW-Authenticate": "Bearer"},
        )
        await response(scope, receive, send)

    def _is_open(self, path: str) -> bool:
        return any(path == known or (known != "/" and path.startswith(f"{known}/")) for known in self._open)


class SizeLimit:
    """Refuses requests whose body is larger than `max_bytes`, whatever their header says, while it is being read."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        text = f"the request is larger than {self._max_bytes:,} bytes (serve.max_upload_mib); send less"
        said = dict(scope.get("headers", ())).get(b"content-length", b"0")
        if not said.isdigit() or int(said) > self._max_bytes:
            await JSONResponse({"detail": text}, status_code=413)(scope, receive, send)
            return
        came = 0

        async def counted() -> Message:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > self._max_bytes:
                raise HTTPException(413, text)
            return message

        await self._app(scope, counted if scope["type"] == "http" else receive, send)
