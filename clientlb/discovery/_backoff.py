"""Backoff: how long to wait before a registry is asked again."""

from __future__ import annotations

import random


class Backoff:
    """Growing pauses, half of each random: many clients lose a registry together and must not return together.

    Args:
        first: Upper bound of the first pause in seconds.
        longest: Upper bound of every pause in seconds.
    """

    def __init__(self, first: float = 0.1, longest: float = 10.0) -> None:
        self._first, self._longest = first, longest
        self._failures = 0

    def succeeded(self) -> None:
        """Start again from the first pause."""
        self._failures = 0

    def failed(self) -> float:
        """Return the pause in seconds after one more failure."""
        pause: float = min(self._longest, self._first * 2 ** min(self._failures, 30))
        self._failures += 1
        return pause * random.uniform(0.5, 1.0)
