"""Who stands out among its peers, over one interval. Pure arithmetic; `clientlb.health.judge` decides what follows."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from math import sqrt
from typing import TypeVar

from clientlb import histogram
from clientlb.health_options import OutlierOptions, SlowOptions

Name = TypeVar("Name", bound=Hashable)


def failing(counts: Mapping[Name, tuple[int, int]], options: OutlierOptions) -> dict[Name, str]:
    """Who fails more often than its peers, and why it is thought so, the worst first.

    gRFC A50: a success rate below mean - deviations * standard deviation (of the population), or more failures than a
    fixed share. One endpoint is named once, whatever it trips (grpc-go counts it twice).

    Args:
        counts: Attempts and failures of every endpoint that is not ejected.
        options: Of the rule.
    """
    rates = {name: 1.0 - min(bad, calls) / calls for name, (calls, bad) in counts.items() if calls >= options.calls}
    if len(rates) < options.endpoints:
        return {}
    mean = sum(rates.values()) / len(rates)
    deviation = sqrt(sum((rate - mean) ** 2 for rate in rates.values()) / len(rates))
    found: dict[Name, str] = {}
    for name in sorted(rates, key=rates.__getitem__):
        rate = rates[name]
        if 1.0 - rate > options.failures:
            found[name] = f"{1.0 - rate:.0%} of {counts[name][0]} calls failed"
        elif options.deviations and rate < min(mean - options.deviations * deviation, options.least):
            found[name] = f"{1.0 - rate:.1%} of {counts[name][0]} calls failed, {1.0 - mean:.1%} on average"
    return found


def slow(latencies: Mapping[Name, Sequence[int]], options: SlowOptions) -> dict[Name, tuple[str, float]]:
    """Who is slower than its peers, why it is thought so, and the seconds above which a call is slow.

    Args:
        latencies: Of every endpoint that is not ejected, counted as in `clientlb.histogram`.
        options: Of the rule.
    """
    enough = {name: counts for name, counts in latencies.items() if sum(counts) >= options.calls}
    if len(enough) < options.endpoints:
        return {}
    together = histogram.new_counts()
    for counts in enough.values():
        together = histogram.add(together, counts)
    found: dict[Name, tuple[str, float]] = {}
    for name, counts in enough.items():
        (usual,) = histogram.quantiles(histogram.difference(together, counts), (options.quantile,))
        if usual is None:
            continue
        bound = usual * options.factor
        calls = sum(counts)
        late = sum(counts[histogram.bucket(bound) + 1 :])
        if late > options.share * calls:
            found[name] = (f"{late} of {calls} calls took more than {bound * 1000:.0f} ms, unlike its peers'", bound)
    return found
