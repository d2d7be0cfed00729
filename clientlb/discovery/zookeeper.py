"""Discovery from ZooKeeper: `ROOT/<service>/<instance>` with the instance's JSON as data.

Not kazoo's ChildrenWatch: that one never fires for a service which does not exist yet, dies when the node of the
service is made anew, and says nothing about changed data. Here watches and connection changes only mark what has
to be read again, and one thread reads it:

    watch of the service's node ──► list it again ─┐
    watch of an instance ─────────► read it again ─┼─► worker thread ──► listener.update
    session made (any) ───────────► read it all ───┘        └─ whatever fails ──► listener.error, later again

An event always means "read this again", never "this is what happened": a node deleted and made again between two
reads would otherwise look unchanged.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from kazoo.exceptions import NoNodeError
from kazoo.protocol.states import EventType

from clientlb.discovery._backoff import Backoff
from clientlb.discovery._zookeeper_client import (
    DEFAULT_ROOT,
    OPERATION_TIMEOUT,
    WINDOW,
    Connection,
    ZooKeeperAddress,
    node_path,
)
from clientlb.discovery.base import Listener
from clientlb.discovery.decode import InstanceDecoder
from clientlb.discovery.feed import Feed
from clientlb.endpoint import Endpoint
from clientlb.errors import ClosedError, DiscoveryError

logger: logging.Logger = logging.getLogger("clientlb.zookeeper")

_PATIENCE = 1.0  # seconds without a session before it is an error: electing a leader takes half of it
_TICK = 0.5  # seconds between two looks at the clock while there is no session


class ZooKeeperDiscovery:
    """The services in one ZooKeeper ensemble. All resolvers share one session, made by the first that starts.

    Args:
        hosts: `"h1:2181,h2:2181"` or a list of such hosts (port 2181 by default).
        root: Path under which each service has a node (default `/services`, as in Spring Cloud).
        session_timeout: Seconds after which the server drops a client that it does not hear from (default 10).
        credentials: `user:password` for ZooKeeper's digest scheme.
        client: A started `KazooClient` to use instead of making one; its owner stops it.
        rebuild_after: Seconds without a session after which a new client is made, for a server that lost its
            data refuses the old one for ever (default: three times the session timeout, at least 15).

    Raises:
        ConfigurationError: A host, path or timeout that cannot be right.
    """

    def __init__(
        self,
        hosts: str | Iterable[str],
        root: str = DEFAULT_ROOT,
        *,
        session_timeout: float | None = None,
        credentials: str | None = None,
        client: Any = None,
        rebuild_after: float | None = None,
    ) -> None:
        self._address = ZooKeeperAddress.parse(
            hosts, root=root, session_timeout=session_timeout, credentials=credentials
        )
        self._client = client
        self._rebuild_after = rebuild_after
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self._closed = False

    @classmethod
    def from_url(cls, url: str) -> ZooKeeperDiscovery:
        """Read `zookeeper://[user:password@]h1:2181,h2:2181[/root][?session_timeout=10]`."""
        address = ZooKeeperAddress.from_url(url)
        return cls(
            address.hosts,
            address.root,
            session_timeout=address.session_timeout,
            credentials=address.credentials,
        )

    def resolver(self, service: str) -> ZooKeeperResolver:
        """Make the resolver of one service; a name may have several steps (`group/orders`)."""
        return ZooKeeperResolver(self, service, self._address.root + node_path(service))

    def close(self) -> None:
        """End the session. Idempotent; returns at once, also when the servers hang."""
        with self._lock:
            self._closed = True
            worker, self._worker = self._worker, None
        if worker is not None and worker.pid == os.getpid():
            worker.close()

    def worker(self) -> _Worker:
        """The thread that reads, in this process (for the resolvers)."""
        with self._lock:
            if self._closed:
                raise ClosedError(f"{self} is closed")
            worker = self._worker
            if worker is None or worker.pid != os.getpid():
                # A forked child has no threads, and a copy of a session that belongs to the parent, as does the
                # client that was handed in: it starts anew.
                client = self._client if worker is None else None
                worker = self._worker = _Worker(self._address, client, self._rebuild_after)
            return worker

    def __str__(self) -> str:
        return str(self._address)


class ZooKeeperResolver:
    """One service: its node, what is known of its instances, and what of that has to be read again."""

    def __init__(self, discovery: ZooKeeperDiscovery, service: str, path: str) -> None:
        self.path = path
        self.feed: Feed | None = None
        self._discovery = discovery
        self._name = f"{service} in {discovery}"
        self._decoder = InstanceDecoder(self._name)
        self._worker: _Worker | None = None
        self._closed = False
        self._data: dict[str, bytes] = {}
        self._epoch = 0  # of the connection in which all of it was read; 0 is none
        self._marks = threading.Lock()
        self._list_again = True
        self._read_again: set[str] = set()

    def start(self, listener: Listener) -> None:
        """Begin to watch. Returns at once; raises ClosedError after `close`."""
        if self._closed:
            raise ClosedError(f"the watch of {self._name} is closed")
        self.feed = Feed(listener, self._name)
        self._worker = self._discovery.worker()
        self._worker.add(self)

    def close(self) -> None:
        """Stop watching. Idempotent; nothing is delivered afterwards."""
        self._closed = True
        if self.feed is not None:
            self.feed.close()
        if self._worker is not None:
            self._worker.remove(self)

    def mark(self, event: Any) -> None:
        """Note what a watch saw. Runs on kazoo's only watch thread."""
        if event.type == EventType.NONE or self._closed or self._worker is None:
            return  # NONE is the end of a session: the next one reads everything anyway
        with self._marks:
            if event.path == self.path:
                self._list_again = True
            else:
                self._read_again.add(event.path.rpartition("/")[2])
        self._worker.wake()

    def needs_reading(self, epoch: int) -> bool:
        """Whether something changed, or the session is not the one in which it was read."""
        with self._marks:
            return not self._closed and (self._list_again or bool(self._read_again) or self._epoch != epoch)

    def read(self, connection: Connection) -> list[Endpoint]:
        """Read what has to be read again. After an exception, that is everything."""
        epoch, last = connection.epoch, self._epoch
        self._epoch = 0
        with self._marks:
            listing = self._list_again or epoch != last
            marked, self._read_again = self._read_again, set()
            self._list_again = False
        known: dict[str, bytes | None] = {**self._data} if epoch == last else {}
        names = self._list(connection) if listing else list(known)
        wanted = [name for name in names if name not in known or name in marked]
        known.update(self._fetch(connection, wanted))
        self._data = {name: data for name in names if (data := known[name]) is not None}
        self._epoch = epoch
        return self._decoder.decode_all(self._data)

    def _list(self, connection: Connection) -> list[str]:
        client = connection.client
        try:
            children = client.get_children_async(self.path, watch=self.mark).get(timeout=OPERATION_TIMEOUT)
            return sorted(children)
        except NoNodeError:
            # Nobody has registered yet, which is an answer. Watch for the first one.
            if client.exists_async(self.path, watch=self.mark).get(timeout=OPERATION_TIMEOUT) is not None:
                with self._marks:
                    self._list_again = True  # it came between the two questions
            return []

    def _fetch(self, connection: Connection, names: list[str]) -> Iterator[tuple[str, bytes | None]]:
        """Read instances, with a watch on each; None for one that is gone."""
        client = connection.client
        for start in range(0, len(names), WINDOW):
            if not connection.connected:
                raise DiscoveryError("the session was lost")
            window = names[start : start + WINDOW]
            answers = [(name, client.get_async(f"{self.path}/{name}", watch=self.mark)) for name in window]
            for name, answer in answers:
                try:
                    yield name, answer.get(timeout=OPERATION_TIMEOUT)[0]
                except NoNodeError:
                    yield name, None


class _Worker:
    """The one thread of a discovery: it does all the reading and all the reporting."""

    def __init__(self, address: ZooKeeperAddress, client: Any, rebuild_after: float | None) -> None:
        self.pid: int = os.getpid()
        self._address = address
        self._closed = False
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._resolvers: tuple[ZooKeeperResolver, ...] = ()
        self._stumbled = False
        self._failing: dict[ZooKeeperResolver, tuple[Backoff, float]] = {}  # and when each is tried again
        self._connection = Connection(address, self.wake, client=client, rebuild_after=rebuild_after)
        threading.Thread(target=self._run, name="clientlb-zookeeper", daemon=True).start()

    def add(self, resolver: ZooKeeperResolver) -> None:
        with self._lock:
            self._resolvers = (*self._resolvers, resolver)
        self.wake()

    def remove(self, resolver: ZooKeeperResolver) -> None:
        with self._lock:
            self._resolvers = tuple(each for each in self._resolvers if each is not resolver)
            self._failing.pop(resolver, None)

    def wake(self) -> None:
        self._wake.set()

    def close(self) -> None:
        self._closed = True
        self._connection.close()
        self.wake()

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait(self._pause())
            self._wake.clear()
            try:
                self._step()
            except Exception:  # whatever it is, the watches go on: there is no other thread to keep them
                if not self._stumbled:
                    self._stumbled = True
                    logger.exception("the watch of %s stumbled, and goes on", self._address)

    def _step(self) -> None:
        if self._connection.connected:
            for resolver in self._resolvers:
                self._serve(resolver)
        elif not self._closed:
            if self._connection.down_for > _PATIENCE:
                hosts = ", ".join(self._address.hosts)
                self._report(self._resolvers, f"no session with ZooKeeper at {hosts}: none of them serves us")
            self._connection.tend()  # last: it may fail, and whoever waits should have heard

    def _pause(self) -> float | None:
        """Seconds after which there is something to do even if nobody wakes us."""
        if not self._connection.connected:
            return _TICK
        # one look at each: `remove` may take it away in between
        due = [failing[1] for resolver in self._resolvers if (failing := self._failing.get(resolver))]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _serve(self, resolver: ZooKeeperResolver) -> None:
        connection = self._connection
        backoff, due = self._failing.get(resolver, (Backoff(), 0.0))
        if self._closed or not resolver.needs_reading(connection.epoch):
            self._failing.pop(resolver, None)
        elif time.monotonic() >= due:
            try:
                endpoints = resolver.read(connection)
            except Exception as error:
                with self._lock:
                    if resolver in self._resolvers:  # not closed meanwhile: nobody would ever drop it
                        self._failing[resolver] = (backoff, time.monotonic() + backoff.failed())
                if connection.connected:  # otherwise it is an outage, and reported if it lasts
                    reason = str(error) or type(error).__name__
                    self._report([resolver], f"reading {resolver.path} failed: {reason}")
            else:
                self._failing.pop(resolver, None)
                if resolver.feed is not None:
                    resolver.feed.update(endpoints)

    def _report(self, resolvers: Iterable[ZooKeeperResolver], problem: str) -> None:
        for resolver in resolvers:
            if resolver.feed is not None:  # which does not repeat the same problem all the time
                resolver.feed.error(DiscoveryError(f"{self._address}: {problem}"))
