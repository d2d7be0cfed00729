"""Balancer: one service. It has the one lock, the one clock and the one source of randomness.

Discovery feeds it with `update` and `error`; calls take a `Pick` from it and report back through it. Everything that
decides (policy, breaker, retry) is pure code that the balancer calls with `now` and `rng` while it holds the lock. The
lock is never held across I/O, and events go out after it was released.

Two tuples carry the pick. `_nodes` has every endpoint, `_ready` those whose breaker is closed; both are replaced, never
changed, so a pick costs the same for ten endpoints and for ten thousand. All that happens rarely (a probe falls due, an
empty list has to be believed) waits behind one comparison with `_due`.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Collection, Iterable
from math import inf, log2

from clientlb import events, explain
from clientlb.aio import AsyncWaiters
from clientlb.endpoint import Endpoint
from clientlb.errors import ClosedError, NoEndpointsError
from clientlb.figures import Figures
from clientlb.health.breaker import State
from clientlb.histogram import PER_OCTAVE
from clientlb.node import Node
from clientlb.options import Options
from clientlb.outcome import Outcome
from clientlb.pick import Pick
from clientlb.policy import LearningPolicy, make_policy
from clientlb.retry.budget import RetryBudget
from clientlb.stats import ServiceStats, Totals, summarise

# an attribute of an enum class costs CPython 3.11 more than 100 ns, a global 10
_SUCCESS = Outcome.SUCCESS
_IGNORED = Outcome.IGNORED


class Balancer:
    """Picks the endpoint of every call to one service.

    Users get balancers from `Services`; made by hand, one is fed through `update`.

    Args:
        service: Name of the service.
        options: The options of this service.
        source: The registry, for people.
        emit: Receives events; called without the lock.
        clock: Seconds from a fixed point, never going back (default `time.monotonic`).
        rng: Source of all randomness (default: seeded by the system).
    """

    def __init__(
        self,
        service: str,
        options: Options | None = None,
        *,
        source: str = "no registry",
        emit: events.EventHook | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.service = service
        self.options: Options = options or Options()
        self.source = source
        self.rng: random.Random = rng or random.Random()
        self._own_rng = rng is None
        self.clock = clock
        self._emit_event = emit
        self._new_lock()
        self._new_policy()
        budget = self.options.retry.budget
        self._budget = RetryBudget(budget.ratio, budget.reserve, budget.window, clock())
        self._nodes: tuple[Node, ...] = ()
        self._ready: tuple[Node, ...] = ()
        self._ejected: tuple[Node, ...] = ()
        self._due = inf
        self._panicking = False
        self._closed = False
        self.version: int = 0
        """Grows with every change of the list of endpoints."""
        self.created_at: float = clock()
        self.updated_at: float | None = None
        """When discovery last delivered a list, in seconds of the clock."""
        self.failing_since: float | None = None
        """When discovery began to fail, if it fails now."""
        self.last_error: Exception | None = None
        """What discovery last complained about, if it fails now."""
        self.empty_since: float | None = None
        """Since when discovery says that nobody is there, while that is not yet believed."""
        self.retries: int = 0
        self.retries_denied: int = 0
        self._gone = Totals()
        self._figures = Figures(self.created_at)
        self._rows = self._figures.rows

    # ------------------------------------------------------------------ the side of discovery

    def update(self, endpoints: Iterable[Endpoint]) -> None:
        """Take over the complete list of endpoints.

        Endpoints that are still there keep their state and their connections; those that left finish the calls they
        have. An empty list is not believed before `Options.hold_empty` seconds have passed.
        """
        incoming = {endpoint.key: endpoint for endpoint in endpoints}
        now = self.clock()
        with self._lock:
            if self._closed:
                return
            happened = self._registry_answered(now)
            self.updated_at = now
            if not incoming and self._nodes and self.options.hold_empty > 0:
                if self.empty_since is None:
                    self.empty_since = now
                    self._set_due()
                    happened.append(events.EmptyListHeld(self.service, len(self._nodes), self.options.hold_empty))
            else:
                self.empty_since = None
                happened += self._replace(incoming)
            if self._nodes:
                self._arrived.set()
        self._emit(happened)
        if self._arrived.is_set():
            self._waiters.wake()

    def error(self, error: Exception) -> None:
        """Note that the registry could not be read. The last good list stays in use."""
        with self._lock:
            if self._closed:
                return
            self.last_error = error
            self.empty_since = None  # whether anybody is there, nobody can say now
            self._set_due()
            first = self.failing_since is None
            if first:
                self.failing_since = self.clock()
            size = len(self._nodes)
        if first:
            self._emit([events.DiscoveryFailed(self.service, error, size)])

    def _registry_answered(self, now: float) -> list[events.Event]:
        if self.failing_since is None:
            return []
        outage = now - self.failing_since
        self.failing_since = self.last_error = None
        return [events.DiscoveryRecovered(self.service, outage)]

    def _replace(self, incoming: dict[tuple[str, str, int], Endpoint]) -> list[events.Event]:
        current = {node.endpoint.key: node for node in self._nodes}
        added = tuple(endpoint for key, endpoint in incoming.items() if key not in current)
        leavers = [node for key, node in current.items() if key not in incoming]
        changed = False
        for key, node in current.items():
            described = incoming.get(key)
            if described is not None and described != node.endpoint:
                node.describe(described)
                changed = True
        if not added and not leavers:
            self.version += changed
            return []
        self._gone.add(leavers, self._figures)
        self._nodes = tuple(
            current.get(key) or Node(endpoint, self._figures.new_column()) for key, endpoint in sorted(incoming.items())
        )
        self.version += 1
        self._sort_by_health()
        removed = tuple(node.endpoint for node in leavers)
        return [events.EndpointsChanged(self.service, added, removed, len(self._nodes))]

    def _sort_by_health(self) -> None:
        """Rebuild what the pick reads; called when the list or the state of a breaker has changed."""
        nodes = self._nodes
        self._ready = tuple(node for node in nodes if node.breaker.state is State.CLOSED)
        self._ejected = tuple(node for node in nodes if node.breaker.state is not State.CLOSED)
        if self._ready:
            self._panicking = False
        self._set_due()

    def _set_due(self) -> None:
        """Say when the next pick has to look after something that does not happen by itself."""
        due = [self._figures.ends, self._budget.ends, *(node.breaker.until for node in self._ejected)]
        if self.empty_since is not None:
            due.append(self.empty_since + self.options.hold_empty)
        self._due = min(due)

    # ------------------------------------------------------------------ the side of calls

    def pick(self, *, wait: float | None = None) -> Pick:
        """Pick an endpoint, by hand. Use the result as a context manager, or call its `release`.

        Args:
            wait: Seconds to wait for the first list of endpoints; None takes `Options.wait_for_endpoints`.

        Raises:
            NoEndpointsError: None became known in time.
            ClosedError: The balancer is closed.
        """
        pick = self.try_pick()
        if pick is not None:
            return pick
        started = self.clock()
        self.wait(self.options.wait_for_endpoints if wait is None else wait)
        pick = self.try_pick()
        if pick is None:
            raise self.no_endpoints(started)
        return pick

    def try_pick(self, exclude: Collection[Node] = (), repeatable: bool = True) -> Pick | None:
        """Pick an endpoint now; None when none is known. Never blocks.

        Args:
            exclude: Nodes that were tried already. They are used again only if there is nobody else.
            repeatable: The call can be repeated elsewhere if it fails, so it may probe an ejected endpoint.

        Raises:
            ClosedError: The balancer is closed.
        """
        now = self.clock()
        self._acquire()
        try:
            nodes = self._ready
            if nodes and not exclude and now < self._due:
                node = self._choose(nodes, now, self.rng)
                node.in_flight += 1
                self._budget.calls += 1
                return Pick(self, node, now)
            happened: list[events.Event] = []
            pick = self._pick_with_care(exclude, repeatable, now, happened)
        finally:
            self._release()
        self._emit(happened)
        return pick

    def _pick_with_care(
        self, exclude: Collection[Node], repeatable: bool, now: float, happened: list[events.Event]
    ) -> Pick | None:
        """The rare picks: something has fallen due, nodes are to be avoided, or nobody is healthy."""
        if self._closed:
            raise ClosedError(f"service {self.service!r}: the balancer is closed")
        self._figures.advance(now)
        self._budget.advance(now)
        self._set_due()
        if self.empty_since is not None and now >= self.empty_since + self.options.hold_empty:
            self.empty_since = None
            happened += self._replace({})
            self._arrived.clear()
        probe = self._node_to_probe(exclude, repeatable, now) if now >= self._due else None
        nodes = self._candidates(exclude, happened) if probe is None else (probe,)
        if not nodes:
            return None
        pick = Pick(self, self._choose(nodes, now, self.rng), now)
        pick.node.in_flight += 1
        if not exclude:
            self._budget.calls += 1
        if probe is not None:
            probe.breaker.lease(pick, now, self.options.health)
            self._sort_by_health()
            happened.append(events.Probing(self.service, probe.endpoint))
        return pick

    def _node_to_probe(self, exclude: Collection[Node], repeatable: bool, now: float) -> Node | None:
        patience = 0.0 if repeatable else self.options.health.unsafe_probe_after
        for node in self._ejected:
            if node.breaker.probe_due(now - patience) and node not in exclude:
                return node
        return None

    def _candidates(self, exclude: Collection[Node], happened: list[events.Event]) -> tuple[Node, ...]:
        """The nodes to choose from, in this order: healthy and untried, untried, healthy, anybody."""
        if self._nodes and not self._ready and not self._panicking:
            self._panicking = True
            happened.append(events.Panicked(self.service, len(self._nodes)))
        for nodes in (self._ready, self._nodes):
            untried = tuple(node for node in nodes if node not in exclude) if exclude else nodes
            if untried:
                return untried
        return self._ready or self._nodes

    def has_untried(self, tried: Collection[Node]) -> bool:
        """Whether there is a healthy endpoint that is not among those tried."""
        return any(node not in tried for node in self._ready)

    def report(self, pick: Pick, outcome: Outcome, reason: str, leaving: int, now: float | None = None) -> None:
        """Let the outcome of an attempt reach figures, breaker and policy. Picks call this.

        Args:
            pick: The attempt.
            outcome: How it went.
            reason: Why, in a word or two.
            leaving: 1 when the call is no longer in flight from now on, else 0.
            now: Seconds of the clock, if they were just read.
        """
        event = None
        if now is None:
            now = self.clock()
        node = pick.node
        self._acquire()
        try:
            node.in_flight -= leaving
            if outcome is not _IGNORED:
                seconds = now - pick.started
                if pick.observed is None:  # else the head was counted, and then the body broke off
                    if now >= self._due:
                        self._figures.advance(now)
                    bucket = int(log2(1.0 + seconds * 1e6) * PER_OCTAVE)  # histogram.bucket, without the call
                    try:
                        self._rows[bucket][node.column] += 1
                    except (IndexError, OverflowError):
                        self._figures.count_with_care(bucket, node.column)
                success = outcome is _SUCCESS
                if node.troubled or not success:
                    event = self._judge(pick, success, reason, now, leaving)
                if self._observe is not None:
                    self._observe(node, seconds, success, now)
            elif node.breaker.ignored(pick, now):
                self._sort_by_health()
        finally:
            self._release()
        if event is not None:
            self._emit([event])

    def leave(self, pick: Pick) -> None:
        """Let a call whose outcome was reported before be no longer in flight. Picks call this."""
        event = None
        node = pick.node
        self._acquire()
        try:
            node.in_flight -= 1
            if node.troubled and pick.observed is _SUCCESS:  # the body was fine, too
                event = self._judge(pick, True, "", self.clock(), 1)
        finally:
            self._release()
        if event is not None:
            self._emit([event])

    def _judge(self, pick: Pick, success: bool, reason: str, now: float, leaving: int) -> events.Event | None:
        """Let an outcome that is news to the breaker reach it."""
        node = pick.node
        breaker = node.breaker
        health = self.options.health
        event: events.Event | None = None
        if success:
            if not leaving and breaker.state is State.CLOSED:
                return None  # a good head does not make up for failures before: the body is yet to come
            if breaker.succeeded(pick.started):
                # what was known before the trouble says nothing about now
                node.score = -inf
                node.connected = False
                event = events.Restored(self.service, node.endpoint)
        else:
            self._figures.failures[node.column] += 1
            what = "the probe failed" if breaker.probe is pick else f"{health.consecutive_failures} failures in a row"
            if breaker.failed(pick.started, now, health, self.rng):
                breaker.reason = f"{what}, the last one {reason}" if reason else what
                event = events.Ejected(self.service, node.endpoint, breaker.reason, breaker.until - now)
        node.troubled = breaker.state is not State.CLOSED or breaker.failures > 0
        if event is not None:
            self._sort_by_health()
        return event

    # ------------------------------------------------------------------ waiting for the first list

    def wait(self, timeout: float) -> bool:
        """Block until a list of endpoints has arrived, at most `timeout` seconds."""
        return self._arrived.wait(timeout)

    async def wait_async(self, timeout: float) -> bool:
        """The same for a coroutine; blocks no event loop."""
        if not self._arrived.is_set():
            await self._waiters.wait(self._arrived.is_set, timeout)
        return self._arrived.is_set()

    def no_endpoints(self, asked_at: float) -> NoEndpointsError:
        """Say which service and registry, since when, and what the registry last answered."""
        return NoEndpointsError(explain.no_endpoints(self, self.clock() - asked_at))

    # ------------------------------------------------------------------ insight

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Every endpoint with its live state, ordered by key. To be read, not changed."""
        return self._nodes

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Every endpoint that discovery knows, whatever its health."""
        return tuple(node.endpoint for node in self._nodes)

    @property
    def age(self) -> float | None:
        """Seconds since the registry was last known to be in agreement with this list; 0 while nothing is wrong.

        A watch is silent while nothing changes, so silence is agreement until the watch reports an error.
        None before the first list.
        """
        if self.updated_at is None:
            return None
        return 0.0 if self.failing_since is None else self.clock() - self.failing_since

    def stats(self) -> ServiceStats:
        """Figures of the service and of each endpoint over the last 10 to 20 seconds."""
        now = self.clock()
        with self._lock:
            self._figures.advance(now)
            gone = self._gone.settled(self._figures)
            nodes = self._nodes
            counted, before, seconds = self._figures.snapshot(now)
        return summarise(self, nodes, gone, counted, before, seconds)

    def explain(self) -> str:
        """Say in words, for each endpoint, why it is picked or not."""
        now = self.clock()
        with self._lock:
            counted, _, _ = self._figures.snapshot(now)
        return explain.balancer(self, self._policy, counted, now)

    def withdraw_retry(self, now: float) -> bool:
        """Take one retry out of the budget of the service; False when there is none left."""
        with self._lock:
            return self._budget.withdraw(now)

    def count_retry(self, event: events.Retried | events.RetryDenied) -> None:
        """Count and announce a retry, or one that the budget denied."""
        with self._lock:
            if isinstance(event, events.Retried):
                self.retries += 1
            else:
                self.retries_denied += 1
        self._emit([event])

    # ------------------------------------------------------------------ life

    def close(self) -> None:
        """Take no more news and give no more picks. Calls that run finish. Idempotent."""
        with self._lock:
            self._closed = True
            self._gone.add(self._nodes, self._figures)
            self._ready = ()
            self._nodes = ()
            self._ejected = ()
            self._due = inf
        self._arrived.set()
        self._waiters.wake()

    def after_fork(self) -> None:
        """Make the copy in a forked child usable: no call runs here, and the lock may have been held."""
        self._new_lock()
        if self._own_rng:
            self.rng = random.Random()  # children that draw the same numbers would march in step
        self._new_policy()
        # picks of the parent that end here, such as by garbage collection, must not count: their nodes are left behind
        self._nodes = tuple(node.detached() for node in self._nodes)
        self._gone.leavers = [node.detached() for node in self._gone.leavers]
        self._sort_by_health()
        if self._nodes:
            self._arrived.set()

    def _new_policy(self) -> None:
        self._policy = make_policy(self.options.policy)
        self._choose = self._policy.choose
        self._observe = self._policy.observe if isinstance(self._policy, LearningPolicy) else None

    def _new_lock(self) -> None:
        self._lock = threading.Lock()
        # on the hot path these two cost half of what `with` does (CPython 3.11: 140 ns against 270 ns)
        self._acquire = self._lock.acquire
        self._release = self._lock.release
        self._arrived = threading.Event()
        self._waiters = AsyncWaiters()

    def _emit(self, happened: Iterable[events.Event]) -> None:
        if self._emit_event is not None:
            for event in happened:
                self._emit_event(event)

    def __repr__(self) -> str:
        return f"<Balancer {self.service!r}: {len(self._ready)} of {len(self._nodes)} endpoints healthy>"
