"""One thread that continues calls whose next attempt is due later. It lives only while there is something to continue.

Blocking calls sleep on their own thread. `future()` and response streams have no thread, so their waits end here.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable

_log = logging.getLogger("clientlb.grpc")
_PATIENCE = 1.0


class Later:
    """Runs functions after a while. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._planned: list[tuple[float, int, Callable[[], object]]] = []
        self._count = itertools.count()  # functions cannot be compared, so no two plans may be equal before them
        self._thread: threading.Thread | None = None
        self._last: threading.Thread | None = None  # may be about to end

    def run(self, seconds: float, function: Callable[[], object]) -> None:
        """Run `function` after `seconds`."""
        with self._changed:
            heapq.heappush(self._planned, (time.monotonic() + seconds, next(self._count), function))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="clientlb-grpc-later", daemon=True)
                self._last = self._thread
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """Forget what is planned, and wait until the thread has ended, at most a second.

        No longer, since what it does may wait for whoever closes.
        """
        with self._changed:
            self._planned.clear()
            self._changed.notify()
            thread = self._last
        if thread is not None and thread is not threading.current_thread():
            thread.join(_PATIENCE)

    def _work(self) -> None:
        while True:
            with self._changed:
                while self._planned and (wait := self._planned[0][0] - time.monotonic()) > 0:
                    self._changed.wait(wait)
                if not self._planned:
                    self._thread = None
                    return
                function = heapq.heappop(self._planned)[2]
            try:
                function()
            except Exception:
                _log.exception("a gRPC call could not be continued")
            del function  # it holds a call, which must not live until the next one comes
