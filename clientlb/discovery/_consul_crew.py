"""A bounded number of threads and connections that watch an unbounded number of services.

A blocking query holds a connection for as long as it waits, and an agent allows 200 of them per client address. So a
discovery has a crew of at most `size` threads with a connection each. As long as there are fewer watches than that,
each has a thread for itself and its queries wait for the full time. If there are more, they take turns: the one that
has waited longest is next, and queries wait only for so long that everybody has a turn within `turn_within` seconds.
What changed between two turns of a watch is answered at once, for the index says so: news is late, but never lost.

An eighth of the crew is kept for watches that are new, which have index 0 and are answered at once. Another eighth
never waits for the full time: when a crowd comes, it does not have to wait for those who were there before it.
"""

from __future__ import annotations

import heapq
import itertools
import os
import threading
import time
from collections.abc import Callable
from typing import Protocol

from clientlb.discovery._consul_http import ConsulHTTP
from clientlb.errors import ClosedError

_LEAST_TURN = 0.05
_BEFORE_ALL_OTHERS = 0.0


class Watch(Protocol):
    """Something that asks one question again and again."""

    def ask(self, http: ConsulHTTP, wait: float) -> float:
        """Ask once, waiting up to `wait` seconds for news; return the seconds until it wants to ask again.

        Never raises.
        """


class Crew:
    """Threads that take watches from a queue. They start with the first watches and end with the last.

    Args:
        connect: Makes the connection of a thread.
        size: The most threads.
        wait: Seconds that a query waits for news when there is no crowd.
        turn_within: Seconds within which every watch is asked when there is a crowd.
    """

    def __init__(self, connect: Callable[[], ConsulHTTP], size: int, wait: float, turn_within: float) -> None:
        self.pid = os.getpid()
        self._connect = connect
        self._size = size
        kept = max(1, size // 8)
        self._room = max(1, size - kept)  # for queries that wait at all
        self._room_to_settle = size - 2 * kept  # for those that wait for the full time
        self._full_wait = wait
        self._turn_within = turn_within
        self._changed = threading.Condition()
        self._queue: list[tuple[float, int, Watch]] = []  # a heap: when it is due, and who was first
        self._number = itertools.count()
        self._watches: set[Watch] = set()
        self._asking: dict[Watch, ConsulHTTP] = {}
        self._waiting: set[Watch] = set()  # those whose query may wait
        self._settled: set[Watch] = set()  # those whose query waits for the full time
        self._threads: set[threading.Thread] = set()
        self._closed = False

    def add(self, watch: Watch) -> None:
        """Ask for this watch from now on. Raises ClosedError after `close`."""
        with self._changed:
            if self._closed:
                raise ClosedError("the discovery is closed")
            self._watches.add(watch)
            self._enqueue(watch, _BEFORE_ALL_OTHERS)  # somebody waits for its first answer
            if len(self._threads) < min(self._size, len(self._watches)):
                name = f"clientlb-consul-{len(self._threads) + 1}"
                thread = threading.Thread(target=self._work, name=name, daemon=True)
                self._threads.add(thread)
                thread.start()

    def drop(self, watch: Watch) -> None:
        """Ask for this watch no longer, and end a question that is under way. Idempotent."""
        with self._changed:
            self._watches.discard(watch)
            self._hang_up(watch)
            self._changed.notify_all()

    def close(self) -> None:
        """End everything, without waiting for it. Idempotent."""
        with self._changed:
            self._closed = True
            self._watches.clear()
            self._queue.clear()
            for watch in self._asking:
                self._hang_up(watch)
            self._changed.notify_all()

    def join(self, deadline: float) -> None:
        """Wait for the threads to end, until the monotonic clock says `deadline`."""
        with self._changed:
            threads = list(self._threads)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        http = self._connect()
        try:
            while (turn := self._take(http)) is not None:
                watch, wait = turn
                pause = watch.ask(http, wait)
                if self._give_back(watch, pause):
                    http = self._connect()
        finally:
            http.close()

    def _take(self, http: ConsulHTTP) -> tuple[Watch, float] | None:
        """Wait for the next watch; None if this thread is not needed any more."""
        with self._changed:
            while not self._closed and len(self._threads) <= len(self._watches):
                while self._queue and self._queue[0][2] not in self._watches:
                    heapq.heappop(self._queue)
                due = self._queue[0][0] if self._queue else None
                if due is None or (due != _BEFORE_ALL_OTHERS and len(self._waiting) >= self._room):
                    self._changed.wait()
                elif (pause := due - time.monotonic()) > 0:
                    self._changed.wait(pause)
                else:
                    watch = heapq.heappop(self._queue)[2]
                    self._asking[watch] = http
                    return watch, 0.0 if due == _BEFORE_ALL_OTHERS else self._wait_of(watch)
            self._threads.discard(threading.current_thread())
            self._changed.notify()  # what this thread was told may be for another one
            return None

    def _give_back(self, watch: Watch, pause: float) -> bool:
        """Put the watch back into the queue; returns whether its connection was ended meanwhile."""
        with self._changed:
            http = self._asking.pop(watch)
            self._waiting.discard(watch)
            self._settled.discard(watch)
            if watch in self._watches:
                self._enqueue(watch, time.monotonic() + pause)
            self._changed.notify()  # there is room for another one
            return http.closed and not self._closed

    def _enqueue(self, watch: Watch, due: float) -> None:
        heapq.heappush(self._queue, (due, next(self._number), watch))
        self._changed.notify()

    def _wait_of(self, watch: Watch) -> float:
        """How long its query may wait. Watches that wait for the full time take no turns."""
        self._waiting.add(watch)
        if len(self._watches) <= self._room_to_settle:
            self._settled.add(watch)
            return self._full_wait
        crew, crowd = self._room - len(self._settled), len(self._watches) - len(self._settled)
        return min(self._full_wait, max(_LEAST_TURN, self._turn_within * crew / max(crowd, 1)))

    def _hang_up(self, watch: Watch) -> None:
        http = self._asking.get(watch)
        if http is not None:
            http.close()
