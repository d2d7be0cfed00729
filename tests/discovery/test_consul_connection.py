"""How an agent is reached: variables and arguments, TLS with certificates of both sides, unix sockets, IPv6, limits."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from clientlb.discovery import open_discovery
from clientlb.discovery._consul_address import ConsulAddress
from clientlb.discovery._consul_http import MAX_ANSWER, ConsulError, ConsulHTTP
from clientlb.discovery.consul import ConsulDiscovery
from clientlb.errors import ConfigurationError
from clientlb.registration import register
from clientlb.registration.consul import ConsulRegistrar
from tests.conftest import running
from tests.discovery.scripted_agent import Reply, ScriptedAgent, entry
from tests.discovery.watching import watching
from tests.servers.consul import ConsulServer
from tests.servers.process import free_ports

NAME = "agent.example"
NO_TLS_CHECK = "ignore::urllib3.exceptions.InsecureRequestWarning"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("CONSUL_"):
            monkeypatch.delenv(name)


@dataclass
class Guarded:
    """An agent that asks for our certificate, and listens on a unix socket as well."""

    port: int
    certificate: str
    key: str
    socket: str


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("agent")
    certificate, key, path = (str(folder / name) for name in ("certificate.pem", "key.pem", "http.sock"))
    command = f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={NAME}"
    files = ["-addext", f"subjectAltName=DNS:{NAME}", "-keyout", key, "-out", certificate]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    https, *others = free_ports(4)
    extra = {
        "ports": {"https": https},
        "addresses": {"http": f"127.0.0.1 unix://{path}"},
        "ca_file": certificate,
        "cert_file": certificate,
        "key_file": key,
        "verify_incoming_https": True,
    }
    with running(ConsulServer(dev=True, ports=others, extra=extra)):
        yield Guarded(https, certificate, key, path)


def found(to: ConsulDiscovery, service: str) -> None:
    with watching(to, service) as seen:
        seen.expect(80)


def test_tls_with_certificates_of_both_sides(guarded: Guarded, service: str) -> None:
    options = f"tls=true&ca_file={guarded.certificate}&cert_file={guarded.certificate}&key_file={guarded.key}"
    url = f"consul://127.0.0.1:{guarded.port}?{options}&tls_server_name={NAME}"
    with register(service, port=80, to=url) as mine:
        assert mine.wait(10)
        found(ConsulDiscovery.from_url(url), service)


@pytest.mark.filterwarnings(NO_TLS_CHECK)
def test_tls_from_the_environment(guarded: Guarded, service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSUL_HTTP_ADDR", f"https://127.0.0.1:{guarded.port}")
    monkeypatch.setenv("CONSUL_CLIENT_CERT", guarded.certificate)
    monkeypatch.setenv("CONSUL_CLIENT_KEY", guarded.key)
    monkeypatch.setenv("CONSUL_CACERT", guarded.certificate)
    monkeypatch.setenv("CONSUL_TLS_SERVER_NAME", NAME)
    with register(service, port=80, to="consul://") as mine:
        assert mine.wait(10)
        found(ConsulDiscovery(), service)
        with watching(ConsulDiscovery(tls_server_name="other"), service) as seen:
            seen.expect_error("Hostname mismatch")
        monkeypatch.delenv("CONSUL_TLS_SERVER_NAME")
        with watching(ConsulDiscovery(), service) as seen:
            seen.expect_error("IP address mismatch")
        monkeypatch.setenv("CONSUL_HTTP_SSL_VERIFY", "false")
        found(ConsulDiscovery(), service)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", guarded.certificate)  # not ours: trust is what Consul's variables say
        monkeypatch.delenv("CONSUL_CACERT")
        with watching(ConsulDiscovery(tls_verify=True), service) as seen:
            seen.expect_error("CERTIFICATE_VERIFY_FAILED")


@pytest.mark.filterwarnings(NO_TLS_CHECK)
def test_tls_without_our_certificate(guarded: Guarded, service: str) -> None:
    with watching(ConsulDiscovery("127.0.0.1", guarded.port, tls=True, tls_verify=False), service) as seen:
        seen.expect_error("certificate")


def test_unix_socket(guarded: Guarded, service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"consul://{guarded.socket}"
    with watching(open_discovery(url), service) as seen, register(service, port=80, to=url) as mine:
        assert mine.wait(10)
        seen.expect(80)
        monkeypatch.setenv("CONSUL_HTTP_ADDR", f"unix://{guarded.socket}")
        found(ConsulDiscovery(), service)
        assert ConsulRegistrar().default_host() == "127.0.0.1"
    # that closing ends a query that waits, on a unix socket too, is what `watching` asserts


def test_unix_socket_that_is_not_there(tmp_path: Path, service: str) -> None:
    with watching(ConsulDiscovery(unix_socket=str(tmp_path / "none")), service) as seen:
        seen.expect_error(str(tmp_path / "none"), "No such file")


def test_ipv6(service: str) -> None:
    with (
        ScriptedAgent(lambda query: Reply([entry(80)]), family=socket.AF_INET6) as agent,
        watching(open_discovery(f"consul://[::1]:{agent.port}"), service) as seen,
    ):
        seen.expect(80)
        assert agent.headers[0]["host"] == f"[::1]:{agent.port}"


def test_what_every_request_says(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSUL_NAMESPACE", "team")
    monkeypatch.setenv("CONSUL_PARTITION", "east")
    monkeypatch.setenv("CONSUL_HTTP_AUTH", "me:s3cret")
    with ScriptedAgent(lambda query: Reply([entry(80)])) as agent:
        url = f"{agent.url}?tag=a,b&near=_agent&filter=Service.Port==80&dc=dc1"
        for to in (url, f"{url}&ns=other&consistency=consistent", f"{url}&consistency=default"):
            with watching(open_discovery(to), service) as seen:
                seen.expect(80)
        with pytest.raises(ConsulError, match="501"):
            ConsulHTTP(ConsulAddress("127.0.0.1", agent.port)).put("/v1/agent", 5.0)
    firsts = [query for query in agent.queries if query.get("index") == "0"]
    common = {"partition": "east", "near": "_agent", "filter": "Service.Port==80", "dc": "dc1"}
    assert all(query.items() >= common.items() for query in firsts)
    assert [query["ns"] for query in firsts] == ["team", "other", "team"]
    modes = [query.keys() & {"stale", "consistent", "cached", "default"} for query in firsts]
    assert modes == [{"stale"}, {"consistent"}, set()]
    assert agent.paths[0].count("tag=a&tag=b") == 1
    assert {headers["authorization"] for headers in agent.headers} == {"Basic bWU6czNjcmV0"}
    assert {headers["accept-encoding"] for headers in agent.headers} == {"identity"}  # the agent is on this machine


@pytest.mark.parametrize(
    ("variables", "options", "expected"),
    [
        ({"CONSUL_HTTP_SSL": "1"}, {}, {"tls": True}),
        ({"CONSUL_HTTP_SSL": "true"}, {"tls": False}, {"tls": False}),
        ({"CONSUL_HTTP_ADDR": "https://a:1"}, {}, {"tls": True, "host": "a", "port": 1}),
        ({"CONSUL_HTTP_ADDR": "https://a:1"}, {"host": "b"}, {"tls": False, "host": "b", "port": 8500}),
        ({"CONSUL_HTTP_ADDR": "unix:///s"}, {"host": "b"}, {"unix_socket": None, "host": "b"}),
        ({"CONSUL_HTTP_ADDR": "a:1"}, {"unix_socket": "/s"}, {"unix_socket": "/s", "authority": "/s"}),
        ({"CONSUL_HTTP_SSL_VERIFY": "0"}, {}, {"verify": False}),
        ({"CONSUL_HTTP_SSL_VERIFY": "0"}, {"tls_verify": True}, {"verify": True}),
        ({"CONSUL_CAPATH": "/tmp"}, {}, {"verify": "/tmp"}),
        ({"CONSUL_CACERT": "/dev/null", "CONSUL_CAPATH": "/tmp"}, {}, {"verify": "/dev/null"}),
        ({"CONSUL_CACERT": "/dev/null"}, {"ca_path": "/tmp"}, {"verify": "/tmp"}),
        ({"CONSUL_CLIENT_CERT": "/dev/null"}, {}, {"certificate": "/dev/null"}),
        ({"CONSUL_CLIENT_KEY": "/dev/zero"}, {"cert_file": "/dev/null"}, {"certificate": "/dev/null"}),
        ({}, {"cert_file": "/dev/null", "key_file": "/dev/zero"}, {"certificate": ("/dev/null", "/dev/zero")}),
        ({"CONSUL_HTTP_AUTH": "a:b"}, {"auth": "c:d"}, {"auth": "c:d"}),
        ({"CONSUL_HTTP_TOKEN": "a"}, {"token": "b"}, {"token": "b"}),
        (
            {"CONSUL_NAMESPACE": "a", "CONSUL_PARTITION": "p"},
            {"ns": "b"},
            {"parameters": {"ns": "b", "partition": "p"}},
        ),
    ],
)
def test_an_explicit_argument_wins(
    variables: dict[str, str], options: dict[str, Any], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    address = ConsulAddress(**options)
    assert {name: getattr(address, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("variables", "options", "problem"),
    [
        ({}, {"ca_file": "/does/not/exist"}, "ca_file: there is no '/does/not/exist'"),
        ({"CONSUL_CLIENT_CERT": "/does/not/exist"}, {}, "cert_file: there is no"),
        ({"CONSUL_CLIENT_KEY": "/dev/null"}, {}, "key_file needs the certificate"),
        ({"CONSUL_HTTP_SSL": "maybe"}, {}, "CONSUL_HTTP_SSL is true or false"),
        ({}, {"unix_socket": "relative"}, "unix_socket is an absolute path"),
        ({}, {"unix_socket": "/s", "host": "a"}, "not both"),
        ({}, {"auth": "me:s3cret\n"}, "user and password has characters"),
    ],
)
def test_bad_settings(
    variables: dict[str, str], options: dict[str, Any], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=problem) as caught:
        ConsulAddress(**options)
    assert "s3cret" not in str(caught.value)


def test_secrets_are_not_shown() -> None:
    address = ConsulAddress("agent", token="s3cret", auth="me:s3cret")
    assert "s3cret" not in f"{address!r} {address}"


def test_answers_are_bounded(service: str) -> None:
    large = Reply([{**entry(1), "Padding": "x" * 10_000_000}, entry(80, id="two")], index=3)
    endless = Reply(body=b" " * (MAX_ANSWER + 1))

    def script(query: dict[str, str]) -> Reply:
        return large if query["index"] == "0" else endless

    with ScriptedAgent(script) as agent, watching(open_discovery(agent.url), service) as seen:
        seen.expect(80)
        seen.expect_error("more than 64 MB", timeout=20.0)
        assert seen.ports == {80}
