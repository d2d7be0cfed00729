"""WSGI applications: under gunicorn, whose master registers, and in a server of one process."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from clientlb.registration import register
from clientlb.registration.wsgi import Registered
from tests.registration.programs import Callers, ask, program, python
from tests.servers.process import free_ports

APPLICATION = """
import time
def application(environ, start_response):
    time.sleep(0.02)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "6")])
    return [b"served"]
"""
CONFIGURATION = """
from clientlb.registration.gunicorn import hooks
when_ready, on_exit = hooks("orders", port={port}, to="dir://{registry}", propagation=2.0)
"""


def test_gunicorn_leaves_without_losing_a_call(tmp_path: Path) -> None:
    [port] = free_ports(1)
    registry = tmp_path / "registry"
    (tmp_path / "shop.py").write_text(APPLICATION)
    (tmp_path / "gunicorn.conf.py").write_text(CONFIGURATION.format(port=port, registry=registry))
    command = [sys.executable, "-m", "gunicorn", "--workers=2", f"--chdir={tmp_path}", f"--bind=127.0.0.1:{port}"]
    command += [f"--config={tmp_path}/gunicorn.conf.py", f"--worker-tmp-dir={tmp_path}", "shop:application"]
    with program(command, registry) as server:
        server.wait_announced()
        assert len(server.entries) == 1
        assert ask(port)[1] == "served"
        callers = Callers(server, port)
        assert server.terminate() == 0
        callers.check()


def test_gunicorn_that_ends_by_itself_is_taken_out(tmp_path: Path) -> None:
    [port] = free_ports(1)
    registry = tmp_path / "registry"
    (tmp_path / "gunicorn.conf.py").write_text(CONFIGURATION.format(port=port, registry=registry))
    command = [sys.executable, "-m", "gunicorn", f"--bind=127.0.0.1:{port}", f"--config={tmp_path}/gunicorn.conf.py"]
    with program([*command, "no_such_module:app"], registry) as server:
        assert server.wait() == 3  # as gunicorn ends without us when no worker boots
        assert not server.entries


SERVER = (
    APPLICATION
    + """
import sys
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from clientlb.registration import register
from clientlb.registration.wsgi import Registered

class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128
class Handler(WSGIRequestHandler):
    def log_message(self, *arguments): pass
server = Server(("127.0.0.1", int(sys.argv[2])), Handler)
with register("orders", port=int(sys.argv[2]), to=sys.argv[1], propagation=2.0, stop=server.shutdown) as registration:
    server.set_app(Registered(application, registration, readiness="/ready"))
    server.serve_forever()
"""
)


def test_a_threaded_server_leaves_without_losing_a_call(tmp_path: Path) -> None:
    [port] = free_ports(1)
    with python(SERVER, tmp_path, port) as server:
        server.wait_announced()
        assert ask(port, "/ready")[:2] == (200, "ready")
        callers = Callers(server, port)
        server.send()
        server.wait_withdrawn()
        assert ask(port, "/ready")[:2] == (503, "leaving")
        assert server.wait() == 0, server.output
        callers.check()


class Answer(list[bytes]):
    closed = False

    def close(self) -> None:
        self.closed = True


def test_a_request_is_under_way_until_its_answer_was_sent(tmp_path: Path) -> None:
    answer = Answer([b"a", b"b"])

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/broken":
            raise OSError("broken")
        return answer

    with register("orders", port=1, to=f"dir://{tmp_path}", signals=()) as registration:
        app = Registered(application, registration)
        parts: Any = app({"PATH_INFO": "/"}, None)
        assert b"".join(parts) == b"ab"
        assert len(parts) == 2, "of an answer in one part, servers know the Content-Length"
        assert registration.in_flight == 1
        parts.close()
        assert answer.closed
        parts.close()
        assert registration.in_flight == 0
        streamed: Any = Registered(lambda *_: iter([b"a"]), registration)({"PATH_INFO": "/"}, None)
        assert not hasattr(streamed, "__len__")
        streamed.close()
        with pytest.raises(OSError, match="broken"):
            app({"PATH_INFO": "/broken"}, None)
        assert registration.in_flight == 0
