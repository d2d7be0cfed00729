"""The options of health: who may be tried. Part of `clientlb.options`, and as long as the rest of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clientlb.check_options import Check, GrpcCheck, HttpCheck, TcpCheck
from clientlb.require import frozen, require_bool, require_int, require_number, require_options

RULES = ("consecutive", "connect", "ratio", "outlier", "slow", "check")
"""Names of the rules by which an endpoint is ejected: for `HealthOptions.dry_run`, events and metrics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioOptions:
    """Rule `ratio`: too many of the recent calls to an endpoint failed.

    Counted are calls, in ten slices of the window, not averages: a tight burst of failures weighs as much as one that
    is spread, and what was long ago weighs nothing. Answers such as 429 count here, and in no other rule.

    Args:
        enabled: Whether the rule is used (default True).
        success: An endpoint is ejected if a smaller share of its calls succeeds (default 0.8, as in Linkerd).
        window: Seconds over which calls count (default 10, as in Linkerd).
        calls: With fewer calls in the window nothing is concluded (default 10; Linkerd and Finagle have 5).
    """

    enabled: bool = True
    success: float = 0.8
    window: float = 10.0
    calls: int = 10

    def __post_init__(self) -> None:
        require_bool("health.ratio.enabled", self.enabled)
        require_number("health.ratio.success", self.success, above=0, at_most=1)
        require_number("health.ratio.window", self.window, at_least=1, at_most=10)
        require_int("health.ratio.calls", self.calls, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierOptions:
    """Rule `outlier`: an endpoint fails more often than the others do (gRPC's gRFC A50, without its bugs).

    Looked at every 10 seconds, over the calls of those 10 seconds. With the usual 1.9 deviations four endpoints or
    fewer can never have an outlier, and more than a fifth of them never are ejected for the same fault.

    Args:
        enabled: Whether the rule is used.
        deviations: An endpoint is ejected if its success rate is so many standard deviations below the mean (default
            1.9, as in gRPC and Envoy). 0 turns this half of the rule off.
        failures: An endpoint is ejected if more than this share of its calls failed, whatever the others do (default
            0.85, as in gRPC and Envoy). 1 turns this half off.
        endpoints: With fewer endpoints that have enough calls nothing is concluded (default 5, as in both).
        calls: An endpoint with fewer calls in 10 seconds is not looked at (default 50; gRPC and Envoy have 100 for the
            one half and 50 for the other one, but a proxy sees more calls than one process).
        least: A success rate above this is never an outlier, however well the others do (default 0.95): where all are
            nearly perfect, one error in a thousand may be four deviations.
        open_for: Seconds for which it is ejected the first time (default 30, as in both: the rule takes long to see).
    """

    enabled: bool = True
    deviations: float = 1.9
    failures: float = 0.85
    endpoints: int = 5
    calls: int = 50
    least: float = 0.95
    open_for: float = 30.0

    def __post_init__(self) -> None:
        require_bool("health.outlier.enabled", self.enabled)
        require_number("health.outlier.deviations", self.deviations, at_least=0)
        require_number("health.outlier.failures", self.failures, above=0, at_most=1)
        require_int("health.outlier.endpoints", self.endpoints, 2)
        require_int("health.outlier.calls", self.calls, 1)
        require_number("health.outlier.least", self.least, above=0, at_most=1)
        require_number("health.outlier.open_for", self.open_for, above=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowOptions:
    """Rule `slow`: most calls to an endpoint take longer than nearly all calls to its peers.

    The bound is the peers' own, of the same 10 seconds, never a number of seconds: what is slow only they can tell.
    Policies that look at latency avoid slow endpoints anyway; the rule is for those that do not.

    Args:
        enabled: Whether the rule is used (default False: the default policy avoids slow endpoints by itself).
        quantile: Of the peers' latencies (default 0.95).
        factor: A call is slow that takes so many times that (default 3).
        share: An endpoint is ejected if more than this share of its calls is slow (default 0.5).
        endpoints: With fewer endpoints that have enough calls nothing is concluded (default 3).
        calls: An endpoint with fewer calls in 10 seconds is not looked at (default 20).
    """

    enabled: bool = False
    quantile: float = 0.95
    factor: float = 3.0
    share: float = 0.5
    endpoints: int = 3
    calls: int = 20

    def __post_init__(self) -> None:
        require_bool("health.slow.enabled", self.enabled)
        require_number("health.slow.quantile", self.quantile, above=0, at_most=1)
        require_number("health.slow.factor", self.factor, at_least=1)
        require_number("health.slow.share", self.share, at_least=0, at_most=1)
        require_int("health.slow.endpoints", self.endpoints, 2)
        require_int("health.slow.calls", self.calls, 1)


TABLES: dict[str, type[Any]] = {"ratio": RatioOptions, "outlier": OutlierOptions, "slow": SlowOptions}
"""The rules that have options of their own: a table each, in a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthOptions:
    """When an endpoint is ejected, and when it is tried again. `docs/resilience.md` has the rules in one table.

    Args:
        consecutive_failures: Failures in a row that open the breaker (default 5, as in Finagle and Envoy).
        connect_failures: Connections in a row that could not be made, counted apart (default 5, like other failures;
            Ribbon has 3).
        ratio: Too many recent failures.
        outlier: More failures than its peers have.
        slow: Slower than its peers.
        check: Servers are asked how they are, beside the calls: `HttpCheck`, `TcpCheck` or `GrpcCheck` (default None:
            they are judged by calls alone). `Services` does that; a `Balancer` made by hand asks nobody.
        open_for: Seconds that a breaker stays open the first time (default 5, as in Finagle).
        open_for_max: Longest time in seconds; the time doubles, with jitter, each time that the probe fails or the
            endpoint is ejected again (default 300, as in Finagle and Envoy).
        forgive_after: Seconds of good behaviour that take one such doubling back (default 10, gRPC's interval).
        probe_timeout: Seconds after which a probe that never came back is given up and another one is allowed
            (default 30).
        unsafe_probe_after: A probe is offered to calls that can be repeated elsewhere. When none came for this many
            seconds, any call may take it (default 10).
        most_ejected: The rules `ratio`, `outlier` and `slow` eject no more than this share of the endpoints,
            but always one, and never the last healthy one (default 0.5). Failures in a row are no matter of
            degree: the rules `consecutive`, `connect` and `check` know no limit.
        panic_below: When a smaller share of the endpoints is healthy, all are used whatever their state (Envoy: 0.5;
            default 0: only when none is healthy, for else a dead endpoint gets calls while a healthy one exists;
            `docs/simulation.md` has what each costs).
        suspend: Eject nobody while the trouble looks like our own: most endpoints fail at once after this process stood
            still, or most are ejected at once and nobody answers; or nobody passes the active check (default True).
        dry_run: Names of rules (`clientlb.health_options.RULES`) that eject nobody and only say so, by the event
            `WouldEject` (default: none).
    """

    consecutive_failures: int = 5
    connect_failures: int = 5
    ratio: RatioOptions = RatioOptions()
    outlier: OutlierOptions = OutlierOptions()
    slow: SlowOptions = SlowOptions()
    check: Check | None = None
    open_for: float = 5.0
    open_for_max: float = 300.0
    forgive_after: float = 10.0
    probe_timeout: float = 30.0
    unsafe_probe_after: float = 10.0
    most_ejected: float = 0.5
    panic_below: float = 0.0
    suspend: bool = True
    dry_run: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        require_int("health.consecutive_failures", self.consecutive_failures, 1)
        require_int("health.connect_failures", self.connect_failures, 1)
        for rule, kind in TABLES.items():
            require_options(f"health.{rule}", getattr(self, rule), kind)
        require_options("health.check", self.check, HttpCheck, TcpCheck, GrpcCheck, optional=True)
        require_number("health.open_for", self.open_for, above=0)
        require_number("health.open_for_max", self.open_for_max, at_least=self.open_for)
        require_number("health.forgive_after", self.forgive_after, above=0)
        require_number("health.probe_timeout", self.probe_timeout, above=0)
        require_number("health.unsafe_probe_after", self.unsafe_probe_after, at_least=0)
        require_number("health.most_ejected", self.most_ejected, at_least=0, at_most=1)
        require_number("health.panic_below", self.panic_below, at_least=0, at_most=1)
        require_bool("health.suspend", self.suspend)
        rules = f"names of rules: {', '.join(RULES)}"
        object.__setattr__(self, "dry_run", frozen("health.dry_run", self.dry_run, RULES.__contains__, rules))
