"""Options: everything that can be set, as frozen dataclasses with good defaults.

A value that cannot be right raises `ConfigurationError` where it is given, with the option's name and what would be
right. `clientlb.config.load_options` feeds the same classes from a TOML file and from `CLIENTLB_*` variables.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from tenacity.stop import stop_after_attempt

from clientlb.backoff import full_jitter
from clientlb.errors import ConfigurationError
from clientlb.health_options import HealthOptions
from clientlb.require import frozen, require_int, require_number

if TYPE_CHECKING:
    from tenacity import RetryCallState

    from clientlb.policy import Policy

POLICY_NAMES = (
    "least_time",
    "p2c",
    "least_request",
    "weighted_round_robin",
    "round_robin",
    "random",
    "rendezvous",
    "ring_hash",
)

CallKey: TypeAlias = str | bytes | int
"""Calls with the same key go to the same endpoint; 7 is the same key as "7"."""
Where: TypeAlias = Mapping[str, str]
"""Metadata that an endpoint should have."""

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_IDEMPOTENT_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})  # RFC 9110, 9.2.2
RETRYABLE_STATUSES = frozenset({429, 502, 503, 504})
RETRYABLE_CODES = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED"})


def require_key(key: object) -> None:
    """Refuse what cannot be the key of a call."""
    if key is not None and (not isinstance(key, (str, bytes, int)) or isinstance(key, bool)):
        raise ConfigurationError(f"the key of a call is a {type(key).__name__}; give text, bytes or a whole number")


def require_where(where: object) -> None:
    """Refuse what cannot be the filter of a call."""
    if where is None:
        return
    if not isinstance(where, Mapping) or not all(
        isinstance(name, str) and isinstance(value, str) for name, value in where.items()
    ):
        raise ConfigurationError(
            f"where is {where!r}; give a mapping of metadata names to values, such as {{'version': '2'}}"
        )


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
class ThrottleOptions:
    """When a client refuses calls itself, because the service turns most of them away.

    Args:
        k: Calls that are sent for each one that the service accepts (default 2, as in "Site Reliability Engineering").
            With less, the client is stricter, and slower to notice that the service is well again.
        window: Seconds over which calls count (default 120, as there).
        least: Calls in the window below which none is refused (default 20, as in Kratos).
    """

    k: float = 2.0
    window: float = 120.0
    least: int = 20

    def __post_init__(self) -> None:
        require_number("throttle.k", self.k, at_least=1)
        require_number("throttle.window", self.window, at_least=1)
        require_int("throttle.least", self.least, 0)


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
        if not isinstance(self.budget, BudgetOptions):
            raise ConfigurationError(f"retry.budget is {self.budget!r}; give BudgetOptions(...)")
        if self.hedge is not None and not isinstance(self.hedge, HedgeOptions):
            raise ConfigurationError(f"retry.hedge is {self.hedge!r}; give HedgeOptions(...) or None")
        frozen("retry.avoid", self.avoid, _is_name, "names, such as 'zone', 'host' or a key of the metadata")
        object.__setattr__(self, "avoid", tuple(self.avoid))
        if not isinstance(self.reuse, bool):
            raise ConfigurationError(f"retry.reuse is {self.reuse!r}; give True or False")
        for name, fits, members in (
            ("methods", _is_name, "names of HTTP methods, such as 'GET'"),
            ("statuses", _is_status, "HTTP status codes, 100 to 599"),
            ("codes", _is_name, "names of gRPC status codes, such as 'UNAVAILABLE'"),
        ):
            values = frozen(f"retry.{name}", getattr(self, name), fits, members)
            object.__setattr__(self, name, values)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardOptions:
    """When a server that the registry no longer names is believed to be gone. 0 turns a rule off.

    New servers and new descriptions are believed at once. So is a server that leaves, while the registry is settled and
    most of the list stays. Every other removal waits: more often than not it is the echo of an outage.

    Args:
        hold: Seconds of a healthy registry for which a doubtful removal waits (default 30: about three times the
            sessions of ZooKeeper's clients, after which every living server has announced itself again).
        settle: Seconds after an outage of the registry for which every removal is doubtful (default 30).
        keep_ratio: A removal that leaves less than this share of the list is doubtful (default 0.5; Eureka's
            self-preservation has 0.85, which an ordinary deployment runs into). Removals one by one within `hold`
            seconds count together.
        empty_hold: Seconds for which the list is kept when the registry names nobody (default 60).
    """

    hold: float = 30.0
    settle: float = 30.0
    keep_ratio: float = 0.5
    empty_hold: float = 60.0

    def __post_init__(self) -> None:
        require_number("guard.hold", self.hold, at_least=0)
        require_number("guard.settle", self.settle, at_least=0)
        require_number("guard.keep_ratio", self.keep_ratio, at_least=0, at_most=1)
        require_number("guard.empty_hold", self.empty_hold, at_least=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalOptions:
    """What is recorded of every pick: see `clientlb.journal`.

    Args:
        picks: The last so many picks are kept in memory (default 1000).
        path: A file to which every pick is written as well, as lines of JSON. Services and processes may share one.
            None (default) writes none.
        max_bytes: Size at which the file is renamed, to its name with `.1` at the end, and begun anew (default 64 MiB,
            some 200 000 picks). So both together take at most twice that.
    """

    picks: int = 1000
    path: str | os.PathLike[str] | None = None
    max_bytes: int = 64 * 2**20

    def __post_init__(self) -> None:
        require_int("journal.picks", self.picks, 1)
        require_int("journal.max_bytes", self.max_bytes, 2**20)
        if self.path is not None and (not isinstance(self.path, (str, os.PathLike)) or not os.fspath(self.path)):
            raise ConfigurationError(f"journal.path is {self.path!r}; give the path of a file")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of one service.

    Args:
        policy: Who is next: `"least_time"` (default), `"p2c"`, `"least_request"`, `"weighted_round_robin"`,
            `"round_robin"`, `"random"`, `"rendezvous"`, `"ring_hash"`, or a callable without arguments that makes a
            `Policy`, such as `functools.partial(LeastTime, decay=5.0)`.
        health: When an endpoint is ejected.
        retry: When a call is tried again.
        wait_for_endpoints: Seconds that a call waits for the first list of endpoints (default 5); then it ends in a
            `NoEndpointsError`.
        guard: When a server that the registry no longer names is believed to be gone.
        journal: What is recorded of every pick; None (default) is nothing, and costs nothing.
        deadline: Seconds that a call may take, all attempts and the body of a response included (default None: as long
            as its own timeouts allow). A call inherits the deadline of `clientlb.deadline` besides; the earlier counts.
        attempt_timeout: Seconds that an attempt may take to the head of its response (default None). When they are
            over, a call that may be repeated is.
        deadline_header: The HTTP header that tells a server how much time is left, in milliseconds if the name ends in
            `-ms`, else in seconds (default None: it is not told). gRPC tells it anyhow.
        throttle: Lets the client refuse calls by itself while the service turns most of them away (default None).
    """

    policy: str | Callable[[], Policy] = "least_time"
    health: HealthOptions = field(default_factory=HealthOptions)
    retry: RetryOptions = field(default_factory=RetryOptions)
    wait_for_endpoints: float = 5.0
    guard: GuardOptions = GuardOptions()
    journal: JournalOptions | None = None
    deadline: float | None = None
    attempt_timeout: float | None = None
    deadline_header: str | None = None
    throttle: ThrottleOptions | None = None

    def __post_init__(self) -> None:
        if isinstance(self.policy, str) and self.policy not in POLICY_NAMES:
            raise ConfigurationError(f"policy {self.policy!r} does not exist; known: {', '.join(POLICY_NAMES)}")
        if not isinstance(self.policy, str) and not callable(self.policy):
            raise ConfigurationError(f"policy is {self.policy!r}; give a name or a callable that makes a Policy")
        require_number("wait_for_endpoints", self.wait_for_endpoints, at_least=0)
        for name, kind in (("health", HealthOptions), ("retry", RetryOptions), ("guard", GuardOptions)):
            if not isinstance(getattr(self, name), kind):
                raise ConfigurationError(f"{name} is {getattr(self, name)!r}; give {kind.__name__}(...)")
        if self.journal is not None and not isinstance(self.journal, JournalOptions):
            raise ConfigurationError(f"journal is {self.journal!r}; give JournalOptions(...) or None")
        _require_times(self)
        header = self.deadline_header
        if header is not None and not (isinstance(header, str) and _TOKEN.fullmatch(header)):
            raise ConfigurationError(f"deadline_header is {header!r}; give the name of a header, or None")
        if self.throttle is not None and not isinstance(self.throttle, ThrottleOptions):
            raise ConfigurationError(f"throttle is {self.throttle!r}; give ThrottleOptions(...) or None")

    @property
    def plain(self) -> bool:
        """Calls have neither deadline nor attempt timeout, and are neither hedged nor throttled."""
        return not (self.deadline or self.attempt_timeout or self.throttle or self.retry.hedge)


def _require_times(options: Options | CallOptions) -> None:
    for name in ("deadline", "attempt_timeout"):
        seconds = getattr(options, name)
        if seconds is not None and not (isinstance(options, CallOptions) and seconds == math.inf):
            require_number(name, seconds, above=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """What one call may set for itself: `extensions={"clientlb": {...}}` in HTTP, keywords of the decorator.

    Args:
        idempotent: The call may safely reach two servers. None (default) lets the method decide.
        retry: Replaces the service's retry options for this call; `False` turns retries off and leaves what is a
            failure (`statuses`, `codes`) as the service has it.
        key: Calls with the same key go to the same endpoint, if the policy is `Rendezvous` or `RingHash`. Text, bytes
            or a whole number; 7 is the same key as "7".
        where: Metadata that the endpoint should have, if the policy is wrapped in `Filter`.
        deadline: Replaces the service's; `math.inf` is none. attempt_timeout likewise.
    """

    idempotent: bool | None = None
    retry: RetryOptions | bool = True
    key: CallKey | None = None
    where: Where | None = None
    deadline: float | None = None
    attempt_timeout: float | None = None

    def __post_init__(self) -> None:
        if self.idempotent is not None and not isinstance(self.idempotent, bool):
            raise ConfigurationError(f"idempotent is {self.idempotent!r}; give True, False or None")
        if not isinstance(self.retry, (bool, RetryOptions)):
            raise ConfigurationError(f"retry is {self.retry!r}; give RetryOptions(...) or False")
        require_key(self.key)
        require_where(self.where)
        _require_times(self)

    def retry_options(self, service: RetryOptions) -> RetryOptions:
        """The retry options of the call, given those of its service."""
        if self.retry is True:
            return service
        if self.retry is False:
            return dataclasses.replace(service, stop=stop_after_attempt(1), transparent=0, hedge=None)
        return self.retry

    def times(self, deadline: float | None, attempt_timeout: float | None) -> tuple[float | None, float | None]:
        """Deadline and attempt timeout of the call in seconds, given those of its service; None is none."""
        if self.deadline is not None:
            deadline = None if self.deadline == math.inf else self.deadline
        if self.attempt_timeout is not None:
            attempt_timeout = None if self.attempt_timeout == math.inf else self.attempt_timeout
        return deadline, attempt_timeout

    @classmethod
    def of(cls, value: CallOptions | Mapping[str, Any] | None) -> CallOptions:
        """Take per-call options as an object, as a mapping or not at all.

        Raises:
            ConfigurationError: A key that is no option, or a value out of range.
        """
        if value is None:
            return _NO_CALL_OPTIONS
        if isinstance(value, CallOptions):
            return value
        if not isinstance(value, Mapping):
            raise ConfigurationError(f"call options are {value!r}; give a mapping or CallOptions(...)")
        known = {option.name for option in dataclasses.fields(cls)}
        if unknown := sorted(map(str, set(value) - known)):
            raise ConfigurationError(
                f"call options {', '.join(unknown)} do not exist; known: {', '.join(sorted(known))}"
            )
        return cls(**value)


_NO_CALL_OPTIONS = CallOptions()
NO_RETRIES = RetryOptions(stop=stop_after_attempt(1), transparent=0)
