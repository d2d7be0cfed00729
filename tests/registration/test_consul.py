"""Registration with real Consul agents: the instance is there, survives what it should and ends when it should."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import consul as consul_module
import pytest

from clientlb.discovery import open_discovery
from clientlb.endpoint import Endpoint
from clientlb.errors import RegistrationError
from clientlb.registration import register
from clientlb.registration.consul import ConsulRegistrar
from tests.discovery.watching import watching
from tests.registration.leaving import registered_process
from tests.servers.consul import ConsulServer
from tests.servers.process import free_ports, wait_until


@pytest.fixture
def forgetful() -> Iterator[ConsulServer]:
    """An agent that keeps nothing over a restart."""
    server = ConsulServer(dev=True)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def test_what_is_written(consul: ConsulServer, service: str) -> None:
    with register(
        service,
        port=80,
        to=f"{consul.url}?tag=blue",
        host="10.0.0.1",
        id="a/b",
        zone="z1",
        weight=2.5,
        secure=True,
        metadata={"team": "x"},
    ) as mine:
        assert mine.wait(10)
        (found,) = consul.request("GET", f"/v1/health/service/{service}?passing=1")
        assert found["Service"]["ID"] == "a/b"
        assert found["Service"]["Weights"]["Passing"] == 2
        with watching(open_discovery(f"{consul.url}?tag=blue"), service) as seen:
            seen.expect(80)
            (endpoint,) = seen.endpoints or ()
    assert (endpoint.host, endpoint.zone, endpoint.weight, endpoint.secure) == ("10.0.0.1", "z1", 2.5, True)
    assert endpoint.started_at == mine.endpoint.started_at
    assert dict(endpoint.metadata) == {"team": "x", "tags": "blue"}


def test_default_host(consul: ConsulServer, service: str) -> None:
    with register(service, port=80, to=consul.url) as mine:
        assert mine.endpoint.host == "127.0.0.1"
        assert mine.wait(10)


def test_leaving_is_seen_at_once(consul: ConsulServer, service: str) -> None:
    with watching(open_discovery(consul.url), service) as seen:
        with register(service, port=80, to=consul.url) as mine:
            assert mine.wait(10)
            seen.expect(80)
        seen.expect(timeout=2.0)
    assert consul.request("GET", f"/v1/health/service/{service}") == []


def test_killed_process_is_gone_after_its_ttl(consul: ConsulServer, service: str) -> None:
    with (
        watching(open_discovery(consul.url), service) as seen,
        registered_process(service, 80, consul.url, ttl=1.5) as process,
    ):
        seen.expect(80)
        process.send_signal(signal.SIGKILL)
        seen.expect(timeout=10.0)


def test_renewing_keeps_it_passing(consul: ConsulServer, service: str) -> None:
    with watching(open_discovery(consul.url), service) as seen, register(service, port=80, to=consul.url, ttl=0.6):
        seen.expect(80)
        other = {"ID": f"{service}-2", "Name": service, "Port": 81, "Check": {"TTL": "2s", "Status": "passing"}}
        consul.request("PUT", "/v1/agent/service/register", other)
        seen.expect(80, 81)
        seen.expect(80)  # the other's check ran out; ours was renewed several times in that time
        assert all({80} <= {endpoint.port for endpoint in endpoints} for endpoints in seen.updates[1:] if endpoints)
        assert sum(not endpoints for endpoints in seen.updates) <= 1


def test_agent_killed_and_restarted(own_consul: ConsulServer, service: str) -> None:
    with (
        watching(open_discovery(own_consul.url), service) as seen,
        register(service, port=80, to=own_consul.url, ttl=30.0) as mine,
    ):
        assert mine.wait(10)
        seen.expect(80)
        own_consul.restart()
        other = {"ID": f"{service}-2", "Name": service, "Address": "10.0.0.1", "Port": 81}
        own_consul.request("PUT", "/v1/agent/service/register", other)
        seen.expect(80, 81)
        assert all(endpoints for endpoints in seen.updates[1:])


def test_agent_that_forgot(forgetful: ConsulServer, service: str) -> None:
    with (
        watching(open_discovery(forgetful.url), service) as seen,
        register(service, port=80, to=forgetful.url, ttl=1.5) as mine,
    ):
        assert mine.wait(10)
        seen.expect(80)
        forgetful.restart()
        wait_until(lambda: forgetful.request("GET", f"/v1/health/service/{service}?passing=1"), what="it is back")
        seen.expect(80)


def test_deregistered_by_somebody_else(consul: ConsulServer, service: str) -> None:
    with register(service, port=80, to=consul.url, ttl=1.5) as mine:
        assert mine.wait(10)
        consul.request("PUT", f"/v1/agent/service/deregister/{mine.endpoint.id}")
        wait_until(lambda: consul.request("GET", f"/v1/health/service/{service}?passing=1"), what="it is back")


def test_what_changed_is_written(consul: ConsulServer, service: str) -> None:
    registrar = ConsulRegistrar.from_url(consul.url)
    for port in (80, 81):
        registrar.announce(service, Endpoint("10.0.0.1", port, f"{service}-one"), 5.0)
        (found,) = consul.request("GET", f"/v1/health/service/{service}")
        assert found["Service"]["Port"] == port
    for _ in range(2):  # gone already is no error
        registrar.withdraw(service, Endpoint("10.0.0.1", 81, f"{service}-one"))
    registrar.close()


def test_client_of_the_user(consul: ConsulServer, service: str) -> None:
    registrar = ConsulRegistrar(client=consul_module.Consul(host="127.0.0.1", port=consul.port))
    with register(service, port=80, to=registrar) as mine:
        assert mine.wait(10)
        assert len(consul.request("GET", f"/v1/health/service/{service}?passing=1")) == 1
    assert consul.request("GET", f"/v1/health/service/{service}") == []


def test_unreachable(service: str) -> None:
    port = free_ports(1)[0]
    registrar = ConsulRegistrar("127.0.0.1", port)
    for act in (
        lambda: registrar.announce(service, Endpoint("10.0.0.1", 80), 5.0),
        lambda: registrar.withdraw(service, Endpoint("10.0.0.1", 80)),
    ):
        with pytest.raises(RegistrationError, match=f"{service} failed: ConnectionRefusedError"):
            act()
    assert registrar.default_host() == "127.0.0.1"


def test_what_consul_refuses(consul: ConsulServer, service: str) -> None:
    registrar = ConsulRegistrar("127.0.0.1", consul.port)
    with pytest.raises(RegistrationError, match="400"):
        registrar.announce(service, Endpoint("10.0.0.1", 80, metadata={"not allowed": "x"}), 5.0)
