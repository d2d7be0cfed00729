"""Answers probes in an ASGI application (FastAPI, Starlette, Django, Quart …): one wrapper around it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from clientlb.probing.http import PATH, answer_of
from clientlb.probing.meter import LoadMeter

__all__ = ["Probed"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[Any]]


class Probed:
    """An ASGI application that counts its HTTP requests and answers probes.

        app = Probed(app)
        app.add_middleware(Probed)      # the same; the last middleware that is added is the outermost

    Args:
        app: The application.
        meter: What counts; to share it with another way in (default: one of its own).
        path: Where probes are answered (default `/.well-known/clientlb-load`).
    """

    def __init__(self, app: App, meter: LoadMeter | None = None, path: str = PATH) -> None:
        self._app = app
        self._path = path
        self.meter: LoadMeter = meter or LoadMeter()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Handle one connection, as ASGI defines it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"] == self._path and scope["method"] == "GET":
            await _say(send, answer_of(self.meter.load()))
        else:
            await self._count(scope, receive, send)

    async def _count(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        succeeded = False

        async def send_and_look(message: Message) -> None:
            nonlocal succeeded
            if message["type"] == "http.response.start":
                succeeded = message["status"] < 500
            await send(message)

        running = self.meter.began()
        try:
            await self._app(scope, receive, send_and_look)
        except BaseException:
            succeeded = False
            raise
        finally:
            running.end(telling=succeeded)


async def _say(send: Send, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
