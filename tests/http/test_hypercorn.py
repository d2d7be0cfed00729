"""HTTP/2 over TLS with a server that is not ours: calls at once, restarts, its limit of requests per connection."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from types import ModuleType

import httpx
import httpx2
import pytest

import clientlb
import clientlb.httpx
import clientlb.httpx2
from clientlb.testing import ManualDiscovery
from tests.http.certificates import Authority
from tests.http.conftest import ROOT
from tests.servers.process import ServerProcess, free_ports, running_together, wait_until

CALLERS = 6
FLAVOURS = [clientlb.httpx, clientlb.httpx2]
LIBRARY = {clientlb.httpx: httpx, clientlb.httpx2: httpx2}


class Hypercorn(ServerProcess):
    """It is started again on its port."""

    def __init__(self, port: int, certificate: tuple[str, str]) -> None:
        super().__init__("hypercorn")
        self.port = port
        self._certificate = certificate
        self.requests_per_connection = 1_000_000

    def command(self) -> list[str]:
        certificate, key = self._certificate
        config = self.folder / "config.toml"
        config.write_text(
            f"workers = 0\ngraceful_timeout = 1\nkeep_alive_max_requests = {self.requests_per_connection}"
        )
        listening = ["--bind", f"127.0.0.1:{self.port}", "--certfile", certificate, "--keyfile", key]
        return [
            sys.executable,
            "-m",
            "hypercorn",
            "--config",
            str(config),
            *listening,
            f"{ROOT}/tests/http/asgi:app",
        ]

    def answers(self) -> bool:
        socket.create_connection(("127.0.0.1", self.port), 1).close()
        return True

    def restart(self) -> None:
        """As a deployment does it: calls that run may end, and then it is killed."""
        assert self._process is not None
        self.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(3)
        self.kill()
        self.start()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), "authority")


@pytest.fixture
def servers(authority: Authority) -> Iterator[list[Hypercorn]]:
    with running_together([Hypercorn(port, authority.issue("orders")) for port in free_ports(2)]) as servers:
        yield servers


@pytest.fixture
def services(servers: list[Hypercorn]) -> Iterator[clientlb.Services]:
    addresses = [f"127.0.0.1:{server.port}" for server in servers]
    health = clientlb.HealthOptions(open_for=0.2, open_for_max=0.2)  # so that restarts may follow each other quickly
    options = clientlb.Options(health=health)
    with clientlb.Services(ManualDiscovery({"orders": addresses}), options=options) as services:
        yield services
        assert [node.in_flight for node in services["orders"].nodes] == [0, 0]


def while_they_restart(
    servers: list[Hypercorn], services: clientlb.Services, *callers: Callable[[threading.Event], Counter[str]]
) -> Counter[str]:
    """Let callers call until every server was restarted twice; gives what they have counted."""
    over = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(len(callers)) as pool:
        results = [pool.submit(caller, over) for caller in callers]
        try:
            # on this thread: servers die with the one that started them
            for server in (*servers, *servers):
                server.restart()
                # not before: who calls only the other one by now would have nobody
                wait_until(lambda: services["orders"].stats().healthy == len(servers), what="it is called again")
        finally:
            over.set()
        return sum((result.result() for result in results), Counter[str]())


@pytest.mark.parametrize("flavour", FLAVOURS, ids=["httpx", "httpx2"])
def test_threads_call_while_servers_restart(
    flavour: ModuleType, servers: list[Hypercorn], services: clientlb.Services, authority: Authority
) -> None:
    def call(over: threading.Event) -> Counter[str]:
        versions: Counter[str] = Counter()
        while not over.is_set():
            own = uuid.uuid4().hex
            answer = http.get(f"https://orders/{own}", headers={"X-Own": own}).json()
            assert (answer["path"], answer["headers"]["x-own"]) == (f"/{own}", own)  # nobody else's
            versions[answer["version"]] += 1
        return versions

    with flavour.Client(services, http2=True, verify=authority.trust()) as http:
        versions = while_they_restart(servers, services, *[call] * CALLERS)
    assert set(versions) == {"2"}


@pytest.mark.parametrize("flavour", FLAVOURS, ids=["httpx", "httpx2"])
def test_tasks_call_while_servers_restart(
    flavour: ModuleType, servers: list[Hypercorn], services: clientlb.Services, authority: Authority
) -> None:
    async def call_all(over: threading.Event) -> Counter[str]:
        versions: Counter[str] = Counter()

        async def call() -> None:
            while not over.is_set():
                request = http.build_request("GET", "https://orders/")
                response = await http.send(request, stream=True)  # the head always comes
                try:
                    await response.aread()
                # asyncio throws away what has come, once it cannot write; Hypercorn may leave between head and body
                except (LIBRARY[flavour].NetworkError, LIBRARY[flavour].RemoteProtocolError):
                    versions["broken off"] += 1
                else:
                    versions[response.json()["version"]] += 1

        async with flavour.AsyncClient(services, http2=True, verify=authority.trust()) as http:
            await asyncio.gather(*(call() for _ in range(CALLERS)))
        return versions

    versions = while_they_restart(servers, services, lambda over: asyncio.run(call_all(over)))
    assert versions.pop("broken off", 0) <= 2 * len(servers) * CALLERS  # those that ran when a server left
    assert set(versions) == {"2"}


@pytest.mark.parametrize("flavour", FLAVOURS, ids=["httpx", "httpx2"])
def test_connections_that_the_server_ends_cost_no_call(
    flavour: ModuleType, servers: list[Hypercorn], services: clientlb.Services, authority: Authority
) -> None:
    for server in servers:
        server.kill()
        server.requests_per_connection = 3
        server.start()
    with flavour.Client(services, http2=True, verify=authority.trust()) as http:
        assert {http.get("https://orders/").status_code for _ in range(60)} == {200}
    stats = services["orders"].stats()
    assert stats.retries > 0  # it does not answer the request with which it ends a connection
    assert sum(endpoint.failures for endpoint in stats.endpoints) == 0
