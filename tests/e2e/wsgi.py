"""A WSGI application that calls two services through clientlb, and did so before its server forked the workers.

Served by `gunicorn --preload`. The answer is a JSON object with the process that answered and who served its calls.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

from tests.e2e.preforking import Caller

caller = Caller(os.environ["REGISTRY"], os.environ["WEB"], os.environ["RPC"])
caller.call()


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    served = caller.call()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"process": os.getpid(), **served}).encode()]
