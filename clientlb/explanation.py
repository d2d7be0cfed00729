"""Explanation: why each endpoint of a service is picked or not, as values. `str()` of one says it in words.

`Balancer.explanation()` makes them (`clientlb.explain`); `as_json()` is for programs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from clientlb.endpoint import Endpoint
from clientlb.journal.entry import Entry


@dataclass(frozen=True, slots=True)
class EndpointExplanation:
    """What is known of one endpoint, and what follows from it.

    Attributes:
        endpoint: Which one, with its weight, zone and version.
        state: Of its breaker: `"closed"` (it may be picked), `"open"` or `"half-open"`.
        verdict: What that means and why, in words.
        in_flight: Calls that run there.
        latency: Seconds that the policy reckons with, if it reckons with latencies and knows this one.
        policy: What else the policy says of it, such as whether it is in this client's subset.
        calls: Attempts since it joined.
        failures: How many of them failed.
        held: Why it is in use although the registry no longer names it, if that is so.
        check: What its active checks found last, if it has any.
    """

    endpoint: Endpoint
    state: str
    verdict: str
    in_flight: int
    latency: float | None
    policy: str | None
    calls: int
    failures: int
    held: str | None
    check: str | None = None

    def __str__(self) -> str:
        facts = [f"{self.in_flight} in flight"]
        if self.endpoint.weight != 1.0:
            facts.append(f"weight {self.endpoint.weight:g}")
        if self.latency is not None:
            facts.append(f"reckoned with {milliseconds(self.latency)}")
        if self.policy:
            facts.append(self.policy)
        if self.endpoint.zone:
            facts.append(f"zone {self.endpoint.zone}")
        if self.endpoint.version:
            facts.append(f"version {self.endpoint.version}")
        if self.check and self.check not in self.verdict:
            facts.append(self.check)
        if self.calls:
            facts.append(f"{self.calls} calls, {self.failures} failed")
        return f"{self.endpoint}: {self.verdict} ({'; '.join(facts)})"


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is known of a service at one moment.

    Attributes:
        service: Its name.
        policy: Name of the policy.
        source: The registry.
        healthy: Endpoints whose breaker is closed.
        remarks: What is the matter with the registry or with its list, and whether all endpoints are used because none
            is healthy; in words.
        endpoints: All of them, ordered as in the balancer.
        picks: The last ones, the oldest first, if there is a journal.
        ages: How many seconds ago each of those was made.
    """

    service: str
    policy: str
    source: str
    healthy: int
    remarks: tuple[str, ...]
    endpoints: tuple[EndpointExplanation, ...]
    picks: tuple[Entry, ...] = ()
    ages: tuple[float, ...] = ()

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield (
            f"service {self.service!r}: {self.healthy} of {len(self.endpoints)} endpoints healthy;"
            f" policy {self.policy}; {self.source}"
        )
        for remark in self.remarks:
            yield f"  {remark}"
        for each in self.endpoints:
            yield f"  {each}"
            if each.held:
                yield f"    {each.held}"
        if self.picks:
            yield "  the last pick:" if len(self.picks) == 1 else f"  the last {len(self.picks)} picks:"
        for pick, age in zip(self.picks, self.ages, strict=True):
            yield f"    {age:.3f} s ago: {pick}"

    def as_json(self) -> dict[str, Any]:
        """The same as JSON has it. Latencies are in seconds; what is not known is null."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fields | {
            "remarks": list(self.remarks),
            "endpoints": [_endpoint_as_json(each) for each in self.endpoints],
            "picks": [pick.as_json() for pick in self.picks],
            "ages": list(self.ages),
        }


def milliseconds(seconds: float) -> str:
    """A time as people read it: `"4.1 ms"`."""
    return f"{seconds * 1000:.1f} ms"


def _endpoint_as_json(each: EndpointExplanation) -> dict[str, Any]:
    fields = {field.name: getattr(each, field.name) for field in dataclasses.fields(each)}
    return fields | {"endpoint": each.endpoint.as_json()}
