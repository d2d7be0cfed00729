"""When another datacenter is used: as a rule, and with two real datacenters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from clientlb.discovery import open_discovery
from clientlb.discovery._consul_failover import FailoverRule
from tests.conftest import running
from tests.discovery.scripted_agent import Reply, ScriptedAgent, entry
from tests.discovery.watching import watching
from tests.servers.consul import ConsulServer
from tests.servers.process import free_ports, wait_until


def test_a_datacenter_is_left_when_it_was_empty_for_some_time() -> None:
    rule = FailoverRule(leave_after=5.0, return_after=10.0)
    assert not rule.nobody(100.0)
    assert rule.in_trouble
    assert not rule.nobody(104.9)
    rule.somebody()
    assert not rule.in_trouble
    assert not rule.nobody(200.0)
    assert rule.nobody(205.0)


def test_it_is_used_again_when_it_had_somebody_for_some_time() -> None:
    rule = FailoverRule(leave_after=5.0, return_after=10.0)
    assert not rule.home(True, 100.0)
    assert not rule.home(False, 105.0)
    assert not rule.home(True, 106.0)
    assert not rule.home(True, 115.9)
    assert rule.home(True, 116.0)
    rule.moved()
    assert not rule.home(True, 500.0)


QUICK = "failover_after=0.2&failback_after=0.2"


@dataclass
class World:
    home: ConsulServer
    away: ConsulServer


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Two datacenters that know of each other."""
    home_wan, away_wan, *others = free_ports(8)  # all at once: they must differ
    wan = {"serf_wan": away_wan}
    away = ConsulServer(dev=True, name="away", ports=others[:3], extra={"datacenter": "dc2", "ports": wan})
    extra = {"datacenter": "dc1", "ports": {"serf_wan": home_wan}, "retry_join_wan": [f"127.0.0.1:{away_wan}"]}
    home = ConsulServer(dev=True, name="home", ports=others[3:], extra=extra)
    with running(away), running(home):
        wait_until(lambda: len(home.request("GET", "/v1/catalog/datacenters")) == 2, 20, "the datacenters are joined")
        yield World(home, away)


def put(server: ConsulServer, service: str, port: int) -> None:
    description = {"ID": f"{service}-{port}", "Name": service, "Address": "10.0.0.1", "Port": port}
    server.request("PUT", "/v1/agent/service/register", description)


def drop(server: ConsulServer, service: str, port: int) -> None:
    server.request("PUT", f"/v1/agent/service/deregister/{service}-{port}")


def test_nobody_at_home_at_the_start(world: World, service: str) -> None:
    put(world.away, service, 80)
    with watching(open_discovery(f"{world.home.url}?dc=dc1&failover=none,dc2"), service) as seen:
        seen.expect(80)
        (endpoint,) = seen.endpoints or ()
        assert endpoint.metadata["datacenter"] == "dc2"
        put(world.away, service, 81)
        seen.expect(80, 81)
        assert not seen.errors


def test_a_datacenter_that_cannot_be_reached(world: World, service: str) -> None:
    put(world.away, service, 80)
    with watching(open_discovery(f"{world.home.url}?dc=none&failover=dc2"), service) as seen:
        seen.expect(80)
    with watching(open_discovery(f"{world.home.url}?dc=dc1&failover=none"), service) as seen:
        seen.expect()  # nobody anywhere: the truth
        put(world.home, service, 80)
        seen.expect(80)


def test_away_and_home_again(service: str) -> None:
    """The whole way, with an agent whose datacenters empty and fill as the test says."""
    content: dict[str, list[int] | int] = {"dc1": [1, 2], "dc2": [], "dc3": [3]}

    def script(query: dict[str, str]) -> Reply:
        ports = content[query["dc"]]
        if isinstance(ports, int):
            return Reply(status=ports, body=b"No path to datacenter")
        return Reply([entry(port, id=f"i{port}") for port in ports], index=4)

    with (
        ScriptedAgent(script) as agent,
        watching(open_discovery(f"{agent.url}?dc=dc1&failover=dc2,dc3&{QUICK}"), service) as seen,
    ):
        seen.expect(1, 2)
        content["dc1"] = []
        seen.expect(3)
        content["dc1"] = [1]
        seen.expect(1)
        content["dc1"] = 500
        seen.expect(3)
        content["dc3"] = [4]
        seen.expect(4)
        content.update(dc1=[2], dc2=[5], dc3=[])
        seen.expect(2)
        content.update(dc1=500, dc2=500, dc3=500)
        seen.expect_error("No path to datacenter")
        content.update(dc1=[], dc2=[], dc3=[])
        seen.expect()
        updates = [{endpoint.port for endpoint in update} for update in seen.updates]
    changes = [ports for number, ports in enumerate(updates) if not number or ports != updates[number - 1]]
    assert [ports for ports in changes if ports != {5}] == [{1, 2}, {3}, {1}, {3}, {4}, {2}, set()]
