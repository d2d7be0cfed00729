"""Writes events to the standard library's logging: one readable line each, with the facts as fields beside it.

It adds no handler and no configuration: a program that does not configure logging stays silent. An event that can
happen with every call (a retry) is DEBUG; one that is about an endpoint or a registry is INFO, or WARNING if somebody
should look. Passwords and tokens, which the errors of registries may quote, are struck out.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Iterable
from math import inf
from typing import Any, TypeVar

from clientlb import events
from clientlb.endpoint import Endpoint

__all__ = ["LoggingHook", "describe", "level_of", "redact_text"]

_MOST_NAMES = 5

_USERINFO = re.compile(r"://[^\s/'\"]\S*@")  # up to the last "@" of the word: a password may hold one
_NAMED_SECRET = re.compile(
    r"""((?:token|password|passwd|secret|api[_-]?key|authorization)[\w-]*["']?\s*[=:]\s*["']?(?:bearer\s+|basic\s+)?)"""
    r"""[^\s&"',;)]+""",
    re.IGNORECASE,
)


def redact_text(text: str) -> str:
    """Strike out what looks like a password or a token, anywhere in a text."""
    return _NAMED_SECRET.sub(r"\1***", _USERINFO.sub("://***@", text))


class LoggingHook:
    """An event hook that logs: `Services(url, hooks=[LoggingHook()])`.

    Each record has `clientlb_event` (the name of the event's class) and one `clientlb_…` attribute per field of the
    event, so that structured formatters need not parse the message.

    Args:
        logger: A logger or its name (default `"clientlb.events"`).
    """

    def __init__(self, logger: str | logging.Logger = "clientlb.events") -> None:
        self._logger = logging.getLogger(logger) if isinstance(logger, str) else logger

    def __call__(self, event: events.Event) -> None:
        """Log one event."""
        level = level_of(event)
        if self._logger.isEnabledFor(level):
            self._logger.log(level, "%s", describe(event), extra=_fields(event))

    def __repr__(self) -> str:
        return f"<LoggingHook {self._logger.name}>"


def level_of(event: events.Event) -> int:
    """The level at which an event is logged; an event that this module does not know is DEBUG."""
    return _LINES[type(event)][0] if type(event) in _LINES else logging.DEBUG


def describe(event: events.Event) -> str:
    """Say an event in one line of words, without secrets."""
    known = _LINES.get(type(event))
    text = known[1](event) if known else repr(event)
    return " ".join(redact_text(f"{event.service}: {text}").split())


_AnyEvent = TypeVar("_AnyEvent", bound=events.Event)
_LINES: dict[type[events.Event], tuple[int, Callable[[Any], str]]] = {}


def _line(kind: type[_AnyEvent], level: int, text: Callable[[_AnyEvent], str]) -> None:
    _LINES[kind] = (level, text)


def _fields(event: events.Event) -> dict[str, object]:
    fields: dict[str, object] = {"clientlb_event": type(event).__name__}
    for field in dataclasses.fields(event):
        fields[f"clientlb_{field.name}"] = _plain(getattr(event, field.name))
    return fields


def _plain(value: object) -> object:
    """A value that any formatter can write."""
    if isinstance(value, (int, float)) or value is None:
        return None if value == inf else value  # JSON has no infinity
    if isinstance(value, tuple):
        return [str(item) for item in value]
    return redact_text(_of_error(value) if isinstance(value, Exception) else str(value))


def _names(endpoints: Iterable[Endpoint]) -> str:
    names = [str(endpoint) for endpoint in endpoints]
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def _of_change(event: events.EndpointsChanged) -> str:
    parts = [f"{_names(event.added)} joined"] if event.added else []
    parts += [f"{_names(event.removed)} left"] if event.removed else []
    return f"{'; '.join(parts)}; now {_count(event.size)}"


_WHY_HELD = {
    "empty": "the registry names nobody",
    "mass": "the registry suddenly lacks many",
    "unreachable": "the registry names only endpoints that cannot be reached",
    "unsettled": "the registry was out of order just before, and lacks some",
}


def _of_held(event: events.RemovalHeld) -> str:
    why = _WHY_HELD.get(event.reason, event.reason)
    return f"{why}; {_names(event.held)} of {_count(event.size)} stay in use for {event.seconds:.0f} s"


def _of_error(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _how_long(seconds: float) -> str:
    return f"for {seconds:.1f} s" if seconds < inf else "until its check passes"


def _count(endpoints: int) -> str:
    return f"{endpoints} endpoint" + ("" if endpoints == 1 else "s")


_line(events.EndpointsChanged, logging.INFO, _of_change)
_line(
    events.DiscoveryFailed,
    logging.WARNING,
    lambda event: f"the registry cannot be read ({_of_error(event.error)}); {_count(event.size)} stay in use",
)
_line(
    events.DiscoveryRecovered,
    logging.INFO,
    lambda event: f"the registry answers again after {event.outage:.1f} s",
)
_line(events.RemovalHeld, logging.WARNING, _of_held)
_line(
    events.HeldReturned,
    logging.INFO,
    lambda event: f"the registry names {_names(event.returned)} again",
)
_line(
    events.SnapshotUsed,
    logging.WARNING,
    lambda event: (
        f"the registry delivered no list; the last good one on disk is used:"
        f" {_count(event.size)}, {event.age:.0f} s old"
    ),
)
_line(
    events.Ejected,
    logging.WARNING,
    lambda event: f"{event.endpoint} gets no calls {_how_long(event.seconds)}: {event.reason}",
)
_line(events.Probing, logging.DEBUG, lambda event: f"{event.endpoint} is offered one call, to see whether it works")
_line(events.Restored, logging.INFO, lambda event: f"{event.endpoint} works again")
_line(
    events.WouldEject,
    logging.WARNING,
    lambda event: f"{event.endpoint} would be ejected by the rule {event.rule}, which is on trial: {event.reason}",
)
_line(
    events.EjectionSuspended,
    logging.WARNING,
    lambda event: f"the trouble looks like our own, none of {_count(event.size)} is ejected: {event.reason}",
)
_line(
    events.EjectionResumed,
    logging.INFO,
    lambda event: f"a call succeeded; endpoints may be ejected again after {event.seconds:.1f} s",
)
_line(
    events.Panicked,
    logging.WARNING,
    lambda event: (
        f"{'no healthy endpoint is' if not event.healthy else f'of the healthy there are only {event.healthy}'}"
        f" left; using all {event.size} whatever their state"
    ),
)
_line(
    events.Retried,
    logging.DEBUG,
    lambda event: (
        f"attempt {event.attempt} at {event.endpoint} failed ({event.reason});"
        f" another one follows after {event.delay * 1000:.0f} ms"
    ),
)
_line(
    events.RetryDenied,
    logging.DEBUG,
    lambda event: f"attempt {event.attempt} at {event.endpoint} failed ({event.reason}) and the retry budget is spent",
)
_line(
    events.Hedged,
    logging.DEBUG,
    lambda event: (
        f"an attempt is late after {event.seconds * 1000:.0f} ms; another one runs at {event.endpoint} beside it"
    ),
)
_line(
    events.HedgeDenied,
    logging.DEBUG,
    lambda event: (
        f"an attempt at {event.endpoint} is late after {event.seconds * 1000:.0f} ms and the retry budget is spent"
    ),
)
