"""How a server leaves without losing a call: the stages, and when one follows the other. Pure: the time is an argument.

    SERVING ──begin──▶ LEAVING ──withdrawn, and propagation over──▶ DRAINING ──nothing in flight, or deadline──▶ LEFT

A server that stops first and deregisters later loses every call that clients send in between; one that does both at
once loses those of the clients that have not heard of it yet. So it goes on serving for the propagation time.
"""

from __future__ import annotations

import enum


class Stage(enum.Enum):
    """How far a server has come on its way out."""

    SERVING = "serving"
    """It is, or wants to be, in the registry."""
    LEAVING = "leaving"
    """It is being taken out of the registry and serves those who have not heard of it."""
    DRAINING = "draining"
    """Nobody should call it any more; it finishes what is under way."""
    LEFT = "left"
    """It may stop."""


class Departure:
    """Where one server stands, and how many requests it works on.

    Args:
        propagation: Seconds that it goes on serving once it is out of the registry.
        drain_timeout: Seconds that requests then get to end.
    """

    def __init__(self, propagation: float, drain_timeout: float) -> None:
        self.stage: Stage = Stage.SERVING
        self.in_flight = 0
        self._propagation = propagation
        self._drain_timeout = drain_timeout
        self._stage_ends = float("inf")

    def begin(self) -> bool:
        """Start to leave; False if that was done before."""
        if self.stage is not Stage.SERVING:
            return False
        self.stage = Stage.LEAVING
        return True

    def withdrawn(self, now: float, *, was_known: bool) -> None:
        """The registry names the server no more. A server that it never named has nobody to wait for."""
        self._stage_ends = now + (self._propagation if was_known else 0.0)

    def pause(self, now: float) -> float | None:
        """Move on as far as it is time to; return the seconds until the next look, or None when it may stop."""
        if self.stage is Stage.LEAVING and now >= self._stage_ends:
            self.stage, self._stage_ends = Stage.DRAINING, now + self._drain_timeout
        if self.stage is Stage.DRAINING and (self.in_flight == 0 or now >= self._stage_ends):
            self.stage = Stage.LEFT
        return None if self.stage is Stage.LEFT else self._stage_ends - now
