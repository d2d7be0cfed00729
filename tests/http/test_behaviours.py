"""A service is called as a server is: every behaviour, seen through the ordinary client and through ours."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator

import pytest

import clientlb
from clientlb.testing import ManualDiscovery
from tests.http.behaviours import BEHAVIOURS, World, failures, redirects, requests, responses
from tests.http.conftest import Kind, Process

MODULES = (requests, responses, redirects, failures)


@pytest.fixture(scope="module")
def context() -> ssl.SSLContext:
    return ssl.create_default_context()


@pytest.fixture(scope="module")
def addresses(shared_servers: dict[str, Process]) -> Iterator[dict[str, str]]:
    """Two services that work, one whose port is closed and one that accepts no connection."""
    a, b = shared_servers.values()
    with contextlib.ExitStack() as stack:
        refusing, stuck, *waiting = (stack.enter_context(socket.socket()) for _ in range(4))
        refusing.bind(("127.0.0.1", 0))
        stuck.bind(("127.0.0.1", 0))
        stuck.listen(0)
        for each in waiting:  # until the queue is full
            each.setblocking(False)
            each.connect_ex(stuck.getsockname())
        unreachable = {
            name: f"127.0.0.1:{each.getsockname()[1]}" for name, each in (("refusing", refusing), ("stuck", stuck))
        }
        yield {"orders": a.address, "payments": b.address, **unreachable}


@pytest.mark.parametrize("name", BEHAVIOURS)
async def test_a_service_is_called_as_a_server_is(
    kind: Kind, name: str, addresses: dict[str, str], context: ssl.SSLContext
) -> None:
    bare = World(kind, addresses, None, context)
    expected = bare.plain(await BEHAVIOURS[name](bare))
    registry = ManualDiscovery({service: [address] for service, address in addresses.items()})
    with clientlb.Services(registry) as services:
        ours = World(kind, addresses, services, context)
        assert ours.plain(await BEHAVIOURS[name](ours)) == expected
        assert all(node.in_flight == 0 for service in addresses for node in services[service].nodes)
    assert len(expected) > 2


def test_the_table_has_every_module() -> None:
    assert {function.__module__ for function in BEHAVIOURS.values()} == {module.__name__ for module in MODULES}
