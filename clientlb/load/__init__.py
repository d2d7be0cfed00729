"""Load: how a server says in its answers how busy it is, so that clients can weigh it (`WeightedRoundRobin`).

    recorder = LoadRecorder(capacity=40)                    # or utilization=..., any function
    app = clientlb.load.asgi.Reported(app, recorder)        # or clientlb.load.wsgi.Reported
    server = grpc.server(pool, interceptors=[clientlb.load.grpc.Reporting(recorder)])

General layout: the recorder is here; `asgi`, `wsgi` and `grpc` put what it says into answers, as ORCA has it
(`clientlb.orca`). One recorder per process: what a worker says is about itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from clientlb.errors import ConfigurationError
from clientlb.node import LoadReport
from clientlb.orca import to_text

__all__ = ["LoadRecorder"]

_log = logging.getLogger("clientlb.load")
_STEPS = 10
"""So many looks at the totals are kept per window."""


class _Totals(NamedTuple):
    at: float
    requests: float
    errors: float
    busy: float
    """Seconds that requests took, all together."""

    def towards(self, later: _Totals, at: float) -> _Totals:
        """The totals at a moment between these and later ones, of a time in which nothing began or ended."""
        part = (at - self.at) / (later.at - self.at)
        return _Totals(at, *(a + (b - a) * part for a, b in zip(self[1:], later[1:], strict=True)))


class LoadRecorder:
    """Counts the requests of a server, and says how busy it is. Thread-safe.

    Args:
        capacity: Requests that it can serve at once, such as its threads. Its utilization is the mean number of
            requests under way in the window, divided by this.
        utilization: Says the utilization instead, 1.0 being all that it can do: a function that returns at once. If it
            raises, nothing is reported.
        window: Seconds of which rates and mean are taken (default 10).
        clock: Seconds from a fixed point (default `time.monotonic`).

    Raises:
        ConfigurationError: Neither or both of `capacity` and `utilization` are given, or a number is not above 0.
    """

    def __init__(
        self,
        capacity: float | None = None,
        *,
        utilization: Callable[[], float] | None = None,
        window: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if (capacity is None) == (utilization is None):
            raise ConfigurationError("LoadRecorder: give either capacity or utilization")
        for name, value in (("capacity", capacity), ("window", window)):
            if value is not None and not value > 0:
                raise ConfigurationError(f"LoadRecorder: {name} is {value!r}; give a number above 0")
        self._capacity = capacity
        self._utilization = utilization
        self._window = window
        self._clock = clock
        self._lock = threading.Lock()
        self._in_flight = 0
        self._now = _Totals(clock(), 0.0, 0.0, 0.0)
        self._before: deque[_Totals] = deque([self._now])
        self._complained = False

    @property
    def in_flight(self) -> int:
        """Requests under way."""
        return self._in_flight

    def began(self) -> None:
        """Note that a request has come."""
        with self._lock:
            self._advance()
            self._in_flight += 1

    def ended(self, *, failed: bool = False) -> None:
        """Note that a request was served, or failed by the server's fault."""
        with self._lock:
            self._advance()
            self._in_flight -= 1
            self._now = self._now._replace(requests=self._now.requests + 1, errors=self._now.errors + failed)

    def report(self) -> LoadReport:
        """What the server says of itself now. Whatever `utilization` raises comes through."""
        said = None if self._utilization is None else self._utilization()
        with self._lock:
            self._advance()
            now, base = self._now, self._base()
        seconds = max(now.at - base.at, self._window / _STEPS)  # in its first moments, a server has no rate yet
        if said is None:
            assert self._capacity is not None
            said = (now.busy - base.busy) / seconds / self._capacity
        return LoadReport((now.requests - base.requests) / seconds, said, (now.errors - base.errors) / seconds, now.at)

    def text(self) -> str | None:
        """The report as a value of the HTTP header `endpoint-load-metrics`; None if there is none."""
        report = self.report_if_possible()
        return None if report is None else to_text(report)

    def report_if_possible(self) -> LoadReport | None:
        """The same for those who serve: None, and a warning once, if `utilization` raises."""
        try:
            return self.report()
        except Exception:
            if not self._complained:
                self._complained = True
                _log.warning("the utilization of this server is not known", exc_info=True)
            return None

    def _advance(self) -> None:
        """Add the time since the last event to what requests took, and keep the totals now and then."""
        totals, at = self._now, self._clock()
        self._now = now = totals._replace(at=at, busy=totals.busy + self._in_flight * (at - totals.at))
        before = self._before
        if at - before[-1].at >= self._window / _STEPS:
            if totals.at > before[-1].at:  # before a pause in which nothing happened
                before.append(totals)
            if at > before[-1].at:
                before.append(now)
            while len(before) > 1 and before[1].at <= at - self._window:
                before.popleft()

    def _base(self) -> _Totals:
        """The totals of one window ago."""
        first, begins = self._before[0], self._now.at - self._window
        if first.at >= begins:
            return first
        return first.towards(self._before[1] if len(self._before) > 1 else self._now, begins)
