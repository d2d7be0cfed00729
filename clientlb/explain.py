"""Says in words what a balancer knows and why: for `explain()` and for errors."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import TYPE_CHECKING

from clientlb.figures import Snapshot
from clientlb.guard import Held, Reason
from clientlb.health.breaker import State
from clientlb.node import Node
from clientlb.policy import PeakEwma, Policy

if TYPE_CHECKING:
    from clientlb.balancer import Balancer


def balancer(asked: Balancer, policy: Policy, counted: Snapshot, now: float) -> str:
    """Describe a service, and each of its endpoints on a line of its own."""
    nodes = asked.nodes
    ready = sum(1 for node in nodes if node.breaker.state is State.CLOSED)
    name = asked.options.policy if isinstance(asked.options.policy, str) else type(policy).__name__
    lines = [f"service {asked.service!r}: {ready} of {len(nodes)} endpoints healthy; policy {name}; {asked.source}"]
    lines += [f"  {line}" for line in _registry(asked, now)]
    lines += [f"  {remark}" for remark in asked.remarks()]
    if nodes and not ready:
        lines.append("  no endpoint is healthy: all of them are used, whatever their state (panic)")
    held = {each.endpoint.key: (each, until) for each, until in asked.held()}
    for node in nodes:
        lines.append(f"  {_node(node, policy, counted, now)}")
        if node.endpoint.key in held:
            lines.append(f"    {_held(*held[node.endpoint.key], now)}")
    return "\n".join(lines)


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
        yield (
            f"the registry has been failing for {now - asked.failing_since:.1f} s"
            f" ({asked.last_error}); the last good list stays in use"
        )


_WHY_HELD = {
    Reason.EMPTY: "it names nobody",
    Reason.MASS: "too many left at once",
    Reason.UNSETTLED: "it was out of order shortly before",
}


def _held(held: Held, until: float, now: float) -> str:
    end = f"for {until - now:.1f} s more" if until < inf else "until the registry has been healthy for a while"
    missing = f"the registry has not named it for {now - held.since:.1f} s, but {_WHY_HELD[held.reason]}"
    return f"{missing}: it stays in use {end}"


def _node(node: Node, policy: Policy, counted: Snapshot, now: float) -> str:
    breaker = node.breaker
    parts = [f"{node.in_flight} in flight"]
    if node.endpoint.weight != 1.0:
        parts.append(f"weight {node.endpoint.weight:g}")
    latency = policy.latency(node, now) if isinstance(policy, PeakEwma) else None
    if latency is not None:
        parts.append(f"reckoned with {latency * 1000:.1f} ms")
    counts, failures = counted.of([node.column])
    if calls := sum(counts):
        parts.append(f"{calls} calls, {failures} failed")
    if breaker.state is State.CLOSED:
        verdict = "may be picked"
        if breaker.failures:
            verdict += f", {breaker.failures} {'failure' if breaker.failures == 1 else 'failures in a row'}"
    elif breaker.state is State.OPEN:
        due = breaker.until - now
        probe = f"next probe in {due:.1f} s" if due > 0 else "the next call that can be repeated probes it"
        verdict = f"ejected {now - breaker.opened_at:.1f} s ago: {breaker.reason}; {probe}"
    else:
        verdict = f"ejected {now - breaker.opened_at:.1f} s ago: {breaker.reason}; a probe is under way"
    return f"{node.endpoint}: {verdict} ({'; '.join(parts)})"


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
