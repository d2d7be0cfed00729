"""The header of a request from which its deadline is read."""

from __future__ import annotations

import time

from clientlb.deadlines import read_header

DEADLINE_HEADER = "X-Request-Timeout-Ms"
"""The one that is looked for if none is named. There is no standard. Envoy's `X-Envoy-Expected-Rq-Timeout-Ms` is the
nearest to one, but every Envoy on the way replaces it by the timeout of its own route."""


def expiry_of(name: str, value: str | None) -> float | None:
    """When the time is over that a request has which has just come, in seconds of `time.monotonic`; None: never."""
    seconds = read_header(name, value)
    return None if seconds is None else time.monotonic() + seconds


def left_until(expires: float) -> float:
    """Seconds until that moment, not below 0."""
    return max(0.0, expires - time.monotonic())
