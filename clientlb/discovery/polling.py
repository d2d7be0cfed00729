"""One thread that looks at things at an interval, and its resolvers: how `file` and `dir` notice a change.

Polling costs a few system calls per look and works on every file system, over every kind of replacement of a file or of
the directory above it. A library for inotify is not better here: watchfiles wakes up every few milliseconds to collect
what its own thread heard (1 000 files: 0.1 % of a core and 100 ms until a change is seen, or 0.5 % and 13 ms), sees no
root that is made anew and nothing on a network file system, and so would need the polling beside it.
"""

from __future__ import annotations

import logging
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable

from clientlb.discovery.base import Listener
from clientlb.discovery.feed import Feed
from clientlb.errors import ClosedError

logger: logging.Logger = logging.getLogger("clientlb.discovery")

Look = Callable[[], float | None]
"""Looks once. Returns the seconds after which it wants to look again if that is sooner than the interval."""

_SHORTEST_PAUSE = 0.001
_JOIN_PATIENCE = 0.5


class Poller:
    """Calls every look that was added, at an interval, on one daemon thread.

    The thread starts with the first look and ends with the last one. A forked child begins without any: what was
    added in the parent stays there.

    Args:
        name: The thread is named `clientlb-NAME`.
        interval: Seconds between two looks.
    """

    def __init__(self, name: str, interval: float) -> None:
        self._name = name
        self._interval = interval
        self._closed = False
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._looks: tuple[Look, ...] = ()
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()  # one per thread

    def add(self, look: Look) -> None:
        """Call `look` soon, and from then on at the interval.

        Raises:
            ClosedError: After `close()`.
        """
        if self._pid != os.getpid():
            self._reset()
        with self._lock:
            if self._closed:
                raise ClosedError(f"the watch of {self._name} is closed")
            self._looks = (*self._looks, look)
            if self._thread is None:
                self._wake = threading.Event()
                self._thread = threading.Thread(
                    target=self._run, args=(self._wake,), name=f"clientlb-{self._name}", daemon=True
                )
                self._thread.start()
            self._wake.set()

    def remove(self, look: Look) -> None:
        """Call `look` no more. Unknown ones are ignored. Ends the thread if it was the last one."""
        if self._pid == os.getpid():
            self._keep(lambda other: other != look)

    def close(self) -> None:
        """Remove every look, for good. Idempotent."""
        self._closed = True
        if self._pid == os.getpid():
            self._keep(lambda _: False)

    def _keep(self, wanted: Callable[[Look], bool]) -> None:
        ended = None
        with self._lock:
            self._looks = tuple(filter(wanted, self._looks))
            if not self._looks:
                ended, self._thread = self._thread, None
            self._wake.set()
        if ended is not None and ended is not threading.current_thread():
            ended.join(_JOIN_PATIENCE)

    def _run(self, wake: threading.Event) -> None:
        me = threading.current_thread()
        while True:
            wake.clear()
            with self._lock:
                if self._thread is not me:
                    return
                looks = self._looks
            pause = min((self._look(look) for look in looks), default=self._interval)
            wake.wait(max(pause, _SHORTEST_PAUSE))

    def _look(self, look: Look) -> float:
        try:
            wanted = look()
        except Exception:  # a mistake of ours in one resolver must not blind the others
            logger.exception("looking at %s failed", self._name)
            wanted = None
        return self._interval if wanted is None else min(wanted, self._interval)


class PolledResolver(ABC):
    """A resolver that learns everything by looking. The first news are delivered before `start` returns.

    Args:
        poller: Shared by the resolvers of one discovery.
        name: The service and its registry, for the log.
    """

    def __init__(self, poller: Poller, name: str) -> None:
        self._poller = poller
        self._name = name
        self._feed: Feed | None = None
        self._closed = threading.Event()

    def start(self, listener: Listener) -> None:
        """Look once and deliver what is there, then watch.

        Raises:
            ClosedError: The resolver or its discovery was closed.
        """
        if self._closed.is_set():
            raise ClosedError(f"{self._name} was closed")
        self._feed = Feed(listener, self._name)
        self._look()
        self._poller.add(self._look)
        if self._closed.is_set():  # by another thread, meanwhile
            self._poller.remove(self._look)

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        if self._feed is not None:
            self._feed.close()
            self._poller.remove(self._look)

    def _look(self) -> float | None:
        return None if self._feed is None else self._deliver(self._feed)

    @abstractmethod
    def _deliver(self, feed: Feed) -> float | None:
        """Tell the feed what is there now. Returns the seconds until the next look if the interval is too long."""
