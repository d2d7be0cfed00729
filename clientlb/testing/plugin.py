"""pytest fixtures: a registry that the test writes, and servers that answer as it says. pytest finds them by itself.

    def test_another_server_answers(clientlb_endpoints, clientlb_services):
        one, two = clientlb_endpoints("orders", 2)
        one.refuse()
        with Client(clientlb_services) as http:
            assert http.get("http://orders/v1/items/7").text == two.address

pytest loads this module in every run, so it imports nothing but the core of clientlb, and makes nothing by itself.
`pytest -p no:clientlb` turns it off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from clientlb.services import Services
from clientlb.testing.fakes import ManualDiscovery
from clientlb.testing.servers import ScriptedServer

__all__ = ["clientlb_endpoints", "clientlb_registry", "clientlb_services"]


@pytest.fixture
def clientlb_registry() -> ManualDiscovery:
    """A registry in memory, empty at first: `set`, `fail` and `watched` are the test's."""
    return ManualDiscovery()


@pytest.fixture
def clientlb_services(clientlb_registry: ManualDiscovery) -> Iterator[Services]:
    """The `Services` of `clientlb_registry`, with default options; closed at the end of the test."""
    with Services(clientlb_registry) as services:
        yield services


@pytest.fixture
def clientlb_endpoints(clientlb_registry: ManualDiscovery) -> Iterator[Callable[[str, int], list[ScriptedServer]]]:
    """`clientlb_endpoints("orders", 3)` starts three `ScriptedServer`s and makes them the list of the service.

    They are closed at the end of the test.
    """
    with ExitStack() as running:

        def start(service: str, count: int = 1) -> list[ScriptedServer]:
            servers = [running.enter_context(ScriptedServer()) for _ in range(count)]
            clientlb_registry.set(service, [server.endpoint for server in servers])
            return servers

        yield start
