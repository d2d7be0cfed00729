"""A registry that cannot be reached, and a service that does not exist: what each shell raises, and what it says."""

from __future__ import annotations

import re
from collections.abc import Iterator

import grpc
import grpc.aio
import httpx
import httpx2
import pytest

from clientlb import NoEndpointsError, Options, Services
from tests.e2e.shells import REGISTRIES, SHELLS, call_once
from tests.servers.process import free_ports, wait_until

FLAVOURS: dict[str, type[Exception]] = {
    "httpx sync": httpx.ConnectError,
    "httpx async": httpx.ConnectError,
    "httpx2 sync": httpx2.ConnectError,
    "httpx2 async": httpx2.ConnectError,
    "grpc sync": grpc.RpcError,
    "grpc aio": grpc.aio.AioRpcError,
    "decorator def": NoEndpointsError,
    "decorator async def": NoEndpointsError,
}
IMPATIENT = Options(wait_for_endpoints=0.2)


@pytest.fixture(scope="module", params=REGISTRIES)
def unreachable(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Services of a registry that is not there, and says so."""
    [port] = free_ports(1)
    url = {
        "dir": f"dir://{tmp_path_factory.mktemp('registry')}/missing",
        "zookeeper": f"zookeeper://127.0.0.1:{port}/services",
        "consul": f"consul://127.0.0.1:{port}",
    }[request.param]
    with Services(url, options=IMPATIENT) as services:
        wait_until(lambda: services["orders"].last_error is not None, 30, "the registry is noticed to be away")
        yield services


@pytest.fixture(scope="module")
def reachable(registry: str) -> Iterator[Services]:
    with Services(registry, options=IMPATIENT) as services:
        wait_until(lambda: services["nosuch"].updated_at is not None, 30, "the registry has answered")
        yield services


def no_endpoints(shell: str, services: Services, service: str) -> str:
    """Call a service without endpoints; the text of the error, which has to be of the shell's own kind."""
    with pytest.raises(FLAVOURS[shell]) as caught:
        call_once(shell, services, service)
    error = caught.value
    assert isinstance(error, NoEndpointsError)
    if isinstance(error, grpc.RpcError):
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        return str(error.details())
    return str(error)


@pytest.mark.parametrize("shell", SHELLS)
def test_registry_unreachable(shell: str, unreachable: Services) -> None:
    text = no_endpoints(shell, unreachable, "orders")
    balancer = unreachable["orders"]
    assert f"service 'orders' has no endpoints: {balancer.source} delivered no list in " in text
    assert re.search(r"\(waited [0-9]\.[0-9] s\)", text), text
    assert text.endswith(f"; its last error: {balancer.last_error}")


@pytest.mark.parametrize("shell", SHELLS)
def test_service_that_does_not_exist(shell: str, reachable: Services) -> None:
    text = no_endpoints(shell, reachable, "nosuch")
    source = reachable["nosuch"].source
    assert f"service 'nosuch' has no endpoints: {source} says that nobody is registered, for " in text
    assert re.search(r"\(waited [0-9]\.[0-9] s\)", text), text
    assert "last error" not in text
