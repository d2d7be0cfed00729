"""The last yard between a resolver and its listener.

Every backend has the same duties there: no list twice, no stream of equal errors, nothing after `close()`, and a
listener that raises must not end the watch. They are kept here, once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

from clientlb.discovery.base import Listener
from clientlb.endpoint import Endpoint

logger: logging.Logger = logging.getLogger("clientlb.discovery")

ERROR_REPEAT = 10.0
"""Seconds after which an error that goes on is reported again."""

_CLOSE_PATIENCE = 0.5


class Feed:
    """Passes snapshots and errors on to one listener. Thread-safe.

    - A list that equals the one before is passed on only after an error, where it says that the trouble is over.
    - An error with the same text is passed on at most every `ERROR_REPEAT` seconds.
    - Two descriptions of the same server (id, host and port) become one, the last.

    Args:
        listener: Who receives the news.
        name: The service and its registry, for the log.
        clock: Seconds that only grow.
    """

    def __init__(self, listener: Listener, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._listener = listener
        self._name = name
        self._clock = clock
        self._closed = False
        # held while the listener is called, so that close() can wait for that; re-entrant: a listener may close
        self._lock = threading.RLock()
        self._endpoints: tuple[Endpoint, ...] | None = None
        self._error = ""
        self._error_at = 0.0

    def update(self, endpoints: Iterable[Endpoint], *, distinct: bool = False) -> None:
        """Pass the complete list on, unless the listener has it already.

        A backend whose ids are distinct by nature says so with `distinct`, which saves the search for the same server
        described twice. Together with survivors that are the same objects as before, a change in a long list costs
        next to nothing then: tuples compare what is identical without looking at it.
        """
        snapshot = tuple(endpoints if distinct else {endpoint.key: endpoint for endpoint in endpoints}.values())
        with self._lock:
            if self._closed or (snapshot == self._endpoints and not self._error):
                return
            self._endpoints, self._error = snapshot, ""
            try:
                self._listener.update(snapshot)
            except Exception:
                logger.exception("the listener of %s failed", self._name)

    def error(self, error: Exception) -> None:
        """Pass trouble on, unless the listener just heard of the same."""
        text, now = f"{type(error).__name__}: {error}", self._clock()
        with self._lock:
            if self._closed or (text == self._error and now < self._error_at + ERROR_REPEAT):
                return
            self._error, self._error_at = text, now
            try:
                self._listener.error(error)
            except Exception:
                logger.exception("the listener of %s failed", self._name)

    def close(self, patience: float | None = None) -> None:
        """Pass nothing on from now. Idempotent.

        Waits a moment for a delivery that is under way: `patience` seconds (default 0.5).
        """
        self._closed = True
        if self._lock.acquire(timeout=_CLOSE_PATIENCE if patience is None else patience):
            self._lock.release()
