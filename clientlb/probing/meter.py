"""Counts the requests of a server: a `LoadEstimate` with a lock and a clock."""

from __future__ import annotations

import os
import threading
import time
import weakref

from clientlb.probing.load import Load, LoadEstimate

_meters: weakref.WeakSet[LoadMeter] = weakref.WeakSet()


class LoadMeter:
    """Counts the requests of one server process; several ways in (HTTP, gRPC) may share one. Thread-safe.

    running = meter.began()
    try:
        handle()
    finally:
        running.end()
    """

    def __init__(self) -> None:
        self._renew()
        _meters.add(self)

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._estimate = LoadEstimate()

    def began(self) -> Running:
        """Count a request in."""
        with self._lock:
            return Running(self, self._estimate, self._estimate.began(), time.monotonic())

    def load(self) -> Load:
        """The load now."""
        with self._lock:
            return self._estimate.estimate(time.monotonic())


class Running:
    """A request that is being worked on."""

    __slots__ = ("_began_at", "_estimate", "_found", "_meter")

    def __init__(self, meter: LoadMeter, estimate: LoadEstimate, found: int, began_at: float) -> None:
        self._meter = meter
        self._estimate: LoadEstimate | None = estimate
        self._found = found
        self._began_at = began_at

    def end(self, *, telling: bool = True) -> None:
        """Count the request out; a second time has no effect.

        Args:
            telling: Whether its latency says something (default). That of a failure or of a stream does not: a server
                that fails at once would look like the fastest.
        """
        meter = self._meter
        with meter._lock:
            estimate, self._estimate = self._estimate, None
            if estimate is not None:
                now = time.monotonic()
                estimate.ended(self._found, now - self._began_at if telling else None, now)


def _start_anew() -> None:
    """In a forked child: the requests are the parent's, and the lock may have been held."""
    for meter in list(_meters):
        meter._renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
