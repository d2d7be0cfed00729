"""Deadlines of requests that an ASGI application serves, for the calls that it makes on the way."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from clientlb.deadlines import deadline, lift
from clientlb.serving.header import DEADLINE_HEADER, expiry_of, left_until

__all__ = ["DeadlineMiddleware"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[Any]]


class DeadlineMiddleware:
    """Lets every call that an ASGI application makes inherit the deadline of the request that it serves.

        app = DeadlineMiddleware(app)
        app.add_middleware(DeadlineMiddleware)      # the same

    It holds while the body of the answer is made, too, and ends with it: background tasks that Starlette runs after the
    answer have no deadline, unless a `BaseHTTPMiddleware` stands between. The application itself is not interrupted;
    `clientlb.time_remaining()` says how much time it has.

    Args:
        app: The application.
        header: From which the time is read, in milliseconds if the name ends in `-ms`, else in seconds (default
            `X-Request-Timeout-Ms`). Clients send it with `Options(deadline_header=...)`.
    """

    def __init__(self, app: App, header: str = DEADLINE_HEADER) -> None:
        self._app = app
        self._header = header
        self._name = header.lower().encode("latin-1")

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Handle one connection, as ASGI defines it."""
        expires = None
        if scope["type"] == "http":
            values = [value for name, value in scope["headers"] if name.lower() == self._name]
            expires = expiry_of(self._header, values[0].decode("latin-1") if values else None)
        if expires is None:
            await self._app(scope, receive, send)
            return

        async def send_and_lift(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                lift()

        with deadline(left_until(expires)):
            await self._app(scope, receive, send_and_lift)
