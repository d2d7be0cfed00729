"""Registration with real Consul agents: the instance is there, survives what it should and ends when it should."""

from __future__ import annotations

import signal
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import consul as consul_module
import grpc
import pytest

from clientlb.discovery import Discovery, open_discovery
from clientlb.discovery.consul import ConsulDiscovery
from clientlb.endpoint import Endpoint
from clientlb.errors import ConfigurationError, RegistrationError
from clientlb.registration import Registrar, open_registrar, register
from clientlb.registration.consul import ConsulRegistrar, GRPCCheck, HTTPCheck, TTLCheck
from clientlb.testing import RegistrarContract
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


class TestContract(RegistrarContract):
    """The checks that every registrar has to pass; the same id in two services is among them."""

    expires = True
    secret = "s3cret"

    @pytest.fixture(autouse=True)
    def _registry(self, consul: ConsulServer) -> None:
        self.port = consul.port

    def make_registrar(self) -> ConsulRegistrar:
        return ConsulRegistrar("127.0.0.1", self.port, token=self.secret)

    def make_discovery(self) -> Discovery:
        return ConsulDiscovery("127.0.0.1", self.port, token=self.secret)


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
        assert found["Service"]["ID"] == f"{service}:a/b"
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
        seen.expect(timeout=6.0)  # not only when a lease of 10 s ends
    assert consul.request("GET", f"/v1/health/service/{service}") == []


def test_killed_process_is_gone_after_its_ttl(consul: ConsulServer, service: str) -> None:
    with (
        watching(open_discovery(consul.url), service) as seen,
        registered_process(service, 80, consul.url, ttl=1.5) as process,
    ):
        seen.expect(80)
        process.send_signal(signal.SIGKILL)
        seen.expect()


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
        consul.request("PUT", f"/v1/agent/service/deregister/{service}:{mine.endpoint.id}")
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


class Health:
    """Whether the server under test says that it is well, and what it was asked."""

    def __init__(self) -> None:
        self.good = True
        self.asked: list[str] = []


CERTIFICATE = Path(__file__).parents[1] / "grpc" / "certificates" / "orders.crt"


@contextmanager
def http_server(secure: bool) -> Iterator[tuple[int, Health]]:
    health = Health()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            health.asked.append(self.path)
            self.send_response(200 if health.good else 503)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        if secure:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(CERTIFICATE, CERTIFICATE.with_suffix(".key"))
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server.server_address[1], health
        server.shutdown()


@contextmanager
def grpc_server(secure: bool) -> Iterator[tuple[int, Health]]:
    """The standard health service, written by hand: `status` is field 1; SERVING is 1, NOT_SERVING is 2."""
    health = Health()

    def check(request: bytes, context: grpc.ServicerContext) -> bytes:
        health.asked.append(request[2:].decode())
        return b"\x08\x01" if health.good else b"\x08\x02"

    handlers = {"Check": grpc.unary_unary_rpc_method_handler(check)}
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers),))
    pair = (CERTIFICATE.with_suffix(".key").read_bytes(), CERTIFICATE.read_bytes())
    credentials = grpc.ssl_server_credentials([pair])
    address = "127.0.0.1:0"
    port = server.add_secure_port(address, credentials) if secure else server.add_insecure_port(address)
    server.start()
    try:
        yield port, health
    finally:
        server.stop(None)


CHECKED = [
    (http_server, False, HTTPCheck("/well?x=1", interval=1.0), "/well?x=1"),
    (grpc_server, True, GRPCCheck("orders.Orders", interval=1.0), "orders.Orders"),
]


@pytest.mark.parametrize(("serve", "secure", "check", "asked"), CHECKED)
def test_the_agent_checks(
    consul: ConsulServer, service: str, serve: Any, secure: bool, check: HTTPCheck | GRPCCheck, asked: str
) -> None:
    registrar = ConsulRegistrar("127.0.0.1", consul.port, check=check, deregister_after=600.0)
    with (
        serve(secure) as (port, health),
        watching(open_discovery(consul.url), service) as seen,
        register(service, port=port, to=registrar, host="127.0.0.1", secure=secure) as mine,
    ):
        assert mine.wait(10)
        seen.expect(port)
        assert health.asked[0] == asked
        health.good = False
        seen.expect()
        health.good = True
        seen.expect(port)
    assert consul.request("GET", f"/v1/health/service/{service}") == []
    registrar.close()


def test_an_agent_that_checks_and_forgot(forgetful: ConsulServer, service: str) -> None:
    url = f"{forgetful.url}?check=http:/well&check_interval=1&check_timeout=1"
    with (
        http_server(True) as (port, _),
        watching(open_discovery(url), service) as seen,
        register(service, port=port, to=url, host="127.0.0.1", ttl=0.6, secure=True) as mine,
    ):
        assert mine.wait(10)
        seen.expect(port)
        forgetful.restart()
        wait_until(lambda: forgetful.request("GET", f"/v1/health/service/{service}?passing=1"), what="it is back")
        seen.expect(port)


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        ("ttl", TTLCheck()),
        ("http", HTTPCheck()),
        ("http:/well&check_interval=2", HTTPCheck("/well", interval=2.0)),
        ("grpc:orders&check_timeout=0.5", GRPCCheck("orders", timeout=0.5)),
    ],
)
def test_checks_in_a_url(check: str, expected: object) -> None:
    assert ConsulRegistrar.from_url(f"consul://127.0.0.1:1?check={check}")._check == expected


def test_a_server_that_starts_is_not_in_maintenance(consul: ConsulServer, service: str) -> None:
    with (
        watching(open_discovery(consul.url), service) as seen,
        register(service, port=80, to=consul.url, id=service, ttl=0.6) as mine,
    ):
        assert mine.wait(10)
        seen.expect(80)
        consul.request("PUT", f"/v1/agent/service/maintenance/{service}:{service}?enable=true")
        seen.expect()
        registrar = ConsulRegistrar.from_url(consul.url)
        registrar.announce(service, mine.endpoint, 10.0)  # another process, with the same id
        seen.expect(80)
        registrar.close()


def test_tags(consul: ConsulServer, service: str) -> None:
    with register(service, port=80, to=f"{consul.url}?tag=blue,v2&dc=dc1&near=_agent") as mine:
        assert mine.wait(10)
        (found,) = consul.request("GET", f"/v1/health/service/{service}")
        assert found["Service"]["Tags"] == ["blue", "v2"]


def test_it_is_a_registrar() -> None:
    registrar = open_registrar("consul://127.0.0.1:1")
    assert isinstance(registrar, Registrar)
    registrar.attach(print)
    registrar.detach(print)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("check=tcp", "check is ttl, http:/path, grpc"),
        ("check=http:health", "such as /health"),
        ("check=http&check_interval=0.5", "check_interval"),
        ("check=grpc&check_timeout=soon", "check_timeout"),
        ("deregister_after=5", "deregister_after"),
        ("checks=ttl", "unknown option 'checks'"),
    ],
)
def test_bad_options(options: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        open_registrar(f"consul://127.0.0.1:1?{options}")
