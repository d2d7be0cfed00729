"""Options: everything that can be set, as frozen dataclasses with good defaults. Those of health and retries are apart.

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

from clientlb.errors import ConfigurationError
from clientlb.health_options import HealthOptions
from clientlb.require import require_int, require_number, require_options
from clientlb.retry_options import RetryOptions

if TYPE_CHECKING:
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
        require_options("health", self.health, HealthOptions)
        require_options("retry", self.retry, RetryOptions)
        require_options("guard", self.guard, GuardOptions)
        require_options("journal", self.journal, JournalOptions, optional=True)
        require_options("throttle", self.throttle, ThrottleOptions, optional=True)
        _require_times(self)
        header = self.deadline_header
        if header is not None and not (isinstance(header, str) and _TOKEN.fullmatch(header)):
            raise ConfigurationError(f"deadline_header is {header!r}; give the name of a header, or None")

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
