"""Applications for gunicorn (`wsgi`, `asgi`) and uvicorn (`asgi`), and tasks for celery.

The module is imported once by the process that forks the workers, or, by uvicorn, in each worker. What is made here is
used by all of them.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from tests.e2e.busy import Busy

busy = Busy(os.environ["REGISTRY"], os.environ["WEB"], os.environ["RPC"], keep_calling=os.environ["FORKS"] == "yes")
atexit.register(busy.close)

JSON = "application/json"


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    body = json.dumps(busy.answer()).encode()
    start_response("200 OK", [("Content-Type", JSON), ("Connection", "close")])
    return [body]


async def asgi(scope: dict[str, Any], receive: Any, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
    assert scope["type"] == "http"
    body = json.dumps(await asyncio.to_thread(busy.answer)).encode()
    headers = [(b"content-type", JSON.encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
