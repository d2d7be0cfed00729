"""What a simulated fleet is made of: sizes, arrivals, work, cores, neighbours. A value; `world` brings it to life.

The numbers are those of Prequal's testbed (Wydrowski et al., "Load is not what you should balance", NSDI '24, section
5) as far as it was published, and otherwise fitted to its figures. Times are in seconds, capacities in cores.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import TYPE_CHECKING, Protocol, TypeAlias

from clientlb.errors import ConfigurationError
from clientlb.options import ThrottleOptions
from clientlb.retry_options import HedgeOptions

if TYPE_CHECKING:
    from clientlb.simulation.world import World

CORES = 6.4
"""What a replica is allocated: a tenth of a host of 64 threads. What its neighbours leave idle comes on top."""


class Work(Protocol):
    """How much work a call is, in core-seconds."""

    @property
    def mean(self) -> float:
        """The expected value."""

    def draw(self, rng: random.Random) -> float:
        """The work of one call."""


@dataclass(frozen=True, slots=True)
class ClippedNormal:
    """max(0, Normal(location, location)): Prequal's queries. Their median is `location`, their mean 8 % more."""

    location: float

    @property
    def mean(self) -> float:
        """The expected value."""
        return 1.083315 * self.location  # the normal distribution and its density at 1, added up

    def draw(self, rng: random.Random) -> float:
        """The work of one call."""
        return max(0.0, rng.gauss(self.location, self.location))


@dataclass(frozen=True, slots=True)
class Exponential:
    """Exponentially distributed work, as queueing theory likes it."""

    mean: float

    def draw(self, rng: random.Random) -> float:
        """The work of one call."""
        return rng.expovariate(1.0 / self.mean)


@dataclass(frozen=True, slots=True)
class Steady:
    """Nearly the same work for every call: Normal(mean, deviation)."""

    mean: float
    deviation: float = 0.0

    def draw(self, rng: random.Random) -> float:
        """The work of one call."""
        return max(0.0, rng.gauss(self.mean, self.deviation))


Antagonists: TypeAlias = tuple[tuple[float, float], ...]
"""What the neighbours on its host leave to a replica: points (u, share of the allocation) of a quantile function."""

MILD: Antagonists = ((0, 1.0), (0.02, 1.0), (0.03, 1.2), (0.10, 1.45), (0.20, 1.6), (0.35, 1.8), (0.60, 2.6), (1, 5))
MID: Antagonists = ((0, 0.8), (0.10, 0.9), (0.20, 1.1), (0.35, 1.4), (0.60, 2.0), (1, 4.5))
HARSH: Antagonists = ((0, 0.6), (0.10, 0.75), (0.20, 0.95), (0.35, 1.2), (0.60, 1.8), (1, 4))
"""Some replicas are hobbled below what they were promised."""


def share_left(antagonists: Antagonists, u: float) -> float:
    """The share of its allocation that a replica at `u` (0 the worst, 1 the best) may use."""
    for (u0, share0), (u1, share1) in pairwise(antagonists):
        if u <= u1:
            return share0 + (share1 - share0) * (u - u0) / (u1 - u0)
    return antagonists[-1][1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One fleet under one load.

    Args:
        clients: Processes that call, each with a balancer of its own (default 100).
        servers: Replicas (default 100).
        load: Calls offered, as a share of what the allocated cores can do.
        calls_per_second: Replaces `load`, where there is no allocation.
        work: Of a call (default Prequal's queries with a median of 80 ms).
        cores: That a replica is allocated (default 6.4).
        antagonists: What neighbours leave of the cores; None: exactly what is allocated, all the time.
        drift: Standard deviation of each replica's step through `antagonists`, once a second (default 0.005).
        hobble: Factor on a replica's capacity while it has more queries than cores (default 1).
        slow_share: Share of the replicas that are slow (default 0).
        slow_factor: How much more work every call is for those (default 2).
        zones: Failure domains; replicas take turns (default 1).
        round_trip: Seconds that the network adds to an attempt (default 0.5 ms).
        deadline: Seconds after which the caller gives up (default 5).
        attempt_timeout: Seconds after which a client gives up an attempt (default: the deadline).
        retries: Whether calls may be tried again, as the options of the balancer say (default True).
        hedge: When a second attempt starts beside a slow one, in place of what the options of the balancer say.
        throttle: When a client refuses calls itself, in place of what the options of the balancer say.
        limit: Queries in flight above which a server turns every other one away (default: none).
        cancels: Servers drop what nobody waits for any more (default True).
        warm_up: Seconds before anything is measured (default 15).
        measured: Seconds that are measured (default 25).
        incidents: Plans what goes wrong, on the world before it starts.
    """

    clients: int = 100
    servers: int = 100
    load: float = 0.9
    calls_per_second: float | None = None
    work: Work = ClippedNormal(0.080)
    cores: float = CORES
    antagonists: Antagonists | None = None
    drift: float = 0.005
    hobble: float = 1.0
    slow_share: float = 0.0
    slow_factor: float = 2.0
    zones: int = 1
    round_trip: float = 0.0005
    deadline: float = 5.0
    attempt_timeout: float | None = None
    retries: bool = True
    hedge: HedgeOptions | None = None
    throttle: ThrottleOptions | None = None
    limit: float = inf
    cancels: bool = True
    warm_up: float = 15.0
    measured: float = 25.0
    incidents: Callable[[World], None] | None = None

    def __post_init__(self) -> None:
        for name, value in (("clients", self.clients), ("servers", self.servers), ("measured", self.measured)):
            if not value > 0:
                raise ConfigurationError(f"simulation: {name} is {value!r}; give a number above 0")
        if self.calls_per_second is None and self.cores == inf:
            raise ConfigurationError(
                "simulation: without an allocation of cores there is no load; give calls_per_second"
            )

    @property
    def rate(self) -> float:
        """Calls per second of the whole fleet."""
        if self.calls_per_second is not None:
            return self.calls_per_second
        slow_down = 1.0 + self.slow_share * (self.slow_factor - 1.0)
        return self.load * self.servers * self.cores / (self.work.mean * slow_down)

    @property
    def ends(self) -> float:
        """Seconds from the start to the end of what is measured."""
        return self.warm_up + self.measured
