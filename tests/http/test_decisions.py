"""What the shell decides without any I/O: which hosts are services, what an answer means, what can be repeated."""

from __future__ import annotations

import io
import subprocess
import sys
from email.utils import formatdate
from typing import Any

import httpx
import httpx2
import pytest

import clientlb
from clientlb._http.hosts import host_rule
from clientlb._http.links import Links
from clientlb._http.message import EndpointURL, copy_to, is_idempotent, is_replayable
from clientlb._http.place import Places, below
from clientlb._http.verdict import LONGEST_RETRY_AFTER, ErrorVerdicts, of_status, retry_after
from clientlb.balancer import Balancer
from clientlb.outcome import Outcome
from clientlb.testing import ManualDiscovery

FLAVOURS = [httpx, httpx2]
IDEMPOTENT = {"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"}


def services(**options: clientlb.Options) -> clientlb.Services:
    return clientlb.Services(ManualDiscovery(), options=options or None)


@pytest.mark.parametrize("library", FLAVOURS)
@pytest.mark.parametrize(
    ("url", "service"),
    [
        ("http://orders/", "orders"),
        ("http://ORDERS:8080/", "orders"),
        ("http://order_service/", "order_service"),
        ("http://order-service/", "order-service"),
        ("http://bücher/", "bücher"),
        ("http://orders7/", "orders7"),
        ("http://localhost/", None),
        ("http://localhost:8080/", None),
        ("http://127.0.0.1/", None),
        ("http://2130706433/", None),
        ("http://[::1]/", None),
        ("http://[::ffff:10.0.0.1]/", None),
        ("http://example.com/", None),
        ("http://orders.local/", None),
        ("http://orders./", None),
        ("http://a b/", None),
        ("http://orders%20/", None),
        ("/relative", None),
    ],
)
def test_which_hosts_look_like_services(library: Any, url: str, service: str | None) -> None:
    assert host_rule(services(), None)(library.URL(url).host) == service


def test_a_name_with_options_is_a_service_however_it_looks() -> None:
    rule = host_rule(services(**{"orders.v2": clientlb.Options(), "Users": clientlb.Options()}), None)
    assert rule("orders.v2") == "orders.v2"
    assert rule("users") == "Users"
    assert rule("orders") == "orders"
    assert rule("example.com") is None


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ({"orders", "Api.Example.com"}, {"orders": "orders", "api.example.com": "Api.Example.com", "users": None}),
        (["orders"], {"orders": "orders", "users": None}),
        ({"api.example.com": "orders"}, {"api.example.com": "orders", "orders": None}),
        (lambda host: host.endswith(".mesh"), {"orders.mesh": "orders.mesh", "orders": None}),
        ((), {"orders": None, "users": None}),
    ],
)
def test_hosts_decides_alone(hosts: Any, expected: dict[str, str | None]) -> None:
    rule = host_rule(services(users=clientlb.Options()), hosts)
    assert {host: rule(host) for host in expected} == expected


@pytest.mark.parametrize("hosts", ["orders", b"orders", 7])
def test_hosts_of_no_known_form(hosts: Any) -> None:
    with pytest.raises(clientlb.ConfigurationError, match="give a set of names"):
        host_rule(services(), hosts)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        (" 3 ", 3.0),
        ("-3", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("²", None),
        (formatdate(1010.0, usegmt=True), 10.0),
        (formatdate(900.0, usegmt=True), 0.0),
        ("Fri, 99 Foo 9999 99:99:99 GMT", None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, now=1000.0) == seconds


@pytest.mark.parametrize(
    ("status", "asked", "outcome", "wait"),
    [
        (200, None, Outcome.SUCCESS, None),
        (404, "1", Outcome.SUCCESS, None),
        (429, None, Outcome.RETRYABLE, None),
        (503, "1", Outcome.RETRYABLE, 1.0),
        (503, str(LONGEST_RETRY_AFTER + 1), Outcome.RETRYABLE, None),
        (503, str(int(LONGEST_RETRY_AFTER) + 1), Outcome.FAILURE, None),
        (500, None, Outcome.FAILURE, None),
        (501, None, Outcome.FAILURE, None),
    ],
)
def test_what_a_status_means(status: int, asked: str | None, outcome: Outcome, wait: float | None) -> None:
    headers = {} if asked is None else {"retry-after": asked}
    verdict = of_status(status, headers, frozenset({429, 502, 503, 504}), now=1000.0)
    assert (verdict.outcome, verdict.retry_after, verdict.sent) == (outcome, wait, True)


@pytest.mark.parametrize("library", FLAVOURS)
@pytest.mark.parametrize(
    ("name", "outcome", "sent"),
    [
        ("ConnectError", Outcome.RETRYABLE, False),
        ("ConnectTimeout", Outcome.RETRYABLE, False),
        ("ReadTimeout", Outcome.RETRYABLE, True),
        ("WriteTimeout", Outcome.RETRYABLE, True),
        ("ReadError", Outcome.RETRYABLE, True),
        ("WriteError", Outcome.RETRYABLE, True),
        ("CloseError", Outcome.RETRYABLE, True),
        ("RemoteProtocolError", Outcome.RETRYABLE, True),
        ("ProxyError", Outcome.RETRYABLE, True),
        ("PoolTimeout", Outcome.RETRYABLE, False),
        ("LocalProtocolError", Outcome.IGNORED, True),
        ("UnsupportedProtocol", Outcome.IGNORED, True),
        ("DecodingError", Outcome.IGNORED, True),
    ],
)
def test_what_an_exception_means(library: Any, name: str, outcome: Outcome, sent: bool) -> None:
    verdict = ErrorVerdicts(library).of(getattr(library, name)("x"))
    assert (verdict.outcome, verdict.reason, verdict.sent) == (outcome, name, sent)
    other = httpx2 if library is httpx else httpx
    assert ErrorVerdicts(library).of(getattr(other, name)("x")).outcome is Outcome.IGNORED


@pytest.mark.parametrize("library", FLAVOURS)
@pytest.mark.parametrize(
    ("arguments", "replayable"),
    [
        ({}, True),
        ({"content": b"bytes"}, True),
        ({"content": "text"}, True),
        ({"json": {"a": 1}}, True),
        ({"data": {"a": "1"}}, True),
        ({"files": {"f": b"bytes"}}, True),
        ({"files": {"f": io.BytesIO(b"seekable")}, "data": {"a": "1"}}, True),
        ({"content": iter([b"a"])}, False),
        ({"content": [b"a", b"b"]}, False),
        ({"content": io.BytesIO(b"read to its end")}, False),
    ],
)
def test_which_bodies_can_be_sent_twice(library: Any, arguments: dict[str, Any], replayable: bool) -> None:
    request = library.Request("POST", "http://orders/", **arguments)
    assert is_replayable(request.stream, library.ByteStream) is replayable


def test_a_form_with_a_pipe_cannot_be_sent_twice() -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    request = httpx.Request("POST", "http://orders/", files={"f": Pipe(b"once")})
    assert not is_replayable(request.stream, httpx.ByteStream)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "POST", "PATCH", "LOCK"])
def test_idempotency_is_the_methods_the_keys_or_the_calls(method: str) -> None:
    retry = clientlb.RetryOptions()
    plain = httpx.Request(method, "http://orders/")
    keyed = httpx.Request(method, "http://orders/", headers={"idempotency-key": "7"})
    by_method = method in IDEMPOTENT
    assert is_idempotent(plain, clientlb.CallOptions(), retry) is by_method
    assert is_idempotent(keyed, clientlb.CallOptions(), retry) is True
    assert is_idempotent(keyed, clientlb.CallOptions(idempotent=False), retry) is False
    assert is_idempotent(plain, clientlb.CallOptions(idempotent=True), retry) is True
    assert is_idempotent(plain, clientlb.CallOptions(), clientlb.RetryOptions(methods=frozenset())) is False


@pytest.mark.parametrize(
    ("base_path", "target", "expected"),
    [
        (b"/api", b"/v1?q=1", b"/api/v1?q=1"),
        (b"/api", b"/", b"/api/"),
        (b"/api", b"/?q=/api/", b"/api/?q=/api/"),
        (b"/api", b"/api/v1", b"/api/v1"),
        (b"/api", b"/api?q", b"/api?q"),
        (b"/api", b"/apis", b"/api/apis"),
        (b"/api", b"//api", b"/api//api"),
        (b"/api", b"*", b"*"),
    ],
)
def test_what_lies_below_a_base_path(base_path: bytes, target: bytes, expected: bytes) -> None:
    assert below(base_path, target) == expected


@pytest.mark.parametrize(("given", "expected"), [(None, b""), ("", b""), ("/", b""), ("/a", b"/a"), ("/a/b/", b"/a/b")])
def test_base_paths(given: str | None, expected: bytes) -> None:
    assert Places(None, lambda endpoint: given).of(clientlb.Endpoint("h", 1)).base_path == expected


@pytest.mark.parametrize("given", ["api", "/a?b", "/a#b", "/a b", "/a\r\nb", "/ü", "http://x/"])
def test_base_paths_that_are_none(given: str) -> None:
    with pytest.raises(clientlb.ConfigurationError, match="begins with a slash"):
        Places(None, lambda endpoint: given).of(clientlb.Endpoint("h", 1))


@pytest.mark.parametrize("library", FLAVOURS)
def test_the_copy_of_a_request_leaves_the_original_alone(library: Any) -> None:
    url_class: type[EndpointURL] = type("EndpointURL", (EndpointURL, library.URL), {})
    request = library.Request("GET", "https://user:pw@orders:1/a%20b?c=d#e", headers={"A": "b"}, extensions={"x": 1})
    address = {"raw_host": b"10.0.0.1", "port": 8080}
    copy = copy_to(request, url_class, b"http", address, {"extensions": {"y": 2}})
    url = copy.url
    assert (url.raw_scheme, url.raw_host, url.port, url.raw_path) == (b"http", b"10.0.0.1", 8080, b"/a%20b?c=d")
    assert (url.scheme, url.host, url.path, url.query) == ("http", "10.0.0.1", "/a b", b"c=d")
    assert "http://user:" in str(url)
    assert "@10.0.0.1:8080/a%20b?c=d#e" in str(url)
    assert url == library.URL("http://user:pw@10.0.0.1:8080/a%20b?c=d#e")
    assert isinstance(url, library.URL)
    assert not hasattr(url, "no_such_thing")
    assert copy.headers is request.headers
    assert copy.extensions == {"y": 2}
    assert request.url == library.URL("https://user:pw@orders:1/a%20b?c=d#e")
    assert request.extensions == {"x": 1}


@pytest.mark.parametrize("library", FLAVOURS)
def test_an_ipv6_endpoint_and_a_websocket_url(library: Any) -> None:
    url_class: type[EndpointURL] = type("EndpointURL", (EndpointURL, library.URL), {})
    request = library.Request("GET", "ws://orders/chat")
    copy = copy_to(request, url_class, b"ws", {"raw_host": b"::1", "port": 80}, {})
    assert (copy.url.raw_scheme, copy.url.raw_host) == (b"ws", b"::1")
    assert copy.url.host == "::1"


class Fleet:
    """Links whose transports are numbers, over a balancer that the test feeds."""

    def __init__(self, max_idle: int = 100) -> None:
        self.balancer = Balancer("orders", clientlb.Options(guard=clientlb.GuardOptions(keep_ratio=0)))
        self.made: list[clientlb.Endpoint] = []
        self.links: Links[int] = Links(self._make, lambda: 1000, max_idle)

    def _make(self, endpoint: clientlb.Endpoint, place: object) -> int:
        self.made.append(endpoint)
        return endpoint.port

    def update(self, *ports: int) -> None:
        self.balancer.update([clientlb.Endpoint("h", port) for port in ports])

    def take(self, port: int, server_name: str | None = None) -> Any:
        return self.links.take(self.balancer, clientlb.Endpoint("h", port), server_name)

    def use(self, port: int) -> None:
        self.links.give_back(self.take(port))

    @property
    def retired(self) -> list[int]:
        return list(self.links.retired())


def test_a_link_is_shared_by_all_calls_to_an_endpoint() -> None:
    fleet = Fleet()
    fleet.update(1, 2)
    assert fleet.take(1) is fleet.take(1)
    assert fleet.take(1) is not fleet.take(2)
    assert fleet.take(1) is not fleet.take(1, "orders")
    assert fleet.take(1, "payments") is not fleet.take(1, "orders")
    assert len(fleet.made) == 4
    assert fleet.retired == []


def test_a_link_is_retired_when_its_endpoint_has_left_and_its_last_call_ended() -> None:
    fleet = Fleet()
    fleet.update(1, 2, 3)
    busy, again = fleet.take(1), fleet.take(1)
    fleet.use(2)
    fleet.update(3)
    assert fleet.retired == []  # it is noticed by whoever is told of it, or by the next call
    assert fleet.links.endpoints_changed("orders")
    assert fleet.retired == [2]
    assert not fleet.links.endpoints_changed("payments")
    fleet.use(3)
    fleet.links.give_back(busy)
    assert fleet.retired == []
    fleet.links.give_back(again)
    assert fleet.retired == [1]
    assert len(fleet.links) == 1


def test_an_endpoint_that_comes_back_gets_a_new_link() -> None:
    fleet = Fleet()
    fleet.update(1, 2)
    old = fleet.take(1)
    fleet.update(2)
    fleet.use(2)
    fleet.update(1, 2)
    assert fleet.take(1) is not old
    fleet.links.give_back(old)
    assert fleet.retired == [1]


def test_other_services_keep_their_links() -> None:
    fleet = Fleet()
    fleet.update(1)
    other = Balancer("payments")
    other.update([clientlb.Endpoint("h", 9)])
    fleet.links.give_back(fleet.links.take(other, clientlb.Endpoint("h", 9), None))
    fleet.use(1)
    fleet.update(2)
    fleet.use(2)
    assert fleet.retired == [1]


def test_idle_links_beyond_the_limit_go_the_longest_idle_first() -> None:
    fleet = Fleet(max_idle=2)
    fleet.update(*range(1, 8))
    busy = fleet.take(7)
    for port in (1, 2, 3):
        fleet.use(port)
    fleet.use(1)
    assert fleet.retired == []
    fleet.use(4)
    assert fleet.retired == [2]
    fleet.use(5)
    assert fleet.retired == [3]
    fleet.links.give_back(busy)
    assert fleet.retired == []


def test_retire_all_takes_the_busy_and_the_ordinary_along() -> None:
    fleet = Fleet()
    fleet.update(1, 2)
    busy = fleet.take(1)
    fleet.use(2)
    assert fleet.links.ordinary == 1000
    fleet.links.retire_all()
    assert sorted(fleet.retired) == [1, 2, 1000]
    fleet.links.give_back(busy)
    assert fleet.retired == []


def test_each_flavour_imports_only_its_own_library() -> None:
    for ours, theirs in (("httpx", "httpx2"), ("httpx2", "httpx")):
        code = f"import sys, clientlb.{ours}; sys.exit({theirs!r} in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
