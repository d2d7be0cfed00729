"""One session with ZooKeeper, shared by all who use the same ensemble: it never gives up, and never blocks.

- A server whose data were wiped refuses the sessions of its former life for ever, and kazoo asks for ever. After
  `rebuild_after` seconds without a session the client is replaced.
- A blocking call waits out the whole outage, so everything is asked with `*_async`, an end to the waiting, and never
  more than `WINDOW` at a time: some 270 requests fill the pipe that wakes kazoo's thread, and the next one would block.
- The session may outlive one of its users, whose nodes must end all the same: they are abandoned, and deleted.

What is done about the rest of kazoo's ways is in `_zookeeper_kazoo`.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from kazoo.exceptions import (
    AuthFailedError,
    ConnectionClosedError,
    ConnectionLoss,
    KazooException,
    SessionExpiredError,
    UnimplementedError,
)
from kazoo.protocol.states import KazooState, KeeperState

from clientlb.discovery._zookeeper_kazoo import in_background, make_client, stop
from clientlb.discovery._zookeeper_protocol import listen, listen_no_more
from clientlb.discovery._zookeeper_settings import Ensemble
from clientlb.discovery._zookeeper_sharing import Loan, Shared
from clientlb.errors import DiscoveryError

WINDOW = 128
"""Requests that one thread may have on their way at once."""

OPERATION_TIMEOUT = 5.0
"""Seconds that one request may take."""

_DEAD_PAUSE = 2.0  # seconds until a client that gave up is replaced
_PROVEN = 0.5  # seconds that a connection has to last to count: some servers accept, and hang up

# These say that there is no session, or none that can do this; every other error is about the node that was asked for.
_OF_THE_SESSION = (AuthFailedError, ConnectionClosedError, ConnectionLoss, SessionExpiredError, UnimplementedError)


class Connection:
    """A session with ZooKeeper that is replaced when it cannot come back.

    Args:
        ensemble: The servers, and how to speak with them; with a session timeout.
        client: Use this client instead of making one. Its owner starts and stops it; it is never replaced.
    """

    def __init__(self, ensemble: Ensemble, *, client: Any = None) -> None:
        self._ensemble = ensemble
        self.borrowed: bool = client is not None
        """Whether the client is somebody else's."""
        self._lock = threading.RLock()
        self._listeners: tuple[Callable[[], None], ...] = ()
        self._hearing: tuple[Callable[[str], object], ...] = ()
        self._abandoned: set[str] = set()
        self._connected = threading.Event()
        self._down_since = time.monotonic()
        self._up_since = -math.inf
        self._dead = False
        self._closed = False
        self.pid: int = os.getpid()
        """The process that the session belongs to."""
        self.epoch: int = 0
        """Grows with every connection. What was read in an earlier epoch lost its watches: read it again."""
        self.client: Any = None
        """The kazoo client of now."""
        self._use(client if self.borrowed else make_client(self._ensemble))

    @property
    def connected(self) -> bool:
        """Whether there is a session with a server now."""
        return self._connected.is_set()

    @property
    def down_for(self) -> float:
        """Seconds without a session."""
        return 0.0 if self.connected else time.monotonic() - self._down_since

    @property
    def session_id(self) -> int | None:
        """What the server calls us: the `ephemeralOwner` of our nodes."""
        identity = self.client.client_id
        return identity[0] if identity else None

    @property
    def problem(self) -> str:
        """Why there is no session, for people."""
        last = getattr(self.client.logger, "last", "")
        reason = f" ({last})" if last else ""
        return f"no session with {self}: none of them serves us{reason}"

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Have `changed` called, on a thread of kazoo's, when the connection comes or goes. It must return at once."""
        with self._lock:
            self._listeners = (*self._listeners, changed)

    def unsubscribe(self, changed: Callable[[], None]) -> None:
        """End a subscription. Idempotent."""
        with self._lock:
            self._listeners = tuple(each for each in self._listeners if each != changed)

    def hear(self, heard: Callable[[str], object]) -> None:
        """Have `heard(path)` called, on a thread of kazoo's, for every event of a watch. It must return at once."""
        with self._lock:
            self._hearing = (*self._hearing, heard)
            listen(self.client, heard)

    def hear_no_more(self, heard: Callable[[str], object]) -> None:
        """End what `hear` began. Idempotent."""
        with self._lock:
            if heard in self._hearing:
                self._hearing = tuple(each for each in self._hearing if each != heard)
                listen_no_more(self.client, heard)

    def wait(self, timeout: float) -> bool:
        """Wait for a session; False after `timeout` seconds."""
        return self._connected.wait(timeout)

    def ask(self, requests: Iterable[Callable[[Any], Any]]) -> list[Any]:
        """Send requests, a bounded number at a time, and return the answers in the same order.

        Args:
            requests: Each is given the kazoo client and returns its asynchronous result.

        Returns:
            Answers. One that says that a node cannot be had is the exception, as a value.

        Raises:
            DiscoveryError: There is no session, or no answer came in time.
            KazooException: The session ended meanwhile, or the server does not know the request.
        """
        answers: list[Any] = []
        rest = iter(requests)
        while window := list(itertools.islice(rest, WINDOW)):
            if not self.connected:
                raise DiscoveryError(self.problem)
            client, deadline = self.client, time.monotonic() + OPERATION_TIMEOUT
            results = [request(client) for request in window]
            answers += [_answer(result, deadline, client.handler.timeout_exception) for result in results]
        return answers

    def abandon(self, paths: Iterable[str]) -> None:
        """Delete nodes of ours as soon as there is a session: it may outlive the user who made them."""
        with self._lock:
            self._abandoned.update(paths)
        self._sweep()

    def reclaim(self, path: str) -> None:
        """Do not delete the node after all."""
        with self._lock:
            self._abandoned.discard(path)

    def tend(self) -> None:
        """Replace a client without a session for too long. To be called now and then, by any thread."""
        with self._lock:
            patience = _DEAD_PAUSE if self._dead else self._ensemble.rebuild_pause
            if self.borrowed or self._closed or self.down_for <= patience:
                return
            old = self.client
            self._down_since = time.monotonic()
            new = make_client(self._ensemble)
            try:
                self._use(new)
            finally:
                stop(old)

    def close(self) -> None:
        """End the session, without waiting for it. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._listeners = ()
        if not self.borrowed and self.pid == os.getpid():
            self._connected.clear()
            stop(self.client)

    def __str__(self) -> str:
        return f"ZooKeeper at {self._ensemble}"

    def _use(self, client: Any) -> None:
        def changed(state: str) -> bool:
            # kazoo drops a listener that returns True: that of a client which is not in use any more
            if client is not self.client or (self._closed and not self._abandoned):
                return True
            self._dead = client.client_state in (KeeperState.AUTH_FAILED, KeeperState.CLOSED)
            self._note(state == KazooState.CONNECTED)
            return False

        self.client, self._dead = client, False
        self._connected.clear()  # the old one may have come back in the last moment
        for heard in self._hearing:
            listen(client, heard)
        client.add_listener(changed)
        if not self.borrowed:
            client.start_async()
        elif client.connected:
            self._note(True)

    def _note(self, connected: bool) -> None:
        if connected:
            self.epoch += 1
            self._up_since = time.monotonic()
            self._connected.set()
            self._sweep()
        else:
            now = time.monotonic()
            if self.connected and now - self._up_since > _PROVEN:
                self._down_since = now
            self._connected.clear()
        for listener in self._listeners:
            listener()

    def _sweep(self) -> None:
        if self._abandoned and self.connected:
            in_background(self._delete_abandoned)

    def _delete_abandoned(self) -> None:
        with self._lock:
            paths, self._abandoned = self._abandoned, set()
        try:
            for path, stat in zip(paths, self.ask(_exists(path) for path in paths), strict=True):
                if getattr(stat, "ephemeralOwner", None) == self.session_id:
                    self.ask([_delete(path, stat.version)])
        except (DiscoveryError, KazooException):
            with self._lock:
                self._abandoned |= paths  # at the next connection


def _exists(path: str) -> Callable[[Any], Any]:
    return lambda client: client.exists_async(path)


def _delete(path: str, version: int) -> Callable[[Any], Any]:
    return lambda client: client.delete_async(path, version=version)


def _answer(result: Any, deadline: float, too_late: type[Exception]) -> Any:
    try:
        return result.get(timeout=max(0.0, deadline - time.monotonic()))
    except _OF_THE_SESSION:
        raise
    except KazooException as error:
        return error
    except too_late as error:
        raise DiscoveryError(f"no answer within {OPERATION_TIMEOUT:g} s") from error


_connections: Shared[Connection] = Shared()


def connect(ensemble: Ensemble, client: Any = None, *, apart: bool = False) -> Loan[Connection]:
    """Return this process's connection to an ensemble; who asks for the same gets the same.

    Args:
        ensemble: The servers, and how to speak with them. The session timeout is a part of what must be the same.
        client: A user's own `KazooClient`, used for this loan alone.
        apart: Share it only with others who say so. A session has one kind of watch per node (seen with ZooKeeper 3.8),
            and they are removed together, so one-shot watches on services must keep away from persistent ones.
    """
    if client is not None:
        connection = Connection(ensemble, client=client)
        return Loan(connection, connection.close)
    return _connections.borrow((ensemble, apart), lambda: Connection(ensemble))
