"""What stands in for a registry, a clock and a balancer in tests. Nothing here does I/O or starts a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence

from clientlb.discovery.base import Listener
from clientlb.endpoint import Endpoint


class FakeClock:
    """A clock that stands still until it is told to go on. Call it to read it.

    Args:
        now: Where it starts, in seconds.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self.now: float = now

    def __call__(self) -> float:
        """The time, in seconds."""
        return self.now

    def advance(self, seconds: float) -> float:
        """Go on by `seconds`; returns the new time."""
        self.now += seconds
        return self.now


class RecordingListener:
    """Remembers what a resolver delivers. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._updates: list[tuple[Endpoint, ...]] = []
        self._errors: list[Exception] = []

    @property
    def endpoints(self) -> tuple[Endpoint, ...] | None:
        """The last list; None before the first one."""
        with self._changed:
            return self._updates[-1] if self._updates else None

    @property
    def updates(self) -> list[tuple[Endpoint, ...]]:
        """Every list, in order."""
        with self._changed:
            return list(self._updates)

    @property
    def errors(self) -> list[Exception]:
        """Every error, in order."""
        with self._changed:
            return list(self._errors)

    def update(self, endpoints: Iterable[Endpoint]) -> None:
        """Remember a list."""
        with self._changed:
            self._updates.append(tuple(endpoints))
            self._changed.notify_all()

    def error(self, error: Exception) -> None:
        """Remember an error."""
        with self._changed:
            self._errors.append(error)
            self._changed.notify_all()

    def wait_for(self, predicate: Callable[[RecordingListener], object], timeout: float = 10.0) -> bool:
        """Wait until `predicate(listener)` is true, looking again at every delivery.

        Returns True. Raises AssertionError after `timeout` seconds, saying what was delivered instead.
        """
        with self._changed:
            if self._changed.wait_for(lambda: predicate(self), timeout):
                return True
        raise AssertionError(f"not within {timeout:g} s; {self!r}")

    def wait_for_addresses(self, *addresses: str, timeout: float = 10.0) -> bool:
        """Wait until the last list has exactly these `host:port`, in any order."""
        wanted = sorted(addresses)
        return self.wait_for(lambda it: it.endpoints is not None and sorted(map(str, it.endpoints)) == wanted, timeout)

    def __repr__(self) -> str:
        with self._changed:
            last = [str(endpoint) for endpoint in self._updates[-1]] if self._updates else None
            return f"<{len(self._updates)} lists, last {last}; {len(self._errors)} errors, {self._errors[-1:]}>"


class ManualDiscovery:
    """A registry in memory that the test itself writes. A `Discovery` for `clientlb.Services(...)`.

    Resolvers are told on the thread that calls `set` or `fail`, before it returns.

    Args:
        services: What it knows at the start: service -> endpoints (`"host:port"` strings or `Endpoint` objects).
    """

    def __init__(self, services: dict[str, Sequence[Endpoint | str]] | None = None) -> None:
        self._lock = threading.RLock()
        self._state: dict[str, tuple[Endpoint, ...] | Exception] = {}
        self._listeners: list[tuple[str, Listener]] = []
        for service, endpoints in (services or {}).items():
            self.set(service, endpoints)

    def set(self, service: str, endpoints: Sequence[Endpoint | str]) -> None:
        """The service has exactly these endpoints from now on."""
        self._tell(service, tuple(map(_endpoint, endpoints)))

    def fail(self, service: str, error: Exception) -> None:
        """The service cannot be read from now on, until the next `set`."""
        self._tell(service, error)

    def resolver(self, service: str) -> _ManualResolver:
        """Make the resolver of one service. It says nothing until `set` or `fail` was called for the service."""
        return _ManualResolver(self, service)

    def close(self) -> None:
        """Forget every listener."""
        with self._lock:
            self._listeners.clear()

    def watched(self, service: str) -> int:
        """How many started resolvers the service has."""
        with self._lock:
            return sum(name == service for name, _ in self._listeners)

    def __str__(self) -> str:
        return "manual://"

    def _tell(self, service: str, news: tuple[Endpoint, ...] | Exception) -> None:
        with self._lock:
            self._state[service] = news
            for name, listener in tuple(self._listeners):
                if name == service:
                    _deliver(listener, news)

    def _add(self, service: str, listener: Listener) -> None:
        with self._lock:
            self._listeners.append((service, listener))
            if service in self._state:
                _deliver(listener, self._state[service])

    def _remove(self, service: str, listener: Listener) -> None:
        with self._lock:
            self._listeners = [
                (name, other) for name, other in self._listeners if name != service or other is not listener
            ]


class _ManualResolver:
    def __init__(self, discovery: ManualDiscovery, service: str) -> None:
        self._discovery = discovery
        self._service = service
        self._listener: Listener | None = None

    def start(self, listener: Listener) -> None:
        self._listener = listener
        self._discovery._add(self._service, listener)

    def close(self) -> None:
        if self._listener is not None:
            self._discovery._remove(self._service, self._listener)


def _deliver(listener: Listener, news: tuple[Endpoint, ...] | Exception) -> None:
    if isinstance(news, Exception):
        listener.error(news)
    else:
        listener.update(news)


def _endpoint(entry: Endpoint | str) -> Endpoint:
    if isinstance(entry, Endpoint):
        return entry
    host, _, port = entry.rpartition(":")
    return Endpoint(host.strip("[]"), int(port))
