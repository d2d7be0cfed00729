"""Endpoints that are reached in another way than by IPv4: IPv6, unix sockets, a base path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import clientlb
from clientlb import Endpoint
from clientlb.testing import ManualDiscovery
from tests.http.conftest import Kind, Process, settle


@pytest.fixture(scope="module")
def socket_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("unix") / "orders.sock"


@pytest.fixture(scope="module")
def server(socket_path: Path) -> Iterator[Process]:
    server = Process("a", "--unix", str(socket_path))
    yield server
    server.stop()


async def test_ipv6(kind: Kind, server: Process) -> None:
    with clientlb.Services(f"static://[::1]:{server.port}") as services:
        async with kind.client(services) as http, http.stream("http://orders/echo") as response:
            address = response.extensions["network_stream"].get_extra_info("server_addr")
            await settle(response.aread() if kind.is_async else response.read())
    assert address[:2] == ("::1", server.port)
    assert response.json()["headers"]["host"] == "orders"
    assert response.extensions["clientlb"].endpoint == Endpoint("::1", server.port)


async def test_a_unix_socket(kind: Kind, server: Process, socket_path: Path) -> None:
    # nobody listens on port 1: the call takes the socket, or fails
    local = Endpoint("127.0.0.1", 1, metadata={"socket": str(socket_path)})
    remote = Endpoint("127.0.0.1", server.port)
    registry = ManualDiscovery({"orders": [local, remote]})
    with clientlb.Services(registry, options=clientlb.Options(policy="round_robin")) as services:
        async with kind.client(services, uds=lambda endpoint: endpoint.metadata.get("socket")) as http:
            responses = [await http.get("http://orders/x?y=1") for _ in range(4)]
    assert {response.extensions["clientlb"].endpoint for response in responses} == {local, remote}
    assert [len(response.extensions["clientlb"].attempts) for response in responses] == [1] * 4
    assert {response.json()["headers"]["host"] for response in responses} == {"orders"}


async def test_a_socket_that_is_not_there_is_a_connect_error(kind: Kind, tmp_path: Path) -> None:
    with clientlb.Services("static://127.0.0.1:1") as services:
        async with kind.client(services, uds=lambda endpoint: str(tmp_path / "none.sock")) as http:
            with pytest.raises(kind.library.ConnectError):
                await http.post("http://orders/")


async def test_a_base_path(kind: Kind, server: Process) -> None:
    old = Endpoint("127.0.0.1", server.port)
    new = Endpoint("127.0.0.2", server.port, metadata={"path": "/api/"})
    with clientlb.Services(
        ManualDiscovery({"orders": [old, new]}), options=clientlb.Options(policy="round_robin")
    ) as s:
        async with kind.client(s, base_path=lambda endpoint: endpoint.metadata.get("path")) as http:
            responses = [await http.get("http://orders/echo?a=/api") for _ in range(4)]
            inside = [await http.get("http://orders/api/echo") for _ in range(2)]
    seen = {(each.extensions["clientlb"].endpoint, each.json()["target"]) for each in responses}
    assert seen == {(old, "/echo?a=/api"), (new, "/api/echo?a=/api")}
    assert {str(each.url) for each in responses} == {"http://orders/echo?a=/api"}  # the caller's stays
    assert {each.json()["target"] for each in inside} == {"/api/echo"}


async def test_a_base_path_that_changes_is_noticed(kind: Kind, server: Process) -> None:
    registry = ManualDiscovery({"orders": [Endpoint("127.0.0.1", server.port, metadata={"path": "/v1"})]})
    with clientlb.Services(registry) as services:
        async with kind.client(services, base_path=lambda endpoint: endpoint.metadata["path"]) as http:
            assert (await http.get("http://orders/echo")).json()["target"] == "/v1/echo"
            registry.set("orders", [Endpoint("127.0.0.1", server.port, metadata={"path": "/v2"})])
            assert (await http.get("http://orders/echo")).json()["target"] == "/v2/echo"


async def test_a_base_path_that_is_none_is_an_error(kind: Kind) -> None:
    with clientlb.Services("static://127.0.0.1:1") as services:
        async with kind.client(services, base_path=lambda endpoint: "api") as http:
            with pytest.raises(clientlb.ConfigurationError, match=r"base_path of endpoint 127\.0\.0\.1:1 is 'api'"):
                await http.get("http://orders/")
        assert [node.in_flight for node in services["orders"].nodes] == [0]


@pytest.mark.parametrize("option", ["uds", "base_path"])
def test_they_are_not_for_transports_of_the_users_own(kind: Kind, option: str) -> None:
    with (
        clientlb.Services("static://127.0.0.1:1") as services,
        pytest.raises(clientlb.ConfigurationError, match="inner"),
    ):
        kind.client_type(services, inner=lambda endpoint: None, **{option: lambda endpoint: "/x"})
