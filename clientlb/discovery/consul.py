"""Discovery from Consul: one thread per service asks `/v1/health/service/NAME` and waits for its answer to change.

A blocking query sends the index of the last answer and returns when there is a newer one, or after `wait`. The index
is a hint, not a version: it goes back when servers restart, and what an error carries is meaningless. Hence the rules
of `_next_index`, and index 0 (answer now) after every failure: with a stale index, a change would be seen only at the
end of the wait.
"""

from __future__ import annotations

import json
import threading
import time
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from clientlb.discovery._backoff import Backoff
from clientlb.discovery._consul_http import Answer, ConsulAddress, ConsulError, ConsulHTTP, path
from clientlb.discovery.base import Listener
from clientlb.discovery.decode import InstanceDecoder
from clientlb.discovery.feed import Feed
from clientlb.discovery.url import checked_seconds
from clientlb.errors import ClosedError, ConfigurationError, DiscoveryError

_MAX_WAIT = 600.0  # Consul's own limit
_GRACE = 10.0  # seconds that an answer may take beyond its wait: without a leader, a server tries for 7
_CLOSE_PATIENCE = 0.5
_GRACE_AFTER_OUTAGE = 10.0  # seconds; owners renew every third of their lease, which is as long as this by default
_FROM_TAGS = ("zone", "version", "secure", "weight")
_MAINTENANCE = ("_service_maintenance:", "_node_maintenance")  # checks that an operator's command adds
_NOTHING: Mapping[str, Any] = {}


class ConsulDiscovery:
    """The services that one Consul agent knows of. Only instances whose checks all pass get calls.

    What is not given comes from `CONSUL_HTTP_ADDR`, `CONSUL_HTTP_TOKEN`, `CONSUL_HTTP_TOKEN_FILE`,
    `CONSUL_HTTP_SSL` and `CONSUL_CACERT`, as for Consul's own tools.

    Args:
        host: The agent (default 127.0.0.1).
        port: Its HTTP port (default 8500).
        token: ACL token; it needs `service:read` and `node:read`. Without the second, Consul shows an empty list.
        token_file: File with the token.
        dc: Datacenter to ask for (default: the agent's own).
        tag: Only instances with this tag.
        tls: Speak HTTPS.
        ca_file: Certificates to trust.
        wait: Seconds after which a query without news returns (default 30): the longest that a change goes unseen
            if the agent forgot about the query.
        client: A `consul.Consul` object of python-consul or py-consul whose HTTP client is used instead of our own.
            A query that waits in it cannot be ended: its thread outlives `close()` by up to `wait`, in silence.

    Raises:
        ConfigurationError: An argument or a variable that cannot be right.
    """

    def __init__(
        self,
        host: str = "",
        port: int = 0,
        *,
        token: str | None = None,
        token_file: str | None = None,
        dc: str | None = None,
        tag: str | None = None,
        tls: bool | None = None,
        ca_file: str | None = None,
        wait: float = 30.0,
        client: Any = None,
    ) -> None:
        if checked_seconds("wait", wait) > _MAX_WAIT:
            raise ConfigurationError(f"wait is at most {_MAX_WAIT:g} seconds; not {wait!r}")
        if client is None:
            self._address = ConsulAddress(host, port, token, token_file, tls, ca_file)
        else:
            self._address = ConsulAddress.of_client(client, token, token_file)
        self._wait = wait
        self._parameters = {name: value for name, value in (("dc", dc), ("tag", tag)) if value}
        self._client = client
        self._closed = False
        self._resolvers: weakref.WeakSet[ConsulResolver] = weakref.WeakSet()

    @classmethod
    def from_url(cls, url: str) -> ConsulDiscovery:
        """Read `consul://[host[:port]][?dc=…&tag=…&token_file=…&token=…&tls=true&ca_file=…]`."""
        address, options = ConsulAddress.from_url(url, ("dc", "tag"))
        return cls(
            address.host,
            address.port,
            token=address.token,
            tls=address.tls,
            ca_file=address.ca_file,
            dc=options.get("dc"),
            tag=options.get("tag"),
        )

    def resolver(self, service: str) -> ConsulResolver:
        """Make the resolver of one service."""
        if not service:
            raise ConfigurationError("consul: the name of the service is empty")
        if self._closed:
            raise ClosedError(f"{self} is closed")
        resolver = ConsulResolver(service, self._address, self._parameters, self._wait, self._client)
        self._resolvers.add(resolver)
        return resolver

    def close(self) -> None:
        """Close the resolvers, and wait half a second for all of them together. Idempotent."""
        self._closed = True
        _close(list(self._resolvers))

    def __str__(self) -> str:
        return str(self._address)


class ConsulResolver:
    """Watches one service on a thread and a connection of its own."""

    def __init__(
        self, service: str, address: ConsulAddress, parameters: Mapping[str, str], wait: float, client: Any
    ) -> None:
        self._service = service
        self._address = address
        self._parameters = parameters
        self._wait = wait
        self._client = client
        self._closing = threading.Event()
        self._feed: Feed | None = None
        self._http: ConsulHTTP | None = None
        self._thread: threading.Thread | None = None

    def start(self, listener: Listener) -> None:
        """Begin to watch. Returns at once; raises ClosedError after `close`."""
        name = f"{self._service} in {self._address}"
        if self._closing.is_set():
            raise ClosedError(f"the watch of {name} is closed")
        self._feed = feed = Feed(listener, name)
        self._http = http = ConsulHTTP(self._address, self._client)
        decoder = InstanceDecoder(name)
        self._thread = threading.Thread(
            target=self._run, args=(http, feed, decoder), name=f"clientlb-consul-{self._service}", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop watching. Idempotent; nothing is delivered afterwards."""
        _close([self])

    def begin_close(self) -> bool:
        """Tell the thread to end, without waiting for it; False if it was told before."""
        if self._closing.is_set():
            return False
        self._closing.set()
        if self._feed is not None:
            self._feed.close(patience=0.0)
        if self._http is not None:
            self._http.close()
        return True

    def finish_close(self, deadline: float) -> None:
        """Wait for a delivery that is under way, and for the thread, until the monotonic clock says `deadline`."""
        if self._feed is not None:
            self._feed.close(patience=_until(deadline))
        if self._thread is not None and self._client is None and self._thread is not threading.current_thread():
            self._thread.join(_until(deadline))

    def _run(self, http: ConsulHTTP, feed: Feed, decoder: InstanceDecoder) -> None:
        backoff, pace, grace = Backoff(), _Pace(), _Grace()
        index = 0
        while not self._closing.is_set():
            try:
                answer = self._ask(http, index, grace.left(time.monotonic()))
                index = _next_index(index, answer)
                endpoints = decoder.decode_all(grace.alive(*_instances(answer), time.monotonic()))
            except Exception as error:  # whatever it is, the watch goes on
                index = 0
                grace.outage()
                reason = str(error) or type(error).__name__
                feed.error(DiscoveryError(f"{self._address}: asking for {self._service} failed: {reason}"))
                self._closing.wait(backoff.failed())
            else:
                backoff.succeeded()
                feed.update(endpoints)
                self._closing.wait(pace.pause(time.monotonic()))

    def _ask(self, http: ConsulHTTP, index: int, at_most: float | None) -> Answer:
        wait = self._wait if at_most is None else min(self._wait, at_most)
        # Consul adds up to a sixteenth to the wait, so that not all watches come back at once
        silence = _GRACE + (wait * 17 / 16 if index else 0.0)
        question = {"index": str(index), "wait": f"{wait * 1000:.0f}ms", **self._parameters}
        return http.get(path("health", "service", self._service), silence, question)


def _close(resolvers: Iterable[ConsulResolver]) -> None:
    """Close many at the price of one: all are told before one is waited for."""
    closing = [resolver for resolver in resolvers if resolver.begin_close()]
    deadline = time.monotonic() + _CLOSE_PATIENCE
    for resolver in closing:
        resolver.finish_close(deadline)


def _until(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _next_index(index: int, answer: Answer) -> int:
    """The index to ask with next: never below 1, and 0 (answer now) if it went back: the servers lost their state."""
    try:
        given = int(answer.headers["X-Consul-Index"])
    except (KeyError, ValueError):
        raise ConsulError("the answer has no X-Consul-Index: this is not a Consul agent") from None
    return 0 if given < index else max(given, 1)


def _instances(answer: Answer) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The instances whose checks all pass, and those that seem dead, as plain JSON documents by node and id.

    Who is in maintenance is in neither: somebody took it out on purpose.
    """
    entries = answer.json()
    if not isinstance(entries, list):
        raise ConsulError(f"a list was expected, not {type(entries).__name__}")
    if not entries and answer.headers.get("X-Consul-Results-Filtered-By-ACLs") == "true":
        raise ConsulError("the token may not see the instances: it needs service:read and node:read")
    passing: dict[str, bytes] = {}
    others: dict[str, bytes] = {}
    for entry in entries:
        node, service = _mapping(entry, "Node"), _mapping(entry, "Service")
        # An id is unique only within its node.
        id = f"{node.get('Node')}/{service.get('ID')}"
        if not _in_maintenance(entry):
            (passing if _passes(entry) else others)[id] = json.dumps(_document(node, service)).encode()
    return passing, others


def _passes(entry: Any) -> bool:
    checks = entry.get("Checks") if isinstance(entry, Mapping) else None
    if not isinstance(checks, list):
        return True  # no checks at all: Consul counts that as passing
    return all(isinstance(check, Mapping) and check.get("Status") == "passing" for check in checks)


def _in_maintenance(entry: Any) -> bool:
    checks = entry.get("Checks") if isinstance(entry, Mapping) else None
    return isinstance(checks, list) and any(
        isinstance(check, Mapping)
        and check.get("Status") == "critical"
        and str(check.get("CheckID")).startswith(_MAINTENANCE)
        for check in checks
    )


def _document(node: Mapping[str, Any], service: Mapping[str, Any]) -> dict[str, Any]:
    """One instance in the form that `decode_instance` reads."""
    listed = service.get("Tags")
    tags = [tag for tag in listed if isinstance(tag, str)] if isinstance(listed, list) else []
    attributes: dict[str, Any] = {"tags": ",".join(tags)} if tags else {}
    attributes["weight"] = _mapping(service, "Weights").get("Passing", 1)
    # older Spring Cloud writes its metadata as tags
    pairs = (tag.partition("=") for tag in tags)
    attributes |= {key: value for key, _, value in pairs if key in _FROM_TAGS and value}
    attributes |= _mapping(service, "Meta")
    host = service.get("Address") or node.get("Address")
    return {"host": host, "port": service.get("Port"), "metadata": attributes}


def _mapping(value: Any, key: str) -> Mapping[str, Any]:
    """`value[key]` if both are objects; what strangers registered may be anything."""
    inner = value.get(key) if isinstance(value, Mapping) else None
    return inner if isinstance(inner, Mapping) else _NOTHING


class _Grace:
    """After an outage, whoever was alive before it stays alive for 10 s, as long as Consul still knows of it.

    An agent that was away longer than the leases takes all servers for dead, one after another, until they renew.
    The price: who really died in the outage is dropped 10 s late. Who deregistered, or is in maintenance, is dropped
    at once: that is somebody's will, not a lease that ran out.
    """

    def __init__(self) -> None:
        self._alive: dict[str, bytes] = {}
        self._until = 0.0
        self._outage = False

    def outage(self) -> None:
        """Consul did not answer."""
        self._outage = True

    def alive(self, passing: dict[str, bytes], others: dict[str, bytes], now: float) -> dict[str, bytes]:
        """Return the instances that get calls, in a stable order."""
        if self._outage:
            self._outage, self._until = False, now + _GRACE_AFTER_OUTAGE
        kept = {id: data for id, data in others.items() if id in self._alive} if now < self._until else {}
        self._alive = dict(sorted({**kept, **passing}.items()))
        return self._alive

    def left(self, now: float) -> float | None:
        """Seconds after which Consul has to be asked again, news or not; None without a grace."""
        return max(0.1, self._until - now) if now < self._until else None


class _Pace:
    """A token bucket: a service that does not exist yet is told of every change of every other service."""

    at_once = 5.0
    per_second = 5.0

    def __init__(self) -> None:
        self._tokens = self.at_once
        self._last = 0.0

    def pause(self, now: float) -> float:
        """Take a token; return how many seconds to wait before the next question."""
        self._tokens = min(self.at_once, self._tokens + (now - self._last) * self.per_second) - 1.0
        self._last = now
        return max(0.0, -self._tokens / self.per_second)
