"""One inner transport per endpoint, with its calls counted. No I/O: transports to be closed are handed out for that.

A pool shared by all endpoints would be simpler and wrong: httpx keeps 20 idle connections for all origins together, so
50 endpoints in turn open a new connection for every request, and it ignores the TLS server name when it reuses one.

    take -> in use -> give_back -> idle -> take ...
                \\                     \\
                 \\ endpoint left       \\ endpoint left, or too many are idle
                  v                     v
              give_back (the last) -> retired: closed by whoever iterates `retired`
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeAlias, TypeVar

from clientlb._http.place import ORDINARY, Place
from clientlb.balancer import Balancer
from clientlb.endpoint import Endpoint
from clientlb.errors import ClosedError

TransportT = TypeVar("TransportT")
Key: TypeAlias = tuple[str, str, int, str | None]
"""Service, host, port and, for TLS, the name that the certificate was checked against."""


class Link(Generic[TransportT]):
    """The transport to one endpoint.

    Attributes:
        transport: Made by the factory of the links.
        calls: How many calls use it now.
        used: Ordinal of its last use.
        leaving: It is to be retired when its last call ends.
        place: Where the endpoint was when the link was made, beyond host and port.
    """

    __slots__ = ("calls", "leaving", "place", "transport", "used")

    def __init__(self, transport: TransportT, place: Place) -> None:
        self.transport = transport
        self.place = place
        self.calls = 0
        self.used = 0
        self.leaving = False


class Links(Generic[TransportT]):
    """The links of one shell, in one process and one event loop. Thread-safe.

    Args:
        make: Makes the transport to an endpoint.
        make_ordinary: Makes the transport for everything that is no service.
        max_idle: How many links are kept while no call uses them.
        place_of: Where an endpoint is, beyond host and port.

    Attributes:
        inherited: This is a forked child, and they belong to its parent: whatever began before the fork ends there.
        closed: The client is being closed: what ends now ends because of that. After `retire_all` nothing is opened.
    """

    def __init__(
        self,
        make: Callable[[Endpoint, Place], TransportT],
        make_ordinary: Callable[[], TransportT],
        max_idle: int,
        place_of: Callable[[Endpoint], Place] = lambda endpoint: ORDINARY,
    ) -> None:
        self.inherited: bool = False
        self.closed: bool = False
        self._make = make
        self._make_ordinary = make_ordinary
        self._max_idle = max_idle
        self._place_of = place_of
        self._lock = threading.Lock()
        self._acquire, self._release = self._lock.acquire, self._lock.release  # for every call; see Balancer
        self._links: dict[Key, Link[TransportT]] = {}
        self._versions: dict[str, int] = {}
        self._balancers: dict[str, Balancer] = {}
        self._uses = 0
        self._ordinary: TransportT | None = None
        self._retired: deque[TransportT] = deque()

    def take(self, balancer: Balancer, endpoint: Endpoint, server_name: str | None) -> Link[TransportT]:
        """The link to an endpoint, for one call.

        Args:
            balancer: Of the endpoint's service; if its list has just changed, links to endpoints that left are let go.
            endpoint: Where the call goes.
            server_name: What the TLS certificate is checked against; None without TLS.

        Raises:
            ClosedError: After `retire_all`.
        """
        key = (balancer.service, endpoint.host, endpoint.port, server_name)
        self._acquire()
        try:
            if self._versions.get(balancer.service) != balancer.version:
                if self.closed:  # no version is known any more, so it need not be asked at every call
                    raise ClosedError("the transport was closed meanwhile")
                self._let_leavers_go(balancer)
            link = self._links.get(key)
            if link is None:
                place = self._place_of(endpoint)
                link = self._links[key] = Link(self._make(endpoint, place), place)
                self._make_room(link)
            link.calls += 1
            self._uses += 1
            link.used = self._uses
        finally:
            self._release()
        return link

    def give_back(self, link: Link[TransportT]) -> bool:
        """End one call's use of a link; True if there are retired transports to be closed."""
        self._acquire()
        try:
            link.calls -= 1
            if link.leaving and link.calls == 0:
                self._retired.append(link.transport)
        finally:
            self._release()
        return bool(self._retired)

    def endpoints_changed(self, service: str) -> bool:
        """Let links to endpoints that left go; True if there are retired transports to be closed."""
        with self._lock:
            balancer = self._balancers.get(service)
            if balancer is not None:
                self._let_leavers_go(balancer)
        return bool(self._retired)

    @property
    def ordinary(self) -> TransportT:
        """The transport for everything that is no service."""
        if self._ordinary is None:
            with self._lock:
                if self._ordinary is None:
                    self._ordinary = self._make_ordinary()
        return self._ordinary

    def retired(self) -> Iterator[TransportT]:
        """Transports to be closed; each is handed out once."""
        while self._retired:
            try:
                yield self._retired.popleft()
            except IndexError:  # another thread was faster
                return

    def retire_all(self) -> None:
        """Retire every transport, in use or not."""
        with self._lock:
            self.closed = True
            self._retired.extend(link.transport for link in self._links.values())
            self._links.clear()
            self._versions.clear()
            self._balancers.clear()
            if self._ordinary is not None:
                self._retired.append(self._ordinary)
                self._ordinary = None

    def __len__(self) -> int:
        return len(self._links)

    def _let_leavers_go(self, balancer: Balancer) -> None:
        service, place_of = balancer.service, self._place_of
        self._versions[service] = balancer.version
        self._balancers[service] = balancer
        present = {(endpoint.host, endpoint.port, place_of(endpoint)) for endpoint in balancer.endpoints}
        gone = [
            key for key, link in self._links.items() if key[0] == service and (*key[1:3], link.place) not in present
        ]
        for key in gone:
            self._let_go(key)

    def _make_room(self, newcomer: Link[TransportT]) -> None:
        """Let go what was idle longest, if too many links are idle. It looks at all links, but only for a new one."""
        idle = [(link.used, key) for key, link in self._links.items() if link.calls == 0 and link is not newcomer]
        surplus = len(idle) - self._max_idle
        if surplus > 0:
            for _, key in sorted(idle)[:surplus]:
                self._let_go(key)

    def _let_go(self, key: Key) -> None:
        link = self._links.pop(key)
        link.leaving = True
        if link.calls == 0:
            self._retired.append(link.transport)
