"""A bounded latency histogram of 216 buckets. `clientlb.figures` has the counters of all endpoints of a service.

Buckets grow by a factor of 2**(1/8), so a quantile is off by at most 4.5 % (and below 10 µs by at most 1 µs). They
reach from 0 to 134 s; what takes longer is counted in the last one. Counters only grow: a window is the difference of
two moments.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate
from math import log2

PER_OCTAVE = 8
BUCKETS = 27 * PER_OCTAVE


def new_counts() -> array[int]:
    """Counters of an empty histogram."""
    return array("Q", bytes(8 * BUCKETS))


def bucket(seconds: float) -> int:
    """Index of the bucket that a latency falls into."""
    index = int(log2(1.0 + seconds * 1e6) * PER_OCTAVE) if seconds > 0.0 else 0
    return index if index < BUCKETS else BUCKETS - 1


def upper_bound(index: int) -> float:
    """Upper edge of a bucket in seconds."""
    return float((2.0 ** ((index + 1) / PER_OCTAVE) - 1.0) / 1e6)


_MIDDLES = tuple((2.0 ** ((index + 0.5) / PER_OCTAVE) - 1.0) / 1e6 for index in range(BUCKETS))


def quantiles(counts: Sequence[int], fractions: Iterable[float]) -> list[float | None]:
    """Latencies in seconds at the given fractions (0.5 is the median, 1.0 the longest); None if there are none."""
    running = list(accumulate(counts))
    total = running[-1] if running else 0
    if not total:
        return [None for _ in fractions]
    found: list[float | None] = []
    for fraction in fractions:
        rank = max(1.0, fraction * total)
        found.append(_MIDDLES[next(index for index, below in enumerate(running) if below >= rank)])
    return found


def total_seconds(counts: Sequence[int]) -> float:
    """Sum of all latencies, as exact as the buckets are."""
    return float(sum(count * middle for count, middle in zip(counts, _MIDDLES, strict=True) if count))


def add(one: Sequence[int], other: Sequence[int]) -> array[int]:
    """Add counters bucket by bucket."""
    return array("Q", map(int.__add__, one, other))


def difference(now: Sequence[int], then: Sequence[int]) -> array[int]:
    """What was counted between two moments."""
    return array("Q", map(int.__sub__, now, then))
