"""Load reports of ASGI applications, in the headers of their answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from clientlb.load import LoadRecorder
from clientlb.orca import HEADER

__all__ = ["Reported"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[Any]]

_HEADER = HEADER.encode()


class Reported:
    """An ASGI application that says with every answer how busy it is.

        app = Reported(app, LoadRecorder(capacity=100))
        app.add_middleware(Reported, recorder=recorder)     # the same

    HTTP requests are counted; a status from 500 on and an exception are failures.

    Args:
        app: The application.
        recorder: Of this process.
    """

    def __init__(self, app: App, recorder: LoadRecorder) -> None:
        self._app = app
        self._recorder = recorder

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Handle one connection, as ASGI defines it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        recorder = self._recorder
        failed = True

        async def send_with_report(message: Message) -> None:
            nonlocal failed
            if message["type"] == "http.response.start":
                failed = message["status"] >= 500
                said = recorder.text()
                if said is not None:
                    message["headers"] = [*message.get("headers", ()), (_HEADER, said.encode())]
            await send(message)

        recorder.began()
        try:
            await self._app(scope, receive, send_with_report)
        except Exception:
            failed = True
            raise
        finally:
            recorder.ended(failed=failed)
