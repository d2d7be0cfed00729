"""Real gRPC servers in other processes, and channels of both kinds over a registry that the test writes itself."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import pytest
from grpc_tools import protoc
from tenacity.stop import stop_after_attempt
from tenacity.wait import wait_none

import clientlb
import clientlb.grpc
import clientlb.grpc.aio
from clientlb.testing import ManualDiscovery
from tests.servers.process import ServerProcess, free_ports, running_together

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what grpcio-tools makes of orders.proto; it is importable."""
    folder = tmp_path_factory.mktemp("stubs")
    code = protoc.main(["", f"-I{HERE}", f"--python_out={folder}", f"--grpc_python_out={folder}", "orders.proto"])
    assert code == 0
    sys.path.insert(0, str(folder))
    return folder


@pytest.fixture(scope="session")
def pb(stubs: Path) -> ModuleType:
    import orders_pb2  # type: ignore[import-not-found]

    return orders_pb2


@pytest.fixture(scope="session")
def stub_class(stubs: Path) -> Any:
    import orders_pb2_grpc  # type: ignore[import-not-found]

    return orders_pb2_grpc.OrdersStub


class OrdersServer(ServerProcess):
    """A server on a port of its own. It may be killed and started again."""

    def __init__(self, stubs: Path, *arguments: str) -> None:
        super().__init__("orders")
        self._stubs = stubs
        self._arguments = arguments
        (self.port,) = free_ports(1)
        self.address = f"127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        return [sys.executable, str(HERE / "server.py"), str(self._stubs), str(self.port), *self._arguments]

    def launch(self) -> None:
        """Without the fork of other servers, which a process that uses gRPC survives only with luck."""
        assert not self.running
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.PIPE,  # closed when this process ends, however it ends, and then the server ends
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def answers(self) -> bool:
        socket.create_connection(("127.0.0.1", self.port), 1).close()
        return True


@pytest.fixture(scope="session")
def pair(stubs: Path) -> Iterator[list[OrdersServer]]:
    """Two servers that every test leaves alive."""
    yield from _running(stubs)


@pytest.fixture
def own_pair(stubs: Path) -> Iterator[list[OrdersServer]]:
    """Two servers of one test, which may kill them."""
    yield from _running(stubs)


def _running(stubs: Path) -> Iterator[list[OrdersServer]]:
    with running_together([OrdersServer(stubs), OrdersServer(stubs)]) as servers:
        yield servers


@pytest.fixture(scope="session")
def tls_server(stubs: Path) -> Iterator[OrdersServer]:
    """A server that speaks TLS; its certificate says DNS:orders."""
    server = OrdersServer(stubs, "tls")
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def root_certificate() -> bytes:
    return (HERE / "certificates" / "orders.crt").read_bytes()


@pytest.fixture
def nobody() -> str:
    """An address where nobody listens."""
    (port,) = free_ports(1)
    return f"127.0.0.1:{port}"


@pytest.fixture
def discovery() -> ManualDiscovery:
    return ManualDiscovery()


@pytest.fixture
def services(discovery: ManualDiscovery) -> Iterator[clientlb.Services]:
    """Round robin, so that a test knows who is next; no pause before a retry, and as many as the test likes."""
    retry = clientlb.RetryOptions(
        stop=stop_after_attempt(3), wait=wait_none(), budget=clientlb.BudgetOptions(reserve=1000)
    )
    guard = clientlb.GuardOptions(hold=0, empty_hold=0)  # who is taken off the list is gone at once
    options = clientlb.Options(policy="round_robin", retry=retry, guard=guard, wait_for_endpoints=5.0)
    with clientlb.Services(discovery, options=options) as made:
        yield made


@pytest.fixture
def connect(services: clientlb.Services, stub_class: Any) -> Iterator[Callable[..., Any]]:
    """Makes sync stubs, whose channels are closed at the end; the service must be idle then."""
    channels: list[grpc.Channel] = []

    def connect(**options: Any) -> Any:
        channels.append(clientlb.grpc.channel("orders", services, **options))
        stub = stub_class(channels[-1])
        stub.channel = channels[-1]
        return stub

    yield connect
    for channel in channels:
        channel.close()


@pytest.fixture
async def aconnect(services: clientlb.Services, stub_class: Any) -> AsyncIterator[Callable[..., Any]]:
    """The same for coroutines."""
    channels: list[clientlb.grpc.aio.Channel] = []

    def connect(**options: Any) -> Any:
        channels.append(clientlb.grpc.aio.channel("orders", services, **options))
        stub = stub_class(channels[-1])
        stub.channel = channels[-1]
        return stub

    yield connect
    for channel in channels:
        await channel.close()


@pytest.fixture
def in_flight(services: clientlb.Services) -> Callable[[], int]:
    return lambda: sum(node.in_flight for node in services["orders"].nodes)


@pytest.fixture
def failures(services: clientlb.Services) -> Callable[[], int]:
    """Failures that the endpoints have on record."""
    return lambda: sum(endpoint.failures for endpoint in services["orders"].stats().endpoints)


@pytest.fixture
def seen(stub_class: Any, pb: ModuleType) -> Callable[[OrdersServer, str], int]:
    """Asks one server directly how often a request came."""

    def seen(server: OrdersServer, id: str) -> int:
        with grpc.insecure_channel(server.address) as channel:
            reply = stub_class(channel).Get(pb.Request(id=id, act="seen"), timeout=10, wait_for_ready=True)
            return int(reply.number)

    return seen
