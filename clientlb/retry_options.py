"""The options of retries: when a call is made again, what that may cost, and when a second attempt starts beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tenacity.stop import stop_after_attempt

from clientlb.backoff import full_jitter
from clientlb.errors import ConfigurationError
from clientlb.require import frozen, require_bool, require_int, require_number, require_options

if TYPE_CHECKING:
    from tenacity import RetryCallState

_IDEMPOTENT_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})  # RFC 9110, 9.2.2
RETRYABLE_STATUSES = frozenset({429, 502, 503, 504})
RETRYABLE_CODES = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED"})


def _is_status(value: object) -> bool:
    return isinstance(value, int) and 100 <= value <= 599


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetOptions:
    """How many retries a service may cost, as a share of its traffic (after Finagle's `RetryBudget`).

    A retry is allowed if there were fewer than `ratio` times the calls in the last `window` seconds, or fewer than
    `reserve` per second in the last 10 seconds.

    Args:
        ratio: Retries allowed per call (default 0.18; Finagle, Linkerd and Envoy have 0.2, but what has gathered before
            an outage is spent in it as well, and servers should never get more than 1.2 times the calls).
        reserve: Retries per second that are allowed however few the calls are (default 1: processes that make fewer
            than 6 calls per second live on it. Finagle adds 10 to the share of the calls, but a Python service runs
            as many processes, each with its own budget; in Envoy, too, it is a floor).
        window: Seconds over which calls count (default 2; Finagle has 10. All of it may be spent at once when
            everything begins to fail: servers that stood still for 2 s would then get 1.6 times the calls).
    """

    ratio: float = 0.18
    reserve: float = 1.0
    window: float = 2.0

    def __post_init__(self) -> None:
        require_number("retry.budget.ratio", self.ratio, at_least=0, at_most=1000)
        require_number("retry.budget.reserve", self.reserve, at_least=0)
        require_number("retry.budget.window", self.window, at_least=1, at_most=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class HedgeOptions:
    """When a second attempt starts while the first one still runs ("The Tail at Scale", Dean and Barroso, 2013).

    Only calls that may be repeated are hedged, only to endpoints that the call has not tried, and each second attempt
    is paid for from the retry budget of the service.

    Args:
        percentile: The second attempt starts when the first one has taken longer than this share of the service's
            attempts in the last 10 to 20 seconds (default 0.95: one call in twenty is hedged).
        delay: Seconds after which it starts, in place of the percentile (default None).
        at_most: Second attempts beside one attempt, each after as long again (default 1). A retry may have as many.
        least: Shortest time in seconds before a second attempt (default 0.001, as in Finagle).
        enough: Attempts that the percentile needs; with fewer nothing is hedged (default 100).
    """

    percentile: float = 0.95
    delay: float | None = None
    at_most: int = 1
    least: float = 0.001
    enough: int = 100

    def __post_init__(self) -> None:
        require_number("retry.hedge.percentile", self.percentile, above=0, at_most=1)
        if self.delay is not None:
            require_number("retry.hedge.delay", self.delay, at_least=0)
        require_int("retry.hedge.at_most", self.at_most, 1)
        require_number("retry.hedge.least", self.least, at_least=0)
        require_int("retry.hedge.enough", self.enough, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryOptions:
    """When a call is tried again, on another endpoint.

    Args:
        stop: A tenacity `stop_*` object (default `stop_after_attempt(3)`: the first attempt and two more).
        wait: A tenacity `wait_*` object: seconds between attempts (default `full_jitter(0.025, 0.25)`, Envoy's 25 ms
            base and 250 ms cap).
        methods: HTTP methods that may be repeated after they were sent (default: RFC 9110's idempotent ones). Here and
            in the next two, any collection will do; it is kept as a frozenset.
        statuses: HTTP status codes worth another endpoint (default 429, 502, 503 and 504).
        codes: Names of gRPC status codes worth another endpoint (default UNAVAILABLE and RESOURCE_EXHAUSTED).
        transparent: How often a call is repeated at once on an endpoint that it has not tried, because the attempt
            surely never reached a server (a refused connection). Neither `stop` nor `wait` nor `budget` has a say in
            that, nor has the method (default 10; gRPC's transparent retries, gRFC A6, have no limit).
        budget: Bounds the retries of the whole service.
        hedge: Starts a second attempt while the first one is slow (default None: never).
        avoid: Names of what a failed endpoint shares with others, such as `("zone",)`, `("host",)` or a key of its
            metadata. Attempts after the first avoid all endpoints that share it, while others are healthy (default:
            none).
        reuse: When every endpoint was tried, the best of them is tried again (default True); False ends the call.
    """

    stop: Callable[[RetryCallState], bool] = field(default_factory=lambda: stop_after_attempt(3))
    wait: Callable[[RetryCallState], float] = field(default_factory=full_jitter)
    methods: frozenset[str] = _IDEMPOTENT_METHODS
    statuses: frozenset[int] = RETRYABLE_STATUSES
    codes: frozenset[str] = RETRYABLE_CODES
    transparent: int = 10
    budget: BudgetOptions = BudgetOptions()
    hedge: HedgeOptions | None = None
    avoid: tuple[str, ...] = ()
    reuse: bool = True

    def __post_init__(self) -> None:
        if not callable(self.stop) or isinstance(self.stop, type):
            raise ConfigurationError(f"retry.stop is {self.stop!r}; give a tenacity stop_* object")
        if not callable(self.wait) or isinstance(self.wait, type):
            raise ConfigurationError(f"retry.wait is {self.wait!r}; give a tenacity wait_* object")
        require_int("retry.transparent", self.transparent, 0)
        require_options("retry.budget", self.budget, BudgetOptions)
        require_options("retry.hedge", self.hedge, HedgeOptions, optional=True)
        frozen("retry.avoid", self.avoid, _is_name, "names, such as 'zone', 'host' or a key of the metadata")
        object.__setattr__(self, "avoid", tuple(self.avoid))
        require_bool("retry.reuse", self.reuse)
        for name, fits, members in (
            ("methods", _is_name, "names of HTTP methods, such as 'GET'"),
            ("statuses", _is_status, "HTTP status codes, 100 to 599"),
            ("codes", _is_name, "names of gRPC status codes, such as 'UNAVAILABLE'"),
        ):
            values = frozen(f"retry.{name}", getattr(self, name), fits, members)
            object.__setattr__(self, name, values)


NO_RETRIES = RetryOptions(stop=stop_after_attempt(1), transparent=0)
