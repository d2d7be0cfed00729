"""Published policies to compare clientlb's own with, in the simulated fleet. Of these, `prequal` is shipped.

Each is made from its client's `Seat`. Those that need the help of servers (a probe, reports of utilisation, the truth)
get it there: free of charge, never lost, and answered as soon as the network allows.
"""

from __future__ import annotations

from functools import partial

from baselines.least_loaded import LeastLoaded
from baselines.oracle import Oracle
from baselines.pool import C3, Linear, prequal
from baselines.wrr import WeightedRoundRobin
from baselines.yarp import Yarp
from clientlb.simulation import Seated

BASELINES: dict[str, Seated] = {
    "wrr": WeightedRoundRobin,
    "ll": LeastLoaded,
    "yarp": Yarp,
    "linear": Linear,
    "c3": C3,
    "prequal": partial(prequal, q_rif=0.75),
    "oracle": Oracle,
}
