"""The virtual clock, and the heap of what is still to happen. One thread, no waiting: time jumps from event to event.

Events of the same moment happen in the order in which they were planned, so a run depends on nothing but its seed.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any


class Loop:
    """Runs actions at moments of virtual time.

    Attributes:
        now: Seconds since the start of the run.
    """

    __slots__ = ("_planned", "_turn", "now")

    def __init__(self) -> None:
        self.now: float = 0.0
        self._planned: list[tuple[float, int, Callable[[Any], object], Any]] = []
        self._turn = 0

    def clock(self) -> float:
        """The time, as a balancer wants to read it."""
        return self.now

    def at(self, moment: float, action: Callable[[Any], object], argument: Any = None) -> None:
        """Plan `action(argument)` for a moment, which is not in the past."""
        self._turn += 1
        heappush(self._planned, (moment, self._turn, action, argument))

    def after(self, seconds: float, action: Callable[[Any], object], argument: Any = None) -> None:
        """Plan `action(argument)` for `seconds` from now."""
        self._turn += 1
        heappush(self._planned, (self.now + seconds, self._turn, action, argument))

    def run(self, until: float) -> None:
        """Let everything happen that is planned up to a moment, and all that follows from it in that time."""
        planned = self._planned
        while planned and planned[0][0] <= until:
            self.now, _, action, argument = heappop(planned)
            action(argument)
        self.now = until
