"""Types of arguments that several commands have. Each says what would be right."""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Callable


def count(text: str) -> int:
    """A whole number, at least 1."""
    with contextlib.suppress(ValueError):
        if int(text) >= 1:
            return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no count; give a whole number, at least 1")


def seconds(text: str) -> float:
    """A number of seconds above 0."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no time; give a number of seconds above 0")


def at_least(least: float) -> Callable[[str], float]:
    """A number of at least `least`."""

    def number(text: str) -> float:
        with contextlib.suppress(ValueError):
            if least <= float(text) < math.inf:
                return float(text)
        raise argparse.ArgumentTypeError(f"{text!r} is too small or no number; give one of at least {least:g}")

    return number
