"""Registration for ASGI applications (FastAPI, Starlette, Django, Quart …): one wrapper around the application.

An ASGI server says "shutdown" only when it has stopped accepting, which is too late to leave. So the wrapper, started
by the server in its main thread, puts itself before the server's handler of SIGTERM: the server hears of the signal
when the registry names it no more and the calls under way have ended.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from clientlb.registration import Registration, register
from clientlb.registration._local import local_address
from clientlb.registration._probe import once_listening
from clientlb.registration.base import Registrar

__all__ = ["Registered"]

logger: logging.Logger = logging.getLogger("clientlb.registration")

_SOMEWHERE = ("192.0.2.1", 9)  # reserved for documentation: the way there is the way out

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[Any]]


class Registered:
    """An ASGI application that is registered for as long as its server serves it.

        app = Registered(app, "orders", port=8080, to="consul://127.0.0.1:8500", readiness="/ready")
        app.add_middleware(Registered, service="orders", port=8080, to="consul://127.0.0.1:8500")   # the same

    It is announced when the application has started and the port takes connections. HTTP requests are counted, so that
    leaving waits for them; their answers close the connection while the server leaves. WebSockets are not waited for.

    The server must run the application in its main thread and have set its handlers with `signal.signal`, as uvicorn
    does. With others (hypercorn), and with several worker processes behind one port, use `clientlb register`.

    Args:
        app: The application.
        service: The name under which clients find the server.
        port: The port on which the server listens.
        to: The registry, as for `register`.
        readiness: Path that answers GET with 200, and with 503 as soon as the server leaves (default: none).
        **options: What else `clientlb.registration.register` takes.
    """

    def __init__(
        self, app: App, service: str, *, port: int, to: str | Registrar, readiness: str | None = None, **options: Any
    ) -> None:
        self._app = app
        self._service = service
        self._port = port
        self._to = to
        self._readiness = readiness
        self._options = options
        self.registration: Registration | None = None
        """None until the application has started."""

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Handle one connection, as ASGI defines it."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        elif scope["type"] != "http" or (registration := self.registration) is None:
            await self._app(scope, receive, send)
        elif scope["path"] == self._readiness and scope["method"] in ("GET", "HEAD"):
            await _say(send, *((503, b"leaving") if registration.leaving else (200, b"ready")))
        else:
            await self._serve(registration, scope, receive, send)

    async def _serve(
        self, registration: Registration, scope: MutableMapping[str, Any], receive: Receive, send: Send
    ) -> None:
        async def send_and_close(message: Message) -> None:
            # a kept connection that the server closes later may take a request with it
            if message["type"] == "http.response.start" and registration.leaving and scope["http_version"] < "2":
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        with registration.request():
            await self._app(scope, receive, send_and_close)

    async def _live(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        asked = answered = failed = False

        async def receive_and_leave() -> Message:
            nonlocal asked
            message = await receive()
            asked = True
            if message["type"] == "lifespan.shutdown":
                await self._leave()
            return message

        async def send_and_register(message: Message) -> None:
            nonlocal answered, failed
            if failed:
                return  # what the application makes of it was said already
            answered = True
            try:
                if message["type"] == "lifespan.startup.complete":
                    self._register()
            except Exception as error:
                # said in so many words: of an application that only raises, servers think that it has no lifespan
                failed = True
                await send({"type": "lifespan.startup.failed", "message": f"clientlb: {error}"})
                raise
            await send(message)

        try:
            await self._app(scope, receive_and_leave, send_and_register)
        except Exception as error:
            if answered:
                await self._leave()
                raise
            # how an application says that it knows nothing of starting and ending; its server would go on without us
            logger.debug("the application has no lifespan: %r", error)
            if not asked:
                await receive()
            await send_and_register({"type": "lifespan.startup.complete"})
            await receive_and_leave()
            await send({"type": "lifespan.shutdown.complete"})

    def _register(self) -> None:
        options = dict(self._options)
        host = options.get("host") or local_address(*_SOMEWHERE)
        options["self_test"] = once_listening(self._port, host, options.get("self_test"))
        self.registration = register(self._service, port=self._port, to=self._to, **options)

    async def _leave(self) -> None:
        if self.registration is not None:
            await self.registration.aclose()


async def _say(send: Send, status: int, text: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(text))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})
