"""Endpoints that are written down in the program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from clientlb.discovery.static import StaticDiscovery
from clientlb.endpoint import Endpoint
from clientlb.errors import ClosedError, ConfigurationError
from clientlb.testing import DiscoveryContract, RecordingListener


class TestContract(DiscoveryContract):
    mutable = False

    @pytest.fixture(autouse=True)
    def content(self) -> None:
        self.services: dict[str, Sequence[Endpoint]] = {}

    def make_discovery(self) -> StaticDiscovery:
        return StaticDiscovery(self.services)

    def put(self, service: str, endpoints: Sequence[Endpoint]) -> None:
        self.services[service] = endpoints


def listed(discovery: StaticDiscovery, service: str) -> list[str]:
    listener = RecordingListener()
    discovery.resolver(service).start(listener)
    (update,) = listener.updates
    return [str(endpoint) for endpoint in update]


def test_a_list_serves_every_service() -> None:
    discovery = StaticDiscovery(["10.0.0.1:80", Endpoint("10.0.0.2", 81, weight=2.0), "[::1]:82"])
    for service in ("orders", "users"):
        assert listed(discovery, service) == ["10.0.0.1:80", "10.0.0.2:81", "[::1]:82"]


def test_a_mapping_serves_the_services_it_names() -> None:
    discovery = StaticDiscovery({"orders": ["10.0.0.1:80"], "users": []})
    assert listed(discovery, "orders") == ["10.0.0.1:80"]
    assert listed(discovery, "users") == []
    assert listed(discovery, "stock") == []
    assert str(discovery) == "static list for orders, users"


def test_url() -> None:
    discovery = StaticDiscovery.from_url("static://10.0.0.1:80, 10.0.0.2:81,[2001:db8::1]:82/")
    assert listed(discovery, "orders") == ["10.0.0.1:80", "10.0.0.2:81", "[2001:db8::1]:82"]


def test_a_long_list_has_a_short_name() -> None:
    name = str(StaticDiscovery([f"10.0.0.{i}:80" for i in range(100)]))
    assert name == "static://10.0.0.0:80,10.0.0.1:80,10.0.0.2:80,10.0.0.3:80,10.0.0.4:80,…"


@pytest.mark.parametrize("entries", ["10.0.0.1:80", None, 80, ["10.0.0.1"], [("10.0.0.1", 80)], {"orders": "h:80"}])
def test_what_is_no_list_of_addresses(entries: Any) -> None:
    with pytest.raises(ConfigurationError):
        StaticDiscovery(entries)


def test_a_closed_resolver_is_silent() -> None:
    resolver, listener = StaticDiscovery(["10.0.0.1:80"]).resolver("orders"), RecordingListener()
    resolver.close()
    with pytest.raises(ClosedError):
        resolver.start(listener)
    assert not listener.updates
