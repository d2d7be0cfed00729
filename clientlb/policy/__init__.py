"""Who is next. PURE: a policy chooses among nodes; `now` and `rng` are arguments.

A policy is one small class. It sees only nodes that may be tried: ejected endpoints and endpoints that a retry has to
avoid were taken out before. `choose` runs under the balancer's lock, so it must be quick and must not block.

General layout: `base` says what a policy is; `p2c`, `least_request`, `least_time`, `weighted`, `simple`, `consistent`
and `prequal` are policies; `subset`, `locality`, `filter` and `slow_start` wrap any of them (`wrapper`); `named` has
the names that options know.
"""

from clientlb.policy.base import (
    Choose,
    ChooseFor,
    DescribingPolicy,
    FilteringPolicy,
    LearningPolicy,
    Policy,
    ReckoningPolicy,
    Request,
    RequestPolicy,
    TendingPolicy,
    chooser,
    fitter,
    wants_reports,
)
from clientlb.policy.consistent import Rendezvous, RingHash
from clientlb.policy.filter import Filter
from clientlb.policy.least_request import LeastRequest
from clientlb.policy.least_time import LeastTime
from clientlb.policy.locality import Locality
from clientlb.policy.named import POLICIES, make_policy
from clientlb.policy.p2c import P2C
from clientlb.policy.prequal import Prequal, Probe
from clientlb.policy.simple import Random, RoundRobin
from clientlb.policy.slow_start import SlowStart
from clientlb.policy.subset import Aperture, Subset
from clientlb.policy.weighted import WeightedRoundRobin
from clientlb.policy.wrapper import Wrapper

__all__ = [
    "P2C",
    "POLICIES",
    "Aperture",
    "Choose",
    "ChooseFor",
    "DescribingPolicy",
    "Filter",
    "FilteringPolicy",
    "LearningPolicy",
    "LeastRequest",
    "LeastTime",
    "Locality",
    "Policy",
    "Prequal",
    "Probe",
    "Random",
    "ReckoningPolicy",
    "Rendezvous",
    "Request",
    "RequestPolicy",
    "RingHash",
    "RoundRobin",
    "SlowStart",
    "Subset",
    "TendingPolicy",
    "WeightedRoundRobin",
    "Wrapper",
    "chooser",
    "fitter",
    "make_policy",
    "wants_reports",
]
