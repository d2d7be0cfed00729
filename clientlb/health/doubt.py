"""Whether trouble is our own: this process stood still, or everybody failed at once and nobody answers.

A process that did not run for two seconds finds a heap of timeouts when it runs again, at every endpoint. They say
nothing about the endpoints. No thread watches the clock for that: the balancer is seen at work when calls pick, so a
gap between two sights of it is either a lack of calls or such a pause. The failures after it show which it was.

          a failure of a call from before a gap,
          ┌─────────┐  where most endpoints had such calls   ┌──────────┐
          │ TRUSTING│ ─────────────────────────────────────► │ DOUBTING │  failures wait to be judged
          └─────────┘ ◄───────────────────────────────────── └──────────┘
             ▲   │      the moment is over: they are judged        │ most endpoints failed
             │   │                                                 ▼
             │   │  most endpoints were ejected within 2 s,  ┌───────────┐
             │   └─────────────────────────────────────────► │ SUSPENDED │  nothing is judged, nobody ejected
             │      and nobody has succeeded meanwhile       └───────────┘
             └────────────────────────────────────────────────────┘
                        a call that began after that succeeds

After such a pause, all that waited for the process is sent at once, and the endpoints may be too slow for that:
failures of calls that began in that moment are our own trouble, too, whenever they come.

An endpoint whose failures were excused and that has not answered since is not excused again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from math import inf
from typing import Generic, TypeVar

BEAT = 0.1
"""Seconds. While calls are made, the balancer is seen at work so often."""
GAP = 0.3
"""Seconds. Not seen for so long, it may have stood still."""
MOMENT = 0.5
"""Seconds after a gap for which failures of calls from before are doubtful, and in which what had piled up is sent.
Timers go off together, but a process that runs again has a heap of work before it."""
AT_ONCE = 2.0
"""Seconds. Endpoints that are ejected within this time are ejected at once."""
FEWEST = 3
"""Endpoints. Of one or two, most fail as soon as one more does."""

Subject = TypeVar("Subject", bound=Hashable)
Report = TypeVar("Report")


class Doubt(Generic[Subject, Report]):
    """The state of doubt of one balancer. Subjects are its endpoints, reports their failures.

    Attributes:
        suspended_at: Since when nothing is judged; None while it is.
        woke: When the last gap ended, in seconds of the clock.
        gap: How long it was.
        possible: Whether most endpoints had calls in flight at its end; None while nobody has looked.
        ours: It was found to be a pause of this process.
        due: When the failures that wait have to be judged.
    """

    __slots__ = ("_seen", "_successes", "_trips", "_waiting", "due", "gap", "ours", "possible", "suspended_at", "woke")

    def __init__(self, now: float) -> None:
        self.suspended_at: float | None = None
        self.woke: float = -inf
        self.gap: float = 0.0
        self.due: float = inf
        self._seen = now
        self.possible: bool | None = None
        self.ours: bool = False
        self._waiting: list[tuple[Subject, Report]] = []
        self._trips: deque[tuple[float, Subject]] = deque()
        self._successes = 0

    def seen(self, now: float) -> None:
        """The balancer is at work."""
        gap = now - self._seen
        self._seen = now
        if gap >= GAP:
            self.woke = now
            self.gap = gap
            self.possible = None
            self.ours = False

    @property
    def next_beat(self) -> float:
        """When it should be seen next."""
        return self._seen + BEAT

    def from_before(self, started: float, now: float) -> bool:
        """Whether the failure of an attempt that began at `started` is doubtful."""
        return started < self.woke and now - self.woke <= MOMENT

    def is_backlog(self, started: float) -> bool:
        """Whether an attempt that began at `started` waited for a pause of this process to end, or was cut by it."""
        return self.ours and started <= self.woke + MOMENT

    def wait(self, subject: Subject, report: Report) -> int:
        """Let a failure wait to be judged; returns how many endpoints have such failures."""
        self._waiting.append((subject, report))
        self.due = self.woke + MOMENT
        return len({waiting for waiting, _ in self._waiting})

    def take_waiting(self) -> list[tuple[Subject, Report]]:
        """The failures that wait. They are judged, or forgotten, by whoever takes them."""
        waiting, self._waiting = self._waiting, []
        self.due = inf
        return waiting

    def tripped(self, subject: Subject, endpoints: int, successes: Callable[[], int], now: float) -> list[Subject]:
        """Note that an endpoint is about to be ejected; returns all of those, if most are and nobody succeeded since.

        Args:
            subject: The endpoint.
            endpoints: How many there are.
            successes: Says how many attempts succeeded so far, at anybody. Adding that up takes long in large fleets.
            now: Seconds of the clock.
        """
        trips = self._trips
        while trips and trips[0][0] < now - AT_ONCE:
            trips.popleft()
        if not trips:
            self._successes = successes()
        trips.append((now, subject))
        at_once = list({tripped for _, tripped in trips})
        if endpoints < FEWEST or 2 * len(at_once) <= endpoints:
            return []
        if successes() <= self._successes:
            return at_once
        trips.clear()
        return []

    def suspend(self, now: float) -> None:
        """Judge nothing from now on."""
        self.suspended_at = now
        self._waiting = []
        self._trips.clear()
        self.due = inf

    def ends(self, started: float) -> bool:
        """Whether the success of an attempt that began at `started` ends the suspension."""
        return self.suspended_at is not None and started >= self.suspended_at

    def resume(self) -> None:
        """Judge again."""
        self.suspended_at = None
