"""Discovery from Consul: blocking queries for `/v1/health/service/NAME`, on a bounded number of threads.

A resolver delivers what the agent says, as it says it; only what is no answer is an error. Whether to believe a list
that suddenly shrank is for the guard of the balancer to judge, as with every registry.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Literal, Unpack

from clientlb.discovery._backoff import Backoff
from clientlb.discovery._consul_address import ConnectionOptions, ConsulAddress
from clientlb.discovery._consul_crew import Crew
from clientlb.discovery._consul_datacenters import Datacenters
from clientlb.discovery._consul_failover import FailoverRule
from clientlb.discovery._consul_health import HealthReader
from clientlb.discovery._consul_http import ConsulHTTP
from clientlb.discovery._consul_query import CONSISTENCIES, Consistency, HealthQuery, OldAnswerError
from clientlb.discovery._remarks import not_read, on_lost_nodes
from clientlb.discovery.base import Listener
from clientlb.discovery.feed import Feed
from clientlb.discovery.url import checked_seconds, seconds_option
from clientlb.errors import ClosedError, ConfigurationError, DiscoveryError

Health = Literal["passing", "passing+warning"]
"""Which instances get calls."""

DEFAULT_WAIT = 15.0
DEFAULT_MAX_STALE = 10.0
DEFAULT_PATIENCE = 10.0
DEFAULT_CONNECTIONS = 64
DEFAULT_TURN_WITHIN = 10.0
DEFAULT_FAILOVER_AFTER = 5.0
DEFAULT_FAILBACK_AFTER = 10.0

_MAX_WAIT = 600.0  # Consul's own limit
_CLOSE_PATIENCE = 0.5
_LONGEST_PAUSE = 1.5  # seconds to the next question in an outage: two after its end, the list is to be right again
_TEXT_OPTIONS = ("dc", "near", "filter", "consistency")
_SECONDS_OPTIONS = ("wait", "max_stale", "patience", "turn_within", "failover_after", "failback_after")
_LIST_OPTIONS = ("tag", "failover")
_OPTIONS = (*_TEXT_OPTIONS, *_SECONDS_OPTIONS, *_LIST_OPTIONS, "health", "max_connections")
_OF_THE_REGISTRAR = ("check", "check_interval", "check_timeout", "deregister_after")  # one URL serves both sides


class ConsulDiscovery:
    """The services that one Consul agent knows of.

    An instance gets calls if all its checks pass, those of its node included; with `health="passing+warning"` also if
    the worst one warns, with its weight for that. Whose node is lost or in maintenance gets none.

    Args:
        host: The agent (default `CONSUL_HTTP_ADDR`, or 127.0.0.1).
        port: Its HTTP port (default as for the host, or 8500).
        dc: Datacenter to ask for (default: the agent's own).
        failover: Datacenters to use instead while `dc` has no instances or cannot be asked: the first that has some.
            Endpoints from there say so in their metadata (`datacenter`).
        failover_after: Seconds for which that must last (default 5: longer than an election).
        failback_after: Seconds for which `dc` must have instances before it is used again (default 10).
        tag: Only instances with this tag, or with all of these.
        near: A node, or `_agent`: the list comes in the order of the distance from it, instead of that of the ids.
        filter: An expression of Consul's own, such as `Service.Meta.stage == "live"`.
        health: `passing` (default) or `passing+warning`.
        consistency: Who may answer: `stale` (default) any server, so that an election is no outage; `default` the
            leader; `consistent` a leader that asks its peers; `cached` also the agent alone.
        max_stale: Seconds that an answer may be behind the leader before it is asked itself (default 10).
        wait: Seconds after which a query without news returns (default 15). An agent that hangs is noticed after that,
            a sixteenth of it and `patience`.
        patience: Seconds that an answer may take beyond its wait (default 10: without a leader, servers try for 7).
        max_connections: The most connections to the agent, each with a thread (default 64; an agent allows 200 per
            address of a client). With more services than three quarters of it, they take turns.
        turn_within: Seconds within which each service has its turn then (default 10): a change is seen that late at
            worst.
        client: A `consul.Consul` object of python-consul or py-consul whose HTTP client is used instead of our own.
            A query that waits in it cannot be ended: its thread outlives `close()` by up to `wait`, in silence.
        **connection: Token, TLS, unix socket, namespace: see `ConnectionOptions`. A token needs `service:read` and
            `node:read`; without the second, Consul shows an empty list.

    Raises:
        ConfigurationError: An argument or a variable that cannot be right.
    """

    def __init__(
        self,
        host: str = "",
        port: int = 0,
        *,
        dc: str | None = None,
        failover: Iterable[str] = (),
        failover_after: float = DEFAULT_FAILOVER_AFTER,
        failback_after: float = DEFAULT_FAILBACK_AFTER,
        tag: str | Iterable[str] | None = None,
        near: str | None = None,
        filter: str | None = None,
        health: Health = "passing",
        consistency: Consistency = "stale",
        max_stale: float = DEFAULT_MAX_STALE,
        wait: float = DEFAULT_WAIT,
        patience: float = DEFAULT_PATIENCE,
        max_connections: int = DEFAULT_CONNECTIONS,
        turn_within: float = DEFAULT_TURN_WITHIN,
        client: Any = None,
        **connection: Unpack[ConnectionOptions],
    ) -> None:
        if checked_seconds("wait", wait) > _MAX_WAIT:
            raise ConfigurationError(f"wait is at most {_MAX_WAIT:g} seconds; not {wait!r}")
        if consistency not in CONSISTENCIES:
            raise ConfigurationError(f"consistency is one of {', '.join(CONSISTENCIES)}; not {consistency!r}")
        if health not in ("passing", "passing+warning"):
            raise ConfigurationError(f"health is passing or passing+warning; not {health!r}")
        if not isinstance(max_connections, int) or isinstance(max_connections, bool) or max_connections < 1:
            raise ConfigurationError(f"max_connections is a number from 1; not {max_connections!r}")
        if isinstance(failover, str):
            raise ConfigurationError(f"failover is a list of datacenters; not the text {failover!r}")
        if client is None:
            self._address = ConsulAddress(host, port, **connection)
        else:
            self._address = ConsulAddress.of_client(client, connection)
        self._datacenters = (dc, *failover)
        tags = [tag] if isinstance(tag, str) else list(tag or ())
        asked = (("tag", tags), ("near", near), ("filter", filter))
        self._parameters: dict[str, str | list[str]] = {name: value for name, value in asked if value}
        self._health = health
        self._consistency: Consistency = consistency
        self._max_stale = checked_seconds("max_stale", max_stale)
        self._patience = checked_seconds("patience", patience)
        self._failover_after = checked_seconds("failover_after", failover_after)
        self._failback_after = checked_seconds("failback_after", failback_after)
        self._turn_within = checked_seconds("turn_within", turn_within)
        self._wait = wait
        self._max_connections = max_connections
        self._client = client
        self._closed = False
        self._lock = threading.Lock()
        self._crew: Crew | None = None
        self._resolvers: weakref.WeakSet[ConsulResolver] = weakref.WeakSet()

    @classmethod
    def from_url(cls, url: str) -> ConsulDiscovery:
        """Read `consul://[host[:port]][?dc=…&tag=…]` or `consul:///path/of/socket[?…]`.

        Options are the arguments of this class; `tag` and `failover` take several values with commas between them.
        """
        connection, options = ConsulAddress.read_url(url, (*_OPTIONS, *_OF_THE_REGISTRAR))
        given: dict[str, Any] = {name: options[name] for name in _TEXT_OPTIONS if name in options}
        given |= {name: seconds_option(options, name, 0.0) for name in _SECONDS_OPTIONS if name in options}
        given |= {name: [each for each in options.get(name, "").split(",") if each] for name in _LIST_OPTIONS}
        if "health" in options:
            given["health"] = options["health"].replace(" ", "+")  # in a query, "+" stands for a space
        if "max_connections" in options:
            number = options["max_connections"]
            given["max_connections"] = int(number) if number.isdecimal() else number
        return cls(**connection, **given)

    def resolver(self, service: str) -> ConsulResolver:
        """Make the resolver of one service."""
        if not service:
            raise ConfigurationError("consul: the name of the service is empty")
        if self._closed:
            raise ClosedError(f"{self} is closed")
        name = f"{service} in {self._address}"
        queries = [self._query(service, name, place, datacenter) for place, datacenter in enumerate(self._datacenters)]
        source: HealthQuery | Datacenters = queries[0]
        if len(queries) > 1:
            source = Datacenters(name, queries, FailoverRule(self._failover_after, self._failback_after))
        resolver = ConsulResolver(service, self._address, source, self._crew_of_this_process)
        self._resolvers.add(resolver)
        return resolver

    def close(self) -> None:
        """Close the resolvers, and wait half a second for all of them together. Idempotent."""
        self._closed = True
        closing = [resolver for resolver in self._resolvers if resolver.begin_close()]
        crew, deadline = self._crew, time.monotonic() + _CLOSE_PATIENCE
        if crew is not None and crew.pid == os.getpid():
            crew.close()
        for resolver in closing:
            resolver.finish_close(deadline)
        if closing and crew is not None and self._client is None:
            crew.join(deadline)

    def __str__(self) -> str:
        return str(self._address)

    def _query(self, service: str, name: str, place: int, datacenter: str | None) -> HealthQuery:
        elsewhere = {"datacenter": datacenter} if place and datacenter else {}
        reader = HealthReader(
            name,
            warning=self._health == "passing+warning",
            sort="near" not in self._parameters,
            attributes=elsewhere,
        )
        return HealthQuery(
            service,
            reader,
            {**self._parameters, **({"dc": datacenter} if datacenter else {})},
            consistency=self._consistency,
            max_stale=self._max_stale,
            patience=self._patience,
            has_token=self._address.token is not None,
        )

    def _crew_of_this_process(self) -> Crew:
        if self._crew is not None and self._crew.pid != os.getpid():
            self._lock, self._crew = threading.Lock(), None  # forked: the threads are the parent's
        with self._lock:
            if self._crew is None:
                self._crew = Crew(self._connect, self._max_connections, self._wait, self._turn_within)
            crew = self._crew
        if self._closed:  # asked last: `close` says so first, and then looks for a crew
            crew.close()
            raise ClosedError(f"{self} is closed")
        return crew

    def _connect(self) -> ConsulHTTP:
        return ConsulHTTP(self._address, self._client)


class ConsulResolver:
    """Watches one service: a member of the crew asks for it, and it tells the listener."""

    def __init__(
        self,
        service: str,
        address: ConsulAddress,
        source: HealthQuery | Datacenters,
        crew: Callable[[], Crew],
    ) -> None:
        self._service = service
        self._address = address
        self._source = source
        self._find_crew = crew
        self._crew: Crew | None = None
        self._feed: Feed | None = None
        self._closed = threading.Event()
        self._has_list = False
        self._backoff, self._pace = Backoff(longest=_LONGEST_PAUSE), _Pace()

    @property
    def node_lost(self) -> int:
        """Instances of the last answer whose own checks pass, but whose node the cluster has lost."""
        return self._source.reader.node_lost

    @property
    def skipped(self) -> int:
        """Instances of the last answer that could not be read."""
        return self._source.reader.skipped

    def remarks(self) -> list[str]:
        """Both counts in words, for `Balancer.explain()`."""
        return on_lost_nodes(self.node_lost) + not_read(self.skipped)

    def start(self, listener: Listener) -> None:
        """Begin to watch. Returns at once; raises ClosedError after `close`."""
        name = f"{self._service} in {self._address}"
        if self._closed.is_set():
            raise ClosedError(f"the watch of {name} is closed")
        self._feed = Feed(listener, name)
        self._crew = self._find_crew()
        self._crew.add(self)
        if self._closed.is_set():  # by another thread, which may have found nothing to close
            self._feed.close(patience=0.0)
            self._crew.drop(self)

    def close(self) -> None:
        """Stop watching. Idempotent; nothing is delivered afterwards."""
        if self.begin_close():
            self.finish_close(time.monotonic() + _CLOSE_PATIENCE)

    def begin_close(self) -> bool:
        """Say that no more news is wanted, without waiting; False if that was said before, or in another process."""
        if self._closed.is_set():
            return False
        self._closed.set()
        if self._crew is None or self._feed is None or self._crew.pid != os.getpid():
            return False
        self._feed.close(patience=0.0)
        self._crew.drop(self)
        return True

    def finish_close(self, deadline: float) -> None:
        """Wait for a delivery that is under way, until the monotonic clock says `deadline`."""
        if self._feed is not None:
            self._feed.close(patience=max(0.0, deadline - time.monotonic()))

    def ask(self, http: ConsulHTTP, wait: float) -> float:
        """Ask once and tell the listener; return the seconds until the next question. For the crew."""
        feed = self._feed
        if feed is None or self._closed.is_set():
            return 0.0
        try:
            endpoints = self._source.ask(http, wait)
        except Exception as error:  # whatever it is, the watch goes on
            if isinstance(error, OldAnswerError) and error.endpoints and not self._has_list:
                feed.update(error.endpoints)  # better than nothing
            reason = str(error) or type(error).__name__
            feed.error(DiscoveryError(f"{self._address}: asking for {self._service} failed: {reason}"))
            return self._backoff.failed()
        self._backoff.succeeded()
        self._has_list = True
        feed.update(endpoints)
        return self._pace.pause(time.monotonic())


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
