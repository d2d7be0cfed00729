"""The examples for web frameworks, under their real servers: found by name, they ask a service by name, and leave."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clientlb import Services
from clientlb.httpx import Client
from clientlb.registration import register
from clientlb.testing import ScriptedServer
from tests.registration.programs import ask, program
from tests.servers.process import free_ports

EXAMPLES = Path(__file__).parents[2] / "examples"
GUNICORN = ["-m", "gunicorn"]  # with examples/gunicorn.conf.py, as that is in the folder
UVICORN = ["-m", "uvicorn", "--host=0.0.0.0"]
FRAMEWORKS = {
    # uvicorn ends with the signal after it has closed everything, gunicorn with 0
    "fastapi": ([*UVICORN, "fastapi_app:app"], -15, "Application shutdown complete"),
    "flask": ([*GUNICORN, "flask_app:create_app()"], 0, "Shutting down: Master"),
    "django": ([*GUNICORN, "django_project.wsgi"], 0, "Shutting down: Master"),
}


@pytest.fixture
def inventory(tmp_path: Path) -> Iterator[ScriptedServer]:
    """The service that the examples ask."""
    with ScriptedServer() as server:
        server.answer(200, "three left", times=None)
        with register(
            "inventory", host=server.endpoint.host, port=server.endpoint.port, to=f"dir://{tmp_path}", signals=()
        ) as registration:
            assert registration.wait(10)
            yield server


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_application_asks_by_name_is_found_by_name_and_leaves(
    framework: str, tmp_path: Path, inventory: ScriptedServer
) -> None:
    arguments, status, last_words = FRAMEWORKS[framework]
    [port] = free_ports(1)
    registry = f"dir://{tmp_path}"
    command = ["env", f"--chdir={EXAMPLES}", sys.executable, *arguments]
    if framework == "fastapi":
        command.append(f"--port={port}")
    expected = {"order": 7, "item": "three left"}
    with program(command, tmp_path, PORT=str(port), REGISTRY=registry) as server:
        server.wait_announced()
        code, text, _ = ask(port, "/orders/7")
        assert (code, json.loads(text)) == (200, expected), server.output
        with Services(registry) as services, Client(services) as http:
            assert http.get("http://orders/orders/7").json() == expected
        assert [request.path for request in inventory.requests] == ["/items/7"] * 2

        inventory.fail(times=None, status=500)
        code, text, _ = ask(port, "/orders/8")
        assert code == 502
        assert "500" in text

        server.send()
        server.wait_withdrawn()
        assert server.wait() == status, server.output
        assert last_words in server.output
        assert "Traceback" not in server.output
