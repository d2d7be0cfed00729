"""Consul discovery: against real servers, and against a scripted agent for the answers that those do not give."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import consul as consul_module
import pytest

from clientlb.discovery import Discovery, open_discovery
from clientlb.discovery.consul import ConsulDiscovery
from clientlb.endpoint import Endpoint
from clientlb.errors import ClosedError, ConfigurationError
from clientlb.registration.consul import ConsulRegistrar
from clientlb.testing import DiscoveryContract
from tests.conftest import running
from tests.discovery.consul_churn import churn
from tests.discovery.forking import run_forking
from tests.discovery.scripted_agent import Reply, ScriptedAgent, entry
from tests.discovery.watching import QUICK, Watched, watching
from tests.servers.consul import ConsulCluster, ConsulServer
from tests.servers.process import free_ports, wait_until


@pytest.fixture(scope="module")
def breaking() -> Iterator[ConsulServer]:
    with running(ConsulServer()) as server:
        yield server


class TestContract(DiscoveryContract):
    """The checks that every backend has to pass, on a server that they may kill."""

    breakable = True
    can_be_malformed = True

    @pytest.fixture(autouse=True)
    def _server(self, breaking: ConsulServer) -> None:
        self.server = breaking

    def make_discovery(self) -> Discovery:
        return open_discovery(self.server.url)

    def put(self, service: str, endpoints: Sequence[Endpoint]) -> None:
        wanted = {f"{service}:{endpoint.id}" for endpoint in endpoints}
        for known in self.server.request("GET", "/v1/agent/services").values():
            if known["Service"] == service and known["ID"] not in wanted:
                self.server.request("PUT", f"/v1/agent/service/deregister/{known['ID']}")
        registrar = ConsulRegistrar.from_url(self.server.url)
        for endpoint in endpoints:
            registrar.announce(service, endpoint, 60.0)
        registrar.close()

    def put_malformed(self, service: str) -> None:
        self.server.request("PUT", "/v1/agent/service/register", {"ID": "bad", "Name": service, "Port": 70000})

    def break_registry(self) -> None:
        self.server.kill()

    def mend_registry(self) -> None:
        self.server.start()


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("CONSUL_"):
            monkeypatch.delenv(name)


def put(server: ConsulServer, service: str, *ports: int, token: str = "", **more: Any) -> None:
    for port in ports:
        description = {"ID": f"{service}-{port}", "Name": service, "Address": "10.0.0.1", "Port": port, **more}
        server.request("PUT", "/v1/agent/service/register", description, token=token)


def drop(server: ConsulServer, service: str, port: int) -> None:
    server.request("PUT", f"/v1/agent/service/deregister/{service}-{port}")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("consul://", "consul://127.0.0.1:8500"),
        ("consul://agent", "consul://agent:8500"),
        ("consul://10.0.0.1:8501/?dc=east&tag=v2", "consul://10.0.0.1:8501"),
        ("consul://[::1]:8500", "consul://[::1]:8500"),
        ("consul://agent?token=s3cret&tls=true", "consul://agent:8500"),
    ],
)
def test_url(url: str, shown: str) -> None:
    assert str(open_discovery(url)) == shown


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("consul://agent:0x", "port"),
        ("consul://agent:70000", "port"),
        ("consul://agent/path", "host:port"),
        ("consul://s3cret@agent", "token_file"),
        ("consul://agent?tls=maybe", "true or false"),
        ("consul://agent?datacenter=east", "unknown option 'datacenter'"),
        ("consul://agent?health=good", "passing or passing.warning"),
        ("consul://agent?consistency=strong", "stale, default, consistent, cached"),
        ("consul://agent?max_connections=many", "max_connections"),
        ("consul://agent?max_connections=0", "max_connections"),
        ("consul://agent?max_stale=soon", "max_stale"),
        ("consul://agent?tls_verify=0", "true or false"),
        ("consul://agent?token_file=/does/not/exist", "token file"),
        ("consul://me:s3cret@agent:8500", "token_file"),
        ("consul://me:x/s3cret@agent:8500", "token_file"),
        ("consul://s3cret:x/y@agent", "token_file"),
        ("consul://me:x?s3cret=1@agent", "unknown options"),
        ("consul://me:x#s3cret@agent", "token_file"),
        ("consul://s3cret%2?tag=x@agent", "host:port"),
    ],
)
def test_bad_url(url: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem) as caught:
        open_discovery(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("wait", [0.0, -1.0, float("nan"), 601.0])
def test_bad_wait(wait: float) -> None:
    with pytest.raises(ConfigurationError, match="wait"):
        ConsulDiscovery(wait=wait)


@pytest.mark.parametrize(
    ("variable", "shown"),
    [
        ("agent:8501", "consul://agent:8501"),
        ("agent", "consul://agent:8500"),
        ("https://agent:8501", "consul://agent:8501"),
        ("http://[::1]:8501/", "consul://[::1]:8501"),
        ("unix:///run/consul.sock", "consul:///run/consul.sock"),
    ],
)
def test_address_from_the_environment(variable: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSUL_HTTP_ADDR", variable)
    assert str(open_discovery("consul://")) == shown
    assert str(open_discovery("consul://other:1")) == "consul://other:1"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"host": "127.0.0.1:8500"}, "host and port"),
        ({"host": "agent/x"}, "host and port"),
        ({"host": "agent", "port": 70000}, "host and port"),
        ({"host": "user:s3cret@agent", "port": 8500}, "user and password"),
        ({"host": "s3cret@agent", "port": 70000}, "user and password"),
        ({"token": "s3cret\nX-Evil: 1"}, "token has characters"),
        ({"token": "s3crét"}, "token has characters"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem) as caught:
        ConsulDiscovery(**arguments)
    assert "s3cr" not in str(caught.value)


@pytest.mark.parametrize("address", ["ftp://agent:8500", "unix://run/consul.sock", "agent:port"])
def test_address_in_the_environment_that_we_cannot_use(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSUL_HTTP_ADDR", address)
    with pytest.raises(ConfigurationError, match="CONSUL_HTTP_ADDR"):
        open_discovery("consul://")


@pytest.mark.parametrize(
    "variable",
    [
        "http://user:s3cret@host:8500",
        "user:s3cret@host:8500",
        "user:s3cret@host",
        "http://user:s3cret/x@host:8500",
        "user:s3cret://x@host:8500",
        "s3cret://user:x@host:8500",
    ],
)
def test_password_in_the_environment_is_not_repeated(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSUL_HTTP_ADDR", variable)
    with pytest.raises(ConfigurationError, match="CONSUL_HTTP_TOKEN") as caught:
        open_discovery("consul://")
    assert "s3cret" not in str(caught.value)


def test_address_of_a_client_that_we_cannot_use() -> None:
    client = consul_module.Consul(host="127.0.0.1", port=8500)
    client.http.port = "s3cret@host"
    with pytest.raises(ConfigurationError, match="not a number") as caught:
        ConsulDiscovery(client=client)
    assert "s3cret" not in str(caught.value)


def test_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, service: str) -> None:
    file = tmp_path / "token"
    file.write_text("from-file\n")

    def sent(url: str) -> str | None:
        with ScriptedAgent(lambda query: Reply([entry(1)])) as agent:
            authority = url.replace("AGENT", f"127.0.0.1:{agent.port}")
            with watching(open_discovery(authority), service) as seen:
                seen.expect(1)
            assert not any("token" in query for query in agent.queries)
            return agent.headers[0].get("x-consul-token")

    assert sent("consul://AGENT") is None
    assert sent(f"consul://AGENT?token_file={file}") == "from-file"
    monkeypatch.setenv("CONSUL_HTTP_TOKEN_FILE", str(file))
    assert sent("consul://AGENT") == "from-file"
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "from-variable")
    assert sent("consul://AGENT") == "from-variable"
    assert sent(f"consul://AGENT?token_file={file}") == "from-file"
    assert sent("consul://AGENT?token=explicit") == "explicit"


def test_token_of_the_users_client(service: str) -> None:
    with ScriptedAgent(lambda query: Reply([entry(1)])) as agent:
        client = consul_module.Consul(host="127.0.0.1", port=agent.port, token="from-client")
        with watching(ConsulDiscovery(client=client), service) as seen:
            seen.expect(1)
        with watching(ConsulDiscovery(client=client, token="explicit"), service) as seen:
            seen.expect(1)
        assert {headers["x-consul-token"] for headers in agent.headers} == {"from-client", "explicit"}
        assert not any("token" in query for query in agent.queries)


def test_what_an_instance_says(consul: ConsulServer, service: str) -> None:
    put(
        consul,
        service,
        1,
        Tags=["zone=old", "blue"],
        Meta={"zone": "a", "version": "7", "secure": "true", "team": "x"},
        Weights={"Passing": 5, "Warning": 1},
    )
    put(consul, service, 2, Tags=["zone=b"], Address="")
    with watching(open_discovery(consul.url), service) as seen:
        seen.expect(1, 2)
        first, second = sorted(seen.endpoints or (), key=lambda endpoint: endpoint.port)
    assert (first.host, first.zone, first.version, first.secure, first.weight) == ("10.0.0.1", "a", "7", True, 5.0)
    assert dict(first.metadata) == {"team": "x", "tags": "zone=old,blue"}
    assert first.id == f"{consul.node}/{service}-1"
    assert (second.host, second.zone, second.weight, second.secure) == ("127.0.0.1", "b", 1.0, False)


def test_only_instances_that_pass(consul: ConsulServer, service: str) -> None:
    check = {"CheckID": service, "TTL": "60s", "Status": "passing"}
    put(consul, service, 1)
    put(consul, service, 2, Check=check)
    with watching(open_discovery(consul.url), service) as seen:
        seen.expect(1, 2)
        for status in ("warn", "fail"):
            consul.request("PUT", f"/v1/agent/check/{status}/{service}")
            seen.expect(1)
            consul.request("PUT", f"/v1/agent/check/pass/{service}")
            seen.expect(1, 2)


def test_only_instances_with_the_tag(consul: ConsulServer, service: str) -> None:
    put(consul, service, 1, Tags=["v1"])
    put(consul, service, 2, Tags=["v2"])
    with watching(open_discovery(f"{consul.url}?tag=v2"), service) as seen:
        seen.expect(2)


def test_name_with_a_slash(consul: ConsulServer, service: str) -> None:
    name = f"{service}/a b?c"
    put(consul, name, 1)
    with watching(open_discovery(consul.url), name) as seen:
        seen.expect(1)


def test_other_services_do_not_delay_news(consul: ConsulServer, service: str) -> None:
    with watching(open_discovery(consul.url), service) as seen:
        seen.expect()
        # a service that does not exist is woken by all of these
        for port in range(1, 40):
            put(consul, f"{service}-other", port)
        put(consul, service, 1)
        seen.expect(1, timeout=10.0)


def test_client_of_the_user(consul: ConsulServer, service: str) -> None:
    client = consul_module.Consul(host="127.0.0.1", port=consul.port)
    assert client.agent.service.register(service, service_id=f"{service}-1", address="10.0.0.1", port=1)
    with watching(ConsulDiscovery(client=client), service) as seen:
        seen.expect(1)
        assert client.agent.service.register(service, service_id=f"{service}-2", address="10.0.0.1", port=2)
        seen.expect(1, 2)
    delivered = seen.ports
    drop(consul, service, 2)
    wait_until(lambda: len(client.health.service(service)[1]) == 1, what="it is gone")
    assert seen.ports == delivered  # the query may go on in the user's client, but nobody hears of it


def test_the_environment_does_not_overrule_an_address(
    consul: ConsulServer, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(consul, service, 1)
    monkeypatch.setenv("CONSUL_HTTP_ADDR", f"127.0.0.1:{free_ports(1)[0]}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_ports(1)[0]}")
    with watching(open_discovery(consul.url), service) as seen:
        seen.expect(1)


def test_closing_ends_the_query(consul: ConsulServer, service: str) -> None:
    def threads() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name.startswith("clientlb-consul-")}

    before = threads()
    with watching(open_discovery(consul.url), service) as seen:
        seen.expect()
        assert len(threads() - before) == 1
    wait_until(lambda: not threads() - before, what="the thread ended")


def test_fork(consul: ConsulServer, service: str) -> None:
    put(consul, service, 1)
    program = run_forking(consul.url, service)
    try:
        assert program.stdout is not None
        lines = iter(program.stdout.readline, "")
        assert next(lines).split() == ["child", "1"]
        assert next(lines).split() == ["parent", "0"]
        put(consul, service, 2)  # the child closed everything it had; the parent's watch is alive
        assert next(lines).split() == ["parent", "1", "2"]
    finally:
        program.kill()
        program.communicate()


def test_after_close(consul: ConsulServer, service: str) -> None:
    discovery = open_discovery(consul.url)
    resolver = discovery.resolver(service)
    discovery.close()
    with pytest.raises(ClosedError):
        resolver.start(Watched())
    with pytest.raises(ClosedError):
        discovery.resolver(service)


BAD = {
    "port-0": entry(0, id="port-0"),
    "port-70000": entry(70000, id="port-70000"),
    "port-text": entry("http", id="port-text"),
    "host": entry(80, id="host", address="10.0.0.1/evil"),
    "object": entry(80, id="object", address={"a": 1}),
    "weight": entry(80, id="weight", Meta={"weight": "-1"}),
    "huge": entry(80, id="huge", Meta={"k": "x" * 1_000_000}),
    "no-service": {"Node": {"Node": "no-service"}, "Service": [], "Checks": []},
}


def test_bad_instances_among_good_ones(service: str, caplog: pytest.LogCaptureFixture) -> None:
    entries: list[Any] = [entry(1, id="good1"), *BAD.values(), None, 7, entry(2, id="good2")]
    with (
        ScriptedAgent(lambda query: Reply(entries)) as agent,
        caplog.at_level(logging.WARNING, "clientlb"),
        watching(open_discovery(agent.url), service) as seen,
    ):
        seen.expect(1, 2)
        wait_until(lambda: len(agent.queries) > 2, what="it is read again")
        assert not seen.errors
    for name in BAD:
        assert sum(f"/{name}" in text or f"'{name}/" in text for text in caplog.messages) == 1, name


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (Reply(status=403, body=b"Permission denied"), "403: Permission denied"),
        (Reply(status=500, body=b"No cluster leader"), "500: No cluster leader"),
        (Reply(status=302, headers={"Location": "http://127.0.0.1:1/"}), "302"),
        (Reply(body=b"<html>"), "not JSON"),
        (Reply(body=b"\xff\xfe["), "not JSON"),
        (Reply({"a": 1}), "a list was expected"),
        (Reply(index=None), "X-Consul-Index"),
        (Reply(headers={"X-Consul-Results-Filtered-By-ACLs": "true"}), "service:read and node:read"),
    ],
)
def test_bad_answers_keep_the_list(service: str, reply: Reply, problem: str) -> None:
    answers = [Reply([entry(1)], index=5), reply, reply]

    def script(query: dict[str, str]) -> Reply:
        return answers.pop(0) if answers else Reply([entry(1), entry(2, id="two")], index=6)

    with ScriptedAgent(script) as agent, watching(open_discovery(agent.url), service) as seen:
        message = seen.expect_error(problem)
        assert str(agent.port) in message
        assert service in message
        seen.expect(1, 2)
        assert all(endpoints for endpoints in seen.updates)
        # after an error: answer now
        assert [query["index"] for query in agent.queries[:4]] == ["0", "5", "0", "0"]


def test_maintenance(consul: ConsulServer, service: str) -> None:
    put(consul, service, 1, 2)
    with watching(open_discovery(consul.url), service) as seen:
        seen.expect(1, 2)
        consul.request("PUT", f"/v1/agent/service/maintenance/{service}-1?enable=true")
        seen.expect(2)
        consul.request("PUT", f"/v1/agent/service/maintenance/{service}-1?enable=false")
        seen.expect(1, 2)


def test_index_that_goes_back(service: str) -> None:
    indexes = iter([7, 9, 3, 3, 3, 4])

    def script(query: dict[str, str]) -> Reply:
        return Reply([entry(1)], index=next(indexes, 4))

    with ScriptedAgent(script) as agent, watching(open_discovery(agent.url), service):
        wait_until(lambda: len(agent.queries) >= 7, what="seven questions")
    assert [query["index"] for query in agent.queries[:7]] == ["0", "7", "9", "0", "0", "3", "4"]
    assert ["consistent" in query for query in agent.queries[:5]] == [False, False, False, True, False]


STILL_READING_ITS_LOG = {
    "nothing": Reply([], index=1, headers={"X-Consul-LastContact": "0", "X-Consul-KnownLeader": "true"}),
    "a part": Reply([entry(1)], index=9, headers={"X-Consul-LastContact": "0", "X-Consul-KnownLeader": "true"}),
}


@pytest.mark.parametrize("early", STILL_READING_ITS_LOG.values(), ids=STILL_READING_ITS_LOG)
@pytest.mark.parametrize("options", ["", "?consistency=default", "?consistency=cached"])
def test_a_server_that_reads_its_log_is_not_believed(service: str, early: Reply, options: str) -> None:
    """A restarted leader answers before it has its state again; only a consistent query waits for that."""
    down, restarted = Reply(status=500), threading.Event()

    def script(query: dict[str, str]) -> Reply:
        if "consistent" in query:
            restarted.set()
            return Reply([entry(1), entry(2, id="two"), entry(3, id="three")], index=11)
        if restarted.is_set():
            return Reply([entry(1), entry(2, id="two"), entry(4, id="four")], index=12)
        return answers.pop(0) if len(answers) > 1 else answers[0]

    answers = [Reply([entry(1), entry(2, id="two")], index=10), down, early]
    with ScriptedAgent(script) as agent, watching(open_discovery(f"{agent.url}{options}"), service) as seen:
        seen.expect(1, 2, 4)
        assert [len(update) for update in seen.updates] == [2, 3, 3]


def test_what_the_leader_confirms_is_the_truth(service: str) -> None:
    """Servers that lost their data, or got an old copy of it, go back for good."""

    def script(query: dict[str, str]) -> Reply:
        return answers.pop(0) if len(answers) > 1 else answers[0]

    answers = [Reply([entry(1), entry(2, id="two")], index=10), Reply(index=3), Reply(index=3), Reply(index=4)]
    with ScriptedAgent(script) as agent, watching(open_discovery(agent.url), service) as seen:
        seen.expect()
        wait_until(lambda: len(agent.queries) >= 6, what="it goes on")
        assert ["consistent" in query for query in agent.queries[:6]] == [False, False, True, False, False, False]
        assert not seen.errors


@pytest.mark.parametrize("known", [True, False])
def test_doubts_that_nobody_settles_are_errors(service: str, known: bool) -> None:
    """Without a leader, a list that is known stays; if none is, an empty one is no better than none."""

    def script(query: dict[str, str]) -> Reply:
        if "consistent" in query:
            return Reply(status=500, body=b"No cluster leader")
        return answers.pop(0) if len(answers) > 1 else answers[0]

    answers = [*([Reply([entry(1)], index=10)] if known else []), Reply(index=1)]
    with ScriptedAgent(script) as agent, watching(open_discovery(agent.url), service) as seen:
        problem = "went back from index 10 to 1" if known else "the first answer has no instances"
        seen.expect_error(problem, "500: No cluster leader")
        assert seen.ports == ({1} if known else None)


def behind(seconds: float) -> dict[str, str]:
    return {"X-Consul-LastContact": str(round(seconds * 1000)), "X-Consul-KnownLeader": "false"}


def test_a_server_that_is_too_far_behind_is_not_believed(service: str) -> None:
    def script(query: dict[str, str]) -> Reply:
        if "stale" in query:
            return Reply([entry(1)], headers=behind(11.0))
        return Reply([entry(2)])

    with ScriptedAgent(script) as agent, watching(open_discovery(agent.url), service) as seen:
        seen.expect(2)
        wait_until(lambda: len(agent.queries) > 3, what="the leader is asked from now on")
        assert not seen.errors
        assert ["stale" in query for query in agent.queries[:4]] == [True, False, False, False]


@pytest.mark.parametrize(
    ("options", "old"), [("", behind(20.0)), ("?max_stale=1", behind(20.0)), ("?consistency=cached", {"Age": "20"})]
)
def test_servers_without_a_leader(service: str, options: str, old: dict[str, str]) -> None:
    """While nobody has the leader's word, an old list is better than none, but no reason to change one."""
    leaderless = threading.Event()
    leaderless.set()

    def script(query: dict[str, str]) -> Reply:
        if not leaderless.is_set():
            return Reply([entry(2)])
        if query.keys() & {"stale", "cached"}:
            return Reply([entry(1)], headers=old)
        return Reply(status=500, body=b"No cluster leader")

    with ScriptedAgent(script) as agent, watching(open_discovery(f"{agent.url}{options}"), service) as seen:
        seen.expect(1)
        seen.expect_error("lost their leader 20 s ago", "500: No cluster leader")
        leaderless.clear()
        seen.expect(2)
        errors = len(seen.errors)
        leaderless.set()
        wait_until(lambda: len(seen.errors) > errors, what="an error")
        assert seen.ports == {2}


def test_nodes_that_are_lost(consul: ConsulServer, service: str, caplog: pytest.LogCaptureFixture) -> None:
    """The check of the instance passes, but nobody has heard from its node."""
    for port, status in ((1, "passing"), (2, "critical")):
        node = f"{service}-node{port}"
        checks = [
            {"Node": node, "CheckID": "serfHealth", "Status": status},
            {"Node": node, "CheckID": f"check{port}", "ServiceID": f"i{port}", "Status": "passing"},
        ]
        instance = {"ID": f"i{port}", "Service": service, "Port": port}
        consul.request(
            "PUT", "/v1/catalog/register", {"Node": node, "Address": "10.0.0.1", "Service": instance, "Checks": checks}
        )
    discovery = ConsulDiscovery("127.0.0.1", consul.port)
    resolver, seen = discovery.resolver(service), Watched()
    with caplog.at_level(logging.WARNING, "clientlb"):
        resolver.start(seen)
        seen.expect(1)
    assert resolver.node_lost == 1
    assert resolver.remarks() == ["1 instance left out: the cluster has lost the node"]
    assert "1 instances pass their checks, but their nodes are lost" in caplog.text
    discovery.close()


def test_warnings_with_their_weight(consul: ConsulServer, service: str) -> None:
    check = {"CheckID": service, "TTL": "60s", "Status": "warning"}
    put(consul, service, 1, Weights={"Passing": 10, "Warning": 2}, Check=check)
    put(consul, service, 2)
    with watching(open_discovery(f"{consul.url}?health=passing+warning"), service) as seen:
        seen.expect(1, 2)
        assert {endpoint.port: endpoint.weight for endpoint in seen.endpoints or ()} == {1: 2.0, 2: 1.0}


def test_several_tags_and_a_filter(consul: ConsulServer, service: str) -> None:
    put(consul, service, 1, Tags=["a", "b"], Meta={"stage": "live"})
    put(consul, service, 2, Tags=["a"])
    put(consul, service, 3, Tags=["a", "b"])
    with watching(open_discovery(f"{consul.url}?tag=a,b&near=_agent"), service) as seen:
        seen.expect(1, 3)
    with watching(ConsulDiscovery("127.0.0.1", consul.port, filter='Service.Meta.stage == "live"'), service) as seen:
        seen.expect(1)


def test_only_some_are_hidden_from_the_token(service: str, caplog: pytest.LogCaptureFixture) -> None:
    reply = Reply([entry(1)], headers={"X-Consul-Results-Filtered-By-ACLs": "true"})
    with caplog.at_level(logging.WARNING, "clientlb"):
        with ScriptedAgent(lambda query: reply) as agent, watching(open_discovery(agent.url), service) as seen:
            seen.expect(1)
            wait_until(lambda: len(agent.queries) > 2, what="it is read again")
        with ScriptedAgent(lambda query: Reply()) as agent:
            with watching(open_discovery(f"{agent.url}?token=s3cret"), service) as seen:
                seen.expect()
            with watching(open_discovery(agent.url), service) as seen:
                seen.expect()
    hints = [text for text in caplog.messages if "node:read" in text]
    assert len(hints) == 2
    assert "may not see all" in hints[0]
    assert "look at the token" in hints[1]


def test_unreachable(service: str) -> None:
    port = free_ports(1)[0]
    with watching(open_discovery(f"consul://127.0.0.1:{port}"), service) as seen:
        seen.expect_error(f"127.0.0.1:{port}", service, "Connection refused")
        assert seen.ports is None


def test_agent_that_never_answers(service: str) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        watching(open_discovery(f"consul://127.0.0.1:{silent.getsockname()[1]}"), service) as seen,
    ):
        silent.settimeout(10)
        connection, _ = silent.accept()
        with connection:
            assert service.encode() in connection.recv(65536)
            assert seen.ports is None
    # that closing is quick, with the question unanswered, is what `watching` asserts


@contextmanager
def agent_that_shakes_no_hands(watches: int) -> Iterator[tuple[ConsulDiscovery, threading.Event]]:
    """A discovery over TLS whose agent accepts `watches` connections (then the event is set) and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent, ExitStack() as connections:
        silent.settimeout(10)
        port = silent.getsockname()[1]
        discovery, all_wait = ConsulDiscovery("127.0.0.1", port, tls=True), threading.Event()

        def accept() -> None:
            for _ in range(watches):
                connection, _address = silent.accept()
                connections.enter_context(connection)
                connection.recv(1)  # the greeting has begun: the watch waits for our part of it
            all_wait.set()

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield discovery, all_wait
        finally:
            discovery.close()
            accepting.join(15)


def test_closing_many_watches_takes_no_longer_than_closing_one(service: str) -> None:
    """A connection in the middle of a handshake cannot be ended: each of these threads outlives the patience."""
    watches = 16
    with agent_that_shakes_no_hands(watches) as (discovery, all_wait):
        resolvers = [discovery.resolver(f"{service}-{number}") for number in range(watches)]
        for resolver in resolvers:
            resolver.start(Watched())
        assert all_wait.wait(10)
        started = time.monotonic()
        discovery.close()
        assert time.monotonic() - started < QUICK, "not half a second for each"
        seconds = []
        for resolver in resolvers:
            started = time.monotonic()
            resolver.close()
            seconds.append(time.monotonic() - started)
        assert min(seconds) < 0.4, "the second time there is nothing to wait for"


def test_closing_while_all_listeners_are_busy(service: str) -> None:
    go_on, busy = threading.Event(), threading.Semaphore(0)
    watches = 16

    class Busy(Watched):
        def update(self, endpoints: Iterable[Endpoint]) -> None:
            busy.release()
            go_on.wait(30)

    with ScriptedAgent(lambda query: Reply([entry(1)])) as agent:
        discovery = open_discovery(agent.url)
        for number in range(watches):
            discovery.resolver(f"{service}-{number}").start(Busy())
        try:
            assert all(busy.acquire(timeout=10) for _ in range(watches))
            started = time.monotonic()
            discovery.close()
            assert time.monotonic() - started < QUICK, "not half a second for each"
        finally:
            go_on.set()


def test_kill_and_restart(own_consul: ConsulServer, service: str) -> None:
    put(own_consul, service, 1, 2)
    with watching(open_discovery(own_consul.url), service) as seen:
        seen.expect(1, 2)
        own_consul.kill()
        seen.expect_error("failed")
        assert seen.ports == {1, 2}
        own_consul.start()
        put(own_consul, service, 3)
        seen.expect(1, 2, 3)
        assert all(endpoints for endpoints in seen.updates)


def test_restart_with_nothing(service: str) -> None:
    """The index of the new agent is below ours: a change is seen at once all the same. The truth is told as it is."""
    with running(ConsulServer(dev=True)) as server:
        put(server, service, 1, 2, 3)
        for port in range(100, 120):
            put(server, f"{service}-other", port)
        with watching(open_discovery(server.url), service) as seen:
            seen.expect(1, 2, 3)
            server.restart()
            put(server, service, 4)
            seen.expect(4, timeout=20.0)


def test_an_agent_that_hangs(own_consul: ConsulServer, service: str) -> None:
    put(own_consul, service, 1, 2)
    with watching(open_discovery(f"{own_consul.url}?wait=0.5&patience=1"), service) as seen:
        seen.expect(1, 2)
        own_consul.signal(signal.SIGSTOP)
        try:
            seen.expect_error("no answer within")
            assert seen.ports == {1, 2}
        finally:
            own_consul.signal(signal.SIGCONT)
        put(own_consul, service, 3)
        seen.expect(1, 2, 3)
        assert all(endpoints for endpoints in seen.updates)


def test_leader_killed_and_quorum_lost(service: str) -> None:
    """An election is no outage. Without a quorum nobody notices for `max_stale` seconds; then it is an error."""
    with running(ConsulCluster(extra={"performance": {"rpc_hold_timeout": "1s"}})) as cluster:
        leader = cluster.leader()
        survivor, other = (server for server in cluster.servers if server is not leader)
        put(survivor, service, 1, 2)
        patient = ConsulDiscovery("127.0.0.1", survivor.port)
        with (
            watching(open_discovery(f"{survivor.url}?max_stale=1&wait=1"), service) as seen,
            watching(patient, service) as unaware,
        ):
            for each in (seen, unaware):
                each.expect(1, 2)
            leader.kill()
            put(survivor, service, 3)  # its agent takes it, and the catalog has it when there is a leader again
            unaware.expect(1, 2, 3, timeout=30.0)
            assert not unaware.errors
            seen.expect(1, 2, 3, timeout=30.0)
            errors = len(seen.errors)
            other.kill()
            wait_until(lambda: len(seen.errors) > errors, 30.0, "the loss of the quorum is an error")
            seen.expect_error("lost their leader")
            assert seen.ports == {1, 2, 3}
            leader.launch()
            other.launch()
            put(survivor, service, 4)
            seen.expect(1, 2, 3, 4, timeout=30.0)
            assert all(endpoints for endpoints in seen.updates)


def test_access_control(service: str) -> None:
    rules = {"enabled": True, "default_policy": "deny", "tokens": {"master": "s3cret"}}
    server = ConsulServer(dev=True, extra={"primary_datacenter": "dc1", "acl": rules})
    try:
        server.launch()
        wait_until(lambda: _registers(server, service), 30, "the server takes the token")
        with watching(open_discovery(f"{server.url}?token=s3cret"), service) as seen:
            seen.expect(1)
        with watching(open_discovery(f"{server.url}?token=unknown"), service) as seen:
            message = seen.expect_error("403")
            assert "unknown" not in message
    finally:
        server.stop()


def _registers(server: ConsulServer, service: str) -> bool:
    try:
        put(server, service, 1, token="s3cret")
        found = server.request("GET", f"/v1/health/service/{service}", token="s3cret")
    except OSError:
        return False
    return bool(found)


def test_churn(consul_cluster: ConsulCluster, service: str) -> None:
    """A small one; the large ones are in the soak."""
    churn(consul_cluster, service, seed=7, instances=60, kills=1, pause=2.0)
