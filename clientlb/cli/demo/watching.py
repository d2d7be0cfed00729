"""What the balancer tells while the demo runs: the rows of the table, events as news, shares of the traffic."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping

from clientlb import events
from clientlb.cli.demo.screen import Row
from clientlb.services import Services
from clientlb.stats import EndpointStats
from clientlb.telemetry.logging import describe

_STATES = {"closed": "in use", "open": "ejected", "half-open": "probed"}
_NAMED_WITHIN = 3.0
"""Seconds for which news of a server waits for its name."""


class Watching:
    """Reads `Services.stats()` and events, and remembers what it saw.

    Args:
        labels: What each service is called on the screen.
    """

    def __init__(self, labels: Mapping[str, str]) -> None:
        self.endpoints_seen: set[tuple[str, str, int]] = set()
        self._labels = labels
        self._rows: dict[tuple[str, str], Row] = {}
        self._looks: list[tuple[float, dict[str, int]]] = []
        self._happened: deque[tuple[float, events.Event]] = deque()

    def note(self, event: events.Event) -> None:
        """Remember an event. A hook: it may be called from any thread."""
        self._happened.append((time.monotonic(), event))

    def look(self, services: Services, names: Mapping[str, str]) -> None:
        """Read the figures as they are now.

        Args:
            services: Whose figures.
            names: Name of each server by its address.
        """
        present: set[tuple[str, str]] = set()
        for service, stats in services.stats().items():
            label = self._labels[service]
            for endpoint in stats.endpoints:
                key = label, endpoint.endpoint
                present.add(key)
                self._rows[key] = _row(label, names.get(endpoint.endpoint, "?"), endpoint)
        for key in self._rows.keys() - present:
            self._rows[key] = self._rows[key].left()
        self._looks.append((time.monotonic(), {row.endpoint: row.calls for row in self._rows.values()}))

    def news(self, names: Mapping[str, str]) -> list[str]:
        """What happened since this was last asked, in words."""
        lines: list[str] = []
        while self._happened:
            noted, event = self._happened[0]
            if isinstance(event, events.EndpointsChanged):
                nameless = any(endpoint.address not in names for endpoint in event.added)
                if nameless and time.monotonic() - noted < _NAMED_WITHIN:
                    break  # the registry knows a server that starts before its name is known here
            self._happened.popleft()
            if isinstance(event, events.EndpointsChanged):
                self.endpoints_seen.update(endpoint.key for endpoint in event.added)
            if isinstance(event, events.Retried):
                continue  # they are counted; a line for each would hide the rest
            line = describe(event)
            for technical, name in (*names.items(), *self._labels.items()):
                line = line.replace(technical, name)
            lines.append(line)
        return lines

    def rows(self) -> list[Row]:
        """All servers as they were at the last look, those that left included; HTTP first."""
        labels = list(self._labels.values())
        return sorted(self._rows.values(), key=lambda row: (labels.index(row.service), row.server))

    def calls(self, address: str) -> int:
        """Attempts at an endpoint, until the last look."""
        return self._looks[-1][1].get(address, 0)

    def share(self, address: str, since: float) -> float:
        """Part of its service's calls that an endpoint got between a moment (of `time.monotonic`) and the last look."""
        now = self._looks[-1][1]
        if address not in now:
            return 0.0
        then = next((calls for moment, calls in reversed(self._looks) if moment <= since), self._looks[0][1])
        service = next(row.service for row in self._rows.values() if row.endpoint == address)
        peers = [row.endpoint for row in self._rows.values() if row.service == service]
        total = sum(now[peer] - then.get(peer, 0) for peer in peers)
        return (now[address] - then.get(address, 0)) / max(total, 1)


def _row(service: str, server: str, stats: EndpointStats) -> Row:
    return Row(
        service=service,
        server=server,
        endpoint=stats.endpoint,
        state=_STATES[stats.state],
        in_flight=stats.in_flight,
        calls=stats.calls,
        failures=stats.failures,
        median=stats.median,
        p99=stats.p99,
    )
