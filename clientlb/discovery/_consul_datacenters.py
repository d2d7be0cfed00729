"""One service in several datacenters: asks the one in use, and changes to another when `FailoverRule` says so."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from clientlb.discovery._backoff import Backoff
from clientlb.discovery._consul_failover import FailoverRule
from clientlb.discovery._consul_health import HealthReader
from clientlb.discovery._consul_http import ConsulHTTP
from clientlb.discovery._consul_query import HealthQuery
from clientlb.endpoint import Endpoint

logger: logging.Logger = logging.getLogger("clientlb.discovery")

_LOOKS = 5.0  # how often home is looked at in the time for which it must be well
_LONGEST_PAUSE = 30.0  # between two looks at a home that cannot be asked: each may be a long wait for nothing


class Datacenters:
    """Asks like a `HealthQuery`, which it has several of: the first is home, the others are in order of preference.

    Args:
        name: The service and its registry, for the log.
        queries: One per datacenter.
        rule: When to change.
    """

    def __init__(self, name: str, queries: Sequence[HealthQuery], rule: FailoverRule) -> None:
        self._name = name
        self._queries = queries
        self._rule = rule
        self._used = queries[0]
        self._last: list[Endpoint] | None = None
        self._look_every = rule.return_after / _LOOKS
        self._home_backoff = Backoff(self._look_every, _LONGEST_PAUSE)
        self._home_due = 0.0

    @property
    def reader(self) -> HealthReader:
        """That of the datacenter in use."""
        return self._used.reader

    def ask(self, http: ConsulHTTP, wait: float) -> list[Endpoint]:
        """Return the instances of the datacenter in use, or of another one if it is time to change."""
        self._last = self._ask(http, wait)
        return self._last

    def _ask(self, http: ConsulHTTP, wait: float) -> list[Endpoint]:
        at_home = self._used is self._queries[0]
        if not at_home and (endpoints := self._look_home(http)):
            return endpoints
        calm = at_home and not self._rule.in_trouble
        problem, endpoints = _attempt(self._used, http, wait if calm else min(wait, self._look_every))
        if endpoints:
            self._rule.somebody()
            return endpoints
        leave = self._rule.nobody(time.monotonic())
        if (leave or self._last is None) and (endpoints := self._look_elsewhere(http)):
            return endpoints
        if problem is not None:
            raise problem
        return [] if leave or self._last is None else self._last

    def _look_elsewhere(self, http: ConsulHTTP) -> list[Endpoint]:
        """Move to the first datacenter that has somebody."""
        for query in self._queries:
            if query is not self._used:
                _, endpoints = _attempt(query, http)
                if endpoints:
                    self._move_to(query)
                    return endpoints
        return []

    def _look_home(self, http: ConsulHTTP) -> list[Endpoint]:
        """Move home if it is time to; return nothing otherwise."""
        if time.monotonic() < self._home_due:
            return []
        home, pause = self._queries[0], self._look_every
        problem, endpoints = _attempt(home, http)
        if problem is None:
            self._home_backoff.succeeded()
        else:
            pause = self._home_backoff.failed()
        now = time.monotonic()
        self._home_due = now + pause
        if not self._rule.home(bool(endpoints), now):
            return []
        self._move_to(home)
        return endpoints

    def _move_to(self, query: HealthQuery) -> None:
        self._used = query
        self._rule.moved()
        logger.warning("%s: instances of %s are used", self._name, query.where)


def _attempt(
    query: HealthQuery, http: ConsulHTTP, wait: float | None = None
) -> tuple[Exception | None, list[Endpoint]]:
    """Ask, and return the error instead of raising it; without `wait`, for an answer at once."""
    try:
        return None, query.ask_now(http) if wait is None else query.ask(http, wait)
    except Exception as error:
        return error, []
