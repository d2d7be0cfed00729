"""Discovery from ZooKeeper: `ROOT/<service>/<instance>` with the instance's description as data.

Not kazoo's ChildrenWatch: that one never fires for a service which does not exist yet, dies when the node of the
service is made anew, and says nothing about changed data. The floors of our own, from the top:

    zookeeper                 what users see: a discovery, and a resolver per service
    _zookeeper_watcher        the one thread per ensemble that reads, with persistent or one-shot watches
    _zookeeper_agenda         what is known of each service, and what has to be read again; no I/O
    _zookeeper_client         the session, shared with registrations; kazoo's traps
    _zookeeper_protocol       persistent watches and multi-read, which kazoo lacks
    _zookeeper_settings       what users write; _zookeeper_sharing: one of each per process
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from typing import Any, Unpack

from clientlb.discovery._remarks import not_read
from clientlb.discovery._zookeeper_agenda import View
from clientlb.discovery._zookeeper_client import connect
from clientlb.discovery._zookeeper_settings import (
    DEFAULT_ROOT,
    DEFAULT_SESSION_TIMEOUT,
    Ensemble,
    EnsembleOptions,
    node_path,
    read_url,
    registry_name,
)
from clientlb.discovery._zookeeper_sharing import Loan, Shared
from clientlb.discovery._zookeeper_watcher import Watcher
from clientlb.discovery.base import Listener
from clientlb.discovery.decode import Decoder, InstanceDecoder, open_decoder
from clientlb.discovery.feed import Feed
from clientlb.errors import ClosedError

_watchers: Shared[Watcher] = Shared()


class ZooKeeperDiscovery:
    """The services in one ZooKeeper ensemble.

    Whoever uses the same servers with the same options in one process shares one session and one thread, discovery and
    registration alike. Both begin with the first resolver that starts and end with the last that closes.

    Args:
        hosts: `"h1:2181,h2:2181"` or a list of such hosts (port 2181 by default).
        root: Path under which each service has a node (default `/services`, as in Spring Cloud).
        client: A started `KazooClient` to use instead of making one; its owner stops it.
        persistent_watches: Use the persistent watches and multi-reads of ZooKeeper 3.6. By default they are tried, and
            watches that fire once are used if the server has none, or the client is not ours. False: do not try, which
            needs a session apart from those who do. True with a client of yours: set no watches on services with it.
        format: How instances are written: as for `clientlb.discovery.decode.open_decoder` (default: detected for each).
        options: How to speak with the servers: see `EnsembleOptions`.

    Raises:
        ConfigurationError: A host, path or option that cannot be right.
    """

    def __init__(
        self,
        hosts: str | Iterable[str],
        root: str = DEFAULT_ROOT,
        *,
        client: Any = None,
        persistent_watches: bool | None = None,
        format: str | Decoder | None = None,
        **options: Unpack[EnsembleOptions],
    ) -> None:
        self._ensemble = Ensemble.parse(hosts, options).with_session_timeout(DEFAULT_SESSION_TIMEOUT)
        self._root = node_path(root)
        open_decoder(format)  # a mistake in it is found here
        self._format = format
        self._client = client
        self._pid = os.getpid()
        self._persistent = client is None if persistent_watches is None else persistent_watches
        self._lock = threading.Lock()
        self._watcher: Loan[Watcher] | None = None
        self._resolvers: set[ZooKeeperResolver] = set()
        self._closed = False

    @classmethod
    def from_url(cls, url: str) -> ZooKeeperDiscovery:
        """Read `zookeeper://[user:password@]h1:2181,h2:2181[/root][?session_timeout=10&…]`, options as keywords."""
        arguments = read_url(url)
        arguments.pop("acl", None)  # which is for registration
        return cls(**arguments)

    def resolver(self, service: str) -> ZooKeeperResolver:
        """Make the resolver of one service; a name may have several steps (`group/orders`)."""
        return ZooKeeperResolver(self, service, self._root + node_path(service), self._format)

    def close(self) -> None:
        """End all watches, and the session unless others use it. Idempotent; returns at once."""
        with self._lock:
            self._closed = True
            resolvers, self._resolvers = self._resolvers, set()
            watcher, self._watcher = self._watcher, None
        for resolver in resolvers:
            resolver.close()
        if watcher is not None:
            watcher.give_back()

    def began(self, resolver: ZooKeeperResolver) -> Loan[Watcher]:
        """Take note of a resolver; return who reads for it, in this process."""
        with self._lock:
            if self._closed:
                raise ClosedError(f"{self} is closed")
            loan = self._watcher
            if loan is None or not loan.valid:
                # A forked child starts anew, also without the client that was handed in: its sockets are the parent's.
                loan = self._watcher = self._make_watcher(self._client if os.getpid() == self._pid else None)
                self._resolvers.clear()
            self._resolvers.add(resolver)
            return loan

    def ended(self, resolver: ZooKeeperResolver) -> None:
        """Forget a resolver."""
        with self._lock:
            self._resolvers.discard(resolver)

    def _make_watcher(self, client: Any) -> Loan[Watcher]:
        def make() -> Watcher:
            connection = connect(self._ensemble, client, apart=not self._persistent)
            return Watcher(connection, persistent=self._persistent)

        if client is None:
            return _watchers.borrow((self._ensemble, self._persistent), make)
        watcher = make()
        return Loan(watcher, watcher.close)

    def __str__(self) -> str:
        return registry_name(self._ensemble, self._root)


class ZooKeeperResolver:
    """One service. Made by `ZooKeeperDiscovery.resolver`."""

    def __init__(self, discovery: ZooKeeperDiscovery, service: str, path: str, format: str | Decoder | None) -> None:
        self._discovery = discovery
        self._name = f"{service} in {discovery}"
        self._path = path
        self._decoder = InstanceDecoder(self._name, format)
        self._closed = threading.Event()
        self._watched: tuple[Loan[Watcher], View] | None = None

    @property
    def skipped(self) -> int:
        """Instances that are there and could not be read."""
        return self._decoder.skipped

    def remarks(self) -> list[str]:
        """The same in words, for `Balancer.explain()`."""
        return not_read(self.skipped)

    def start(self, listener: Listener) -> None:
        """Begin to watch. Returns at once; raises ClosedError after `close`."""
        if self._closed.is_set():
            raise ClosedError(f"the watch of {self._name} is closed")
        watcher = self._discovery.began(self)
        view = View(self._path, self._decoder, Feed(listener, self._name))
        self._watched = (watcher, view)
        watcher.value.add(view)
        if self._closed.is_set():  # meanwhile, by another thread, which may have been there before `add`
            self._watched = (watcher, view)
            self.close()

    def close(self) -> None:
        """Stop watching. Idempotent; nothing is delivered afterwards."""
        self._closed.set()
        self._discovery.ended(self)
        watched, self._watched = self._watched, None
        if watched is not None:
            watcher, view = watched
            view.feed.close()
            if watcher.valid:
                watcher.value.remove(view)
