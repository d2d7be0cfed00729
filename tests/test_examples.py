"""Every example runs and says what it promises."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
PROMISES = {
    "http_client.py": ["serves orders/v1/items/7", "60 more calls, one server gone", "endpoints healthy"],
    "grpc_client.py": ["40 calls over two servers", "2 of 2 endpoints healthy"],
    "graceful_server.py": ["exit status of the old server: 0", "calls, 0 failed"],
    "own_policy.py": ["{'10.0.0.3': 5, '10.0.0.4': 5}", "version 2: eu-2"],
    "any_client.py": [
        *(f"{client}: " for client in ("urllib", "requests", "aiohttp")),
        "socket: HTTP/1.1 200 OK",
        "still served by",
        "retries: ",
    ],
}
SERVED = {"fastapi_app.py", "flask_app.py", "gunicorn.conf.py"}  # tests/examples/test_frameworks.py


def test_every_example_is_tested():
    assert {path.name for path in EXAMPLES.glob("*.py")} == PROMISES.keys() | SERVED


@pytest.mark.parametrize("name", PROMISES)
def test_example(name):
    run = subprocess.run([sys.executable, name], cwd=EXAMPLES, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    for promise in PROMISES[name]:
        assert promise in run.stdout
