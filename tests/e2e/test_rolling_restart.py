"""All servers of a service are replaced while clients call: no call fails, whatever its method.

The servers are what users run: uvicorn with an ordinary application in `clientlb.registration.asgi.Registered`, stopped
by SIGTERM, nothing else. Requests take 20 ms; eight threads send them, half of them POST. Answers are a head without a
body: one that has arrived in part is already in the caller's hands, and nobody can ask for it again.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from pathlib import Path

from clientlb import Balancer, Services
from clientlb.httpx import Client
from tests.e2e.shells import SETTLED
from tests.registration.programs import PATIENCE, Program, program
from tests.servers.process import free_ports, wait_until

SIZE = 3
THREADS = 8
TTL = 2.0
LEASE_ENDS = 30.0
"""Seconds after which a killed server is out of every registry, be the registry as slow as it may."""

APPLICATION = """
import asyncio, os
from clientlb.registration.asgi import Registered

async def serve(scope, receive, send):
    assert scope["type"] == "http"
    while (await receive()).get("more_body"):
        pass
    await asyncio.sleep(0.02)
    headers = [(b"x-served-by", os.environ["ID"].encode())]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body"})

app = Registered(
    serve, os.environ["SERVICE"], host="127.0.0.1", port=int(os.environ["PORT"]), to=os.environ["REGISTRY"],
    id=os.environ["ID"], ttl=float(os.environ["TTL"]), propagation=0.5,
)
"""


class Callers:
    """Eight threads that call until the block ends; what they were told and what went wrong."""

    def __init__(self, services: Services, service: str, *methods: str) -> None:
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self._client = Client(services, timeout=PATIENCE)
        self._url = f"http://{service}/orders/7"
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=self._call, args=(methods[number % len(methods)],)) for number in range(THREADS)
        ]

    def _call(self, method: str) -> None:
        while not self._ending.is_set():
            try:
                answer = self._client.request(method, self._url, content=b"42" if method == "POST" else None)
                assert answer.status_code == 204, answer.text
                self.answers[answer.headers["x-served-by"]] += 1
            except Exception:
                self.failures.append(f"{method}: {traceback.format_exc()}")
                time.sleep(0.02)

    def wait_answers_of(self, *names: str) -> None:
        """Each of these servers answers, from now on."""
        known = {name: self.answers[name] for name in names}
        wait_until(lambda: all(self.answers[name] > known[name] for name in names), PATIENCE, f"{names} answer")

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        self._client.close()


class Servers(contextlib.ExitStack):
    """uvicorn processes by the name under which they are registered."""

    def __init__(self, registry: str, service: str, folder: Path) -> None:
        super().__init__()
        (folder / "shop.py").write_text(APPLICATION)
        self._variables = {"REGISTRY": registry, "SERVICE": service, "TTL": str(TTL)}
        self._folder = folder

    def start(self, *names: str) -> dict[str, Program]:
        started = {}
        for name, port in zip(names, free_ports(len(names)), strict=True):
            command = [sys.executable, "-m", "uvicorn", "shop:app", f"--app-dir={self._folder}", f"--port={port}"]
            variables = {**self._variables, "PORT": str(port), "ID": name}
            started[name] = self.enter_context(program(command, self._folder, **variables))
        return started


def ids(balancer: Balancer) -> set[str]:
    return {endpoint.id.rpartition(":")[2] for endpoint in balancer.endpoints}


def test_no_call_fails(registry: str, service: str, tmp_path: Path) -> None:
    names = [f"{service}-{number}" for number in range(2 * SIZE)]
    old, new = names[:SIZE], names[SIZE:]
    with Servers(registry, service, tmp_path) as servers:
        first = servers.start(*old)
        with Services(registry, options=SETTLED) as services:
            balancer = services[service]
            wait_until(lambda: ids(balancer) == set(old), PATIENCE, "all servers are found")
            with Callers(services, service, "GET", "POST") as callers:
                callers.wait_answers_of(*old)
                second = servers.start(*new)
                callers.wait_answers_of(*new)
                for server in first.values():
                    server.send(signal.SIGTERM)
                    time.sleep(0.2)  # one after another, as deployments do
                for server in first.values():
                    assert server.wait() == -signal.SIGTERM
                wait_until(lambda: ids(balancer) == set(new), PATIENCE, "only the new ones are left")
                callers.wait_answers_of(*new)
            assert not callers.failures, "\n".join([*callers.failures[:3], balancer.explain()])

        # another client: for the first one, a fourth of six that leaves is a mass
        with Services(registry, options=SETTLED) as services:
            balancer = services[service]
            with Callers(services, service, "GET") as callers:
                callers.wait_answers_of(*new)
                second[new[0]].send(signal.SIGKILL)
                wait_until(lambda: ids(balancer) == set(new[1:]), LEASE_ENDS, "the killed one is out of the list")
                callers.wait_answers_of(*new[1:])
            assert not callers.failures, "\n".join([*callers.failures[:3], balancer.explain()])
