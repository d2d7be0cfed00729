"""Gathers what a balancer knows and why: for `explanation()`, `explain()` and for errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf
from typing import TYPE_CHECKING

from clientlb.explanation import EndpointExplanation, Explanation
from clientlb.guard import Held, Reason
from clientlb.health.breaker import Breaker, State
from clientlb.health.checkup import Checkup
from clientlb.node import Node
from clientlb.policy import DescribingPolicy, Policy, ReckoningPolicy

if TYPE_CHECKING:
    from clientlb.balancer import Balancer
    from clientlb.roster import Roster


def balancer(asked: Balancer, roster: Roster, policy: Policy, now: float, picks: int) -> Explanation:
    """Describe a service and each of its endpoints.

    Args:
        asked: Of the service.
        roster: Its endpoints. The lock is taken for one at a time: thousands of them keep no call waiting.
        policy: The one that it uses.
        now: Seconds of its clock.
        picks: How many of the last picks to show, if there is a journal.
    """
    with roster.lock:
        counted, _, _ = roster.figures.snapshot(now)
        suspended = roster.judge.suspended(now)
        ready, panicking = roster.ready, roster.panicking
    nodes = asked.nodes
    held = {each.endpoint.key: _held(each, until, now) for each, until in asked.held()}
    remarks = [*_registry(asked, now), *asked.remarks()]
    if nodes and all(node.breaker.state is not State.CLOSED for node in nodes):
        remarks.append("no endpoint is healthy: all of them are used, whatever their state (panic)")
    elif panicking:
        remarks.append("too few endpoints are healthy: all of them are used, whatever their state (panic)")
    if suspended:
        remarks.append(suspended)
    endpoints = []
    for node in nodes:
        counts, failures = counted.of([node.column])
        with roster.lock:
            endpoints.append(
                EndpointExplanation(
                    node.endpoint,
                    node.breaker.state.value,
                    _verdict(node.breaker, now),
                    node.in_flight,
                    latency_of(policy, node, now),
                    _describe(policy, node, ready, now),
                    sum(counts),
                    failures,
                    held.get(node.endpoint.key),
                    _check(node.breaker.checkup, now),
                )
            )
    journal = asked.journal
    entries = journal.entries(picks) if journal is not None else ()
    return Explanation(
        asked.service,
        asked.options.policy if isinstance(asked.options.policy, str) else type(policy).__name__,
        asked.source,
        sum(1 for each in endpoints if each.state == State.CLOSED.value),
        tuple(remarks),
        tuple(endpoints),
        entries,
        tuple(journal.ago(entry) for entry in entries) if journal is not None else (),
    )


def latency_of(policy: Policy, node: Node, now: float) -> float | None:
    """The seconds that a policy reckons with, if it does."""
    return policy.latency(node, now) if isinstance(policy, ReckoningPolicy) else None


def _describe(policy: Policy, node: Node, ready: Sequence[Node], now: float) -> str | None:
    if not isinstance(policy, DescribingPolicy):
        return None
    try:
        return policy.describe(node, ready, now)
    except Exception as error:  # of a policy of the user's own: who asks why wants an answer nevertheless
        return f"its policy cannot describe it: {error!r}"


def _registry(asked: Balancer, now: float) -> Iterator[str]:
    """What is the matter with the registry, if something is."""
    if asked.cached_since is not None:
        yield (
            f"no list has arrived for {now - asked.created_at:.1f} s; the last good list on disk is in use,"
            f" {asked.age or 0.0:.0f} s old"
        )
    elif asked.updated_at is None:
        yield f"no list has arrived for {now - asked.created_at:.1f} s"
    if asked.failing_since is not None:
        stays = "" if asked.updated_at is None else "; the last good list stays in use"
        yield f"the registry has been failing for {now - asked.failing_since:.1f} s ({asked.last_error}){stays}"


_WHY_HELD = {
    Reason.EMPTY: "it names nobody",
    Reason.MASS: "too many left at once",
    Reason.UNREACHABLE: "nobody whom it names can be reached",
    Reason.UNSETTLED: "it was out of order shortly before",
}


def _held(held: Held, until: float, now: float) -> str:
    end = f"for {until - now:.1f} s more" if until < inf else "until the registry has been healthy for a while"
    missing = f"the registry has not named it for {now - held.since:.1f} s, but {_WHY_HELD[held.reason]}"
    return f"{missing}: it stays in use {end}"


def _verdict(breaker: Breaker, now: float) -> str:
    """Whether an endpoint may be picked, and why not."""
    if breaker.state is State.CLOSED:
        counts = [(breaker.failures, "failure", "failures"), (breaker.refusals, "lost connection", "lost connections")]
        told = [f"{count} {one if count == 1 else f'{many} in a row'}" for count, one, many in counts if count]
        return ", ".join(["may be picked", *told])
    ejected = f"ejected {now - breaker.opened_at:.1f} s ago: {breaker.reason}"
    if breaker.held:
        return f"{ejected}; {_next_check(breaker.checkup, now)}"
    if breaker.state is State.HALF_OPEN:
        return f"{ejected}; a probe is under way"
    due = breaker.until - now
    return f"{ejected}; " + (
        f"next probe in {due:.1f} s" if due > 0 else "the next call that can be repeated probes it"
    )


def _next_check(checkup: Checkup | None, now: float) -> str:
    if checkup is None or checkup.last is None or checkup.last.next_at is None:
        return "it is back when it says so"
    due = checkup.last.next_at - now
    return f"next check in {due:.1f} s" if due > 0 else "a check is under way"


def _check(checkup: Checkup | None, now: float) -> str | None:
    """What active checks found, if there are any."""
    if checkup is None or checkup.last is None:
        return None
    if checkup.failing:
        return checkup.why
    ago = f"{now - checkup.last.began:.1f} s ago"
    return f"check passed {ago}" if checkup.last.passed else f"check failed {ago}: {checkup.last.reason}"


def no_endpoints(asked: Balancer, waited: float) -> str:
    """Say why a call found nobody: both sides, the registry and the time."""
    text = f"service {asked.service!r} has no endpoints: "
    if asked.updated_at is None:
        text += f"{asked.source} delivered no list in {asked.clock() - asked.created_at:.1f} s"
    else:
        text += f"{asked.source} says that nobody is registered, for {asked.clock() - asked.updated_at:.1f} s"
    text += f" (waited {waited:.1f} s)"
    if asked.last_error is not None:
        text += f"; its last error: {asked.last_error}"
    return text
