"""A server process of `discovery.py`: it registers and leaves when told, and says at what time it began to.

Run as a program: `registrant.py REGISTRY SERVICE STANDING`. It listens on two ports, and answers every request with
the port that it came to. One is registered `STANDING` times from the start, the other when it is told to `join`, under
a new id each time, until it is told to `leave`. It ends when its stdin is closed, so that it never outlives the
benchmark.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from clientlb.registration import Registration, open_registrar, register

TTL = 60.0


class Registrant:
    """The process, as the benchmark sees it.

    Attributes:
        port: The port that joins and leaves.
    """

    def __init__(self, registry: str, service: str, standing: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, registry, service, str(standing)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port: int = self._answer()

    def tell(self, command: str) -> None:
        """Tell it to `join` or to `leave`; `began` has to be asked after each."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()

    def began(self) -> float:
        """When it began to do what it was told, in seconds of the monotonic clock, which all processes share."""
        return float(self._answer())

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        assert isinstance(self.server, ThreadingHTTPServer)
        self.send_response(200)
        self.send_header("X-Port", str(self.server.server_port))
        self.send_header("Content-Length", "0")  # one packet: a body would wait for the client's acknowledgement
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _listen() -> int:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


def _main(registry: str, service: str, standing: str) -> None:
    always, sometimes = _listen(), _listen()
    registrar = open_registrar(registry)
    numbers = itertools.count(1)

    def join(port: int) -> Registration:
        return register(service, host="127.0.0.1", port=port, id=f"{port}-{next(numbers)}", to=registrar, ttl=TTL)

    registrations = [join(always) for _ in range(int(standing))]
    for each in registrations:
        each.wait()
    print(sometimes, flush=True)
    for line in sys.stdin:
        began = time.monotonic()
        if line.strip() == "join":
            registrations.append(join(sometimes))
            registrations[-1].wait()
        else:
            registrations.pop().close()
        print(began, flush=True)
    for each in registrations:
        each.close()
    registrar.close()


if __name__ == "__main__":
    _main(*sys.argv[1:])
