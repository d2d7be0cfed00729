"""What an option must be: refuses a value where it is given, with the option's name and what would be right."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

from clientlb.errors import ConfigurationError


def require_int(name: str, value: object, least: int) -> None:
    """Refuse what is no whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigurationError(f"{name} is {value!r}; give a whole number, at least {least}")


def require_number(
    name: str,
    value: object,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    at_most: float = math.inf,
) -> None:
    """Refuse what is no finite number within the bounds."""
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    if abs(number) <= sys.float_info.max and number > above and at_least <= number <= at_most:
        return
    bounds = [f"above {above:g}"] if above > -math.inf else []
    bounds += [f"at least {at_least:g}"] if at_least > -math.inf else []
    bounds += [f"at most {at_most:g}"] if at_most < math.inf else []
    raise ConfigurationError(f"{name} is {value!r}; give a number {' and '.join(bounds)}")


def require_bool(name: str, value: object) -> None:
    """Refuse what is neither True nor False."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} is {value!r}; give True or False")


def require_callable(name: str, value: object, what: str) -> None:
    """Refuse what cannot be called; `what` says what the callable is for."""
    if not callable(value):
        raise ConfigurationError(f"{name} is {value!r}; give {what}")


def require_options(name: str, value: object, *kinds: type, optional: bool = False) -> None:
    """Refuse what is an instance of none of these classes of options, nor None where it is `optional`."""
    if isinstance(value, kinds) or (optional and value is None):
        return
    right = f"{' or '.join(kind.__name__ for kind in kinds)}(...){' or None' if optional else ''}"
    raise ConfigurationError(f"{name} is {value!r}; give {right}")


def frozen(name: str, values: object, fits: Callable[[object], bool], members: str) -> frozenset[Any]:
    """Freeze a collection of members that fit. A string is a collection of its letters, which nobody means."""
    if not isinstance(values, Collection) or isinstance(values, (str, bytes, bytearray, Mapping)):
        raise ConfigurationError(f"{name} is {values!r}; give a set of {members}")
    for value in values:
        if not fits(value):
            raise ConfigurationError(f"{name} has {value!r}; give {members}")
    return frozenset(values)
