"""Balancer: one service. It has the one lock, the one clock and the one source of randomness.

Discovery feeds it with `update` and `error`; calls take a `Pick` from it and report back through it. Everything that
decides (policy, breaker, retry) is pure code that the balancer calls with `now` and `rng` while it holds the lock. The
lock is never held across I/O. Events are noted while it is held, and go out in that order after it was released.

Two tuples carry the pick. `_nodes` has every endpoint, `_ready` those whose breaker is closed; both are replaced, never
changed, so a pick costs the same for ten endpoints and for ten thousand. All that happens rarely (a probe falls due,
a removal has to be believed) waits behind one comparison with `_due`.

News passes the guard (`clientlb.guard`), which holds back what looks like the echo of an outage. What is new in a list
is found before the lock is taken, so a list of thousands keeps no call waiting.
"""

from __future__ import annotations

import random
import threading
import time
from bisect import insort
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from math import inf, log2

from clientlb import events, explain
from clientlb.aio import AsyncWaiters
from clientlb.endpoint import Endpoint
from clientlb.errors import ClosedError, NoEndpointsError
from clientlb.explanation import Explanation
from clientlb.figures import Figures
from clientlb.guard import Guard, Held, Key, Verdict
from clientlb.health.breaker import State
from clientlb.health.judge import Judge
from clientlb.histogram import PER_OCTAVE, bucket, difference, quantiles
from clientlb.journal import Journal
from clientlb.node import LoadReport, Node
from clientlb.options import CallKey, HedgeOptions, Options, Where
from clientlb.outcome import Cause, Outcome
from clientlb.pick import Pick, TriedNodes
from clientlb.policy import Choose, LearningPolicy, Request, TendingPolicy, chooser, make_policy, wants_reports
from clientlb.retry.budget import RetryBudget
from clientlb.retry.throttle import Throttle
from clientlb.stats import ServiceStats, Totals, summarise

# an attribute of an enum class costs CPython 3.11 more than 100 ns, a global 10
_SUCCESS = Outcome.SUCCESS
_IGNORED = Outcome.IGNORED
_APPLICATION = Cause.APPLICATION

_SPARE_AFTER = 0.3
"""Seconds that a call waits for the registry before a list of an earlier time has to do. A local registry answers in
30 ms, and nobody waits gladly for a call that could be made."""

_QUANTILE_LASTS = 3.0
"""Seconds for which a percentile of latencies is used before it is looked up again (as in Finagle)."""


class Balancer:
    """Picks the endpoint of every call to one service.

    Users get balancers from `Services`; made by hand, one is fed through `update`.

    Args:
        service: Name of the service.
        options: The options of this service.
        source: The registry, for people.
        emit: Receives events; called without the lock.
        keep: Called with this balancer, without the lock, when the list that the registry stands for has changed or was
            confirmed for the first time, so that it can be kept for a later time; see `offer`.
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
        keep: Callable[[Balancer], None] | None = None,
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
        self._keep = keep
        self._in_pieces: bool = False
        self._unsorted: bool = False
        self._new_lock()
        self.journal: Journal | None = None
        """What is recorded, if `Options.journal` says so."""
        self._node_type = Node
        if self.options.journal is not None:
            self.journal = Journal(self, self.options.journal)
        self._new_policy()
        budget = self.options.retry.budget
        self._budget = RetryBudget(budget.ratio, budget.reserve, budget.window, clock())
        throttling = self.options.throttle
        self.throttle: Throttle | None = None if throttling is None else Throttle(throttling, clock())
        """Whether calls are refused here, if that is wanted; see `admit`."""
        self.plain: bool = self.options.plain
        """Calls have neither deadline nor attempt timeout, and are neither hedged nor throttled, unless they ask."""
        self._guard = Guard(self.options.guard)
        self._by_key: dict[Key, Node] = {}
        self._nodes: tuple[Node, ...] = ()
        self._ready: tuple[Node, ...] = ()
        self._ejected: tuple[Node, ...] = ()
        self._unreachable: set[Node] = set()
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
        self.remarks: Callable[[], list[str]] = list
        """Says what its list does not show, for `explain()`; see `RemarkingResolver`."""
        self.cached_since: float | None = None
        """Since when a list of an earlier time is used (`offer`), while it is."""
        self._spare: tuple[tuple[Endpoint, ...], float] | None = None
        self._spare_wanted = False
        self._to_keep = False
        self._first_list = True
        self._cached_true_at = 0.0
        self.retries: int = 0
        self.retries_denied: int = 0
        self.hedges: int = 0
        self._quantiles: dict[float, tuple[float, int, float]] = {}
        self._gone = Totals()
        self._figures = Figures(self.created_at)
        self._rows = self._figures.rows
        self._judge = Judge(service, self.options.health, self._figures, self._note, self.created_at)

    # ------------------------------------------------------------------ the side of discovery

    def update(self, endpoints: Iterable[Endpoint]) -> None:
        """Take over the complete list of endpoints, as far as the guard believes it.

        Endpoints that are still there keep their state and their connections; those that left finish the calls they
        have. Who is missing may stay for a while: see `GuardOptions`.
        """
        listed = tuple(endpoints)
        with self._news:
            if not listed and self.updated_at is None:
                self._use_spare()  # an empty first list is judged like any other one: by what was there before
            self._take(listed)
        self._tell()

    def _take(self, listed: tuple[Endpoint, ...]) -> None:
        difference = self._guard.compare(listed)
        with self._changing():
            if self._closed:
                return
            now = self.clock()
            version = None if self.updated_at is None else self.version
            self._first_list = version is None
            self._registry_answered(now)
            self.updated_at = now
            self._spare = None
            failing = {node.endpoint.key for node in {*self._ejected, *self._unreachable}}
            self._obey(self._guard.take(difference, now, failing), now)
            self._drop_hopeless()
            self._set_due()
            self._to_keep = self._to_keep or self.version != version

    def error(self, error: Exception) -> None:
        """Note that the registry could not be read. The last good list stays in use."""
        with self._news:
            with self._changing():
                if self._closed:
                    return
                self.last_error = error
                self._guard.error()
                self._set_due()
                if self.failing_since is None:
                    self.failing_since = self.clock()
                    self._outbox.append(events.DiscoveryFailed(self.service, error, len(self._nodes)))
            if self.updated_at is None:
                self._use_spare()
        self._tell()

    def offer(self, endpoints: Iterable[Endpoint], age: float) -> None:
        """Offer a list of an earlier time, to be used if the registry delivers none.

        It is used when the registry cannot be read, or when a call has waited 0.3 s. The registry's own first list
        replaces it by the rules for the time after an outage.

        Args:
            endpoints: The list.
            age: Seconds since it was true.
        """
        offered = tuple(endpoints)
        with self._news:
            if self._nodes:
                return
            self._spare = (offered, self.clock() - age)
            named_nobody = self.updated_at is not None
            if named_nobody or self._spare_wanted or self.failing_since is not None:
                self._use_spare()
            if named_nobody:
                self._take(())
        self._tell()

    def _use_spare(self) -> None:
        """Use the list that was offered, now or as soon as there is one."""
        with self._changing():
            self._spare_wanted = True
            if self._spare is None or self._closed or self._nodes:
                return
            (endpoints, true_at), self._spare = self._spare, None
            now = self.cached_since = self.clock()
            self._cached_true_at = true_at
            self._obey(self._guard.restore(endpoints), now)
            self._outbox.append(events.SnapshotUsed(self.service, len(self._nodes), now - true_at))

    def _want_spare(self) -> None:
        with self._news:
            if self.updated_at is None:
                self._use_spare()
        self._tell()

    def _registry_answered(self, now: float) -> None:
        silent = [since for since in (self.failing_since, self.cached_since) if since is not None]
        if silent:
            self.failing_since = self.last_error = self.cached_since = None
            self._outbox.append(events.DiscoveryRecovered(self.service, now - min(silent)))

    def _obey(self, verdict: Verdict, now: float) -> None:
        """Publish what the guard decided."""
        for endpoint in verdict.described:
            node = self._by_key[endpoint.key]
            if endpoint.started_at is not None and endpoint.started_at != node.endpoint.started_at:
                node.started = self._started(endpoint, now)
            node.describe(endpoint)
        if verdict.described:
            self.version += 1
            self._nodes = (*self._nodes,)  # another tuple, so that policies look at weights and metadata again
            self._tend_soon()
            self._split(list(self._ejected))
        self._change(verdict.added, verdict.removed, now)
        if verdict.returned:
            self._outbox.append(events.HeldReturned(self.service, tuple(verdict.returned)))
        if verdict.held and verdict.reason is not None:
            seconds = self._guard.until(self._guard.limbo[verdict.held[0].key]) - now
            held = tuple(verdict.held)
            event = events.RemovalHeld(self.service, held, len(self._nodes), verdict.reason.value, seconds)
            self._outbox.append(event)

    def _change(self, added: Collection[Endpoint], removed: Collection[Key], now: float = 0.0) -> None:
        """Let endpoints join and leave. With thousands of them, one that changes costs no look into the others."""
        if not added and not removed:
            return
        leavers = [self._by_key.pop(key) for key in removed]
        joiners = [self._node_type(endpoint, self._figures.new_column()) for endpoint in added]
        for node in joiners:
            node.started = self._started(node.endpoint, now)
        self._by_key |= {node.endpoint.key: node for node in joiners}
        self._gone.add(leavers, self._figures)
        leaving = set(leavers)
        self._unreachable -= leaving
        nodes = [node for node in self._nodes if node not in leaving] if leavers else list(self._nodes)
        if len(joiners) > len(nodes) // 100:
            nodes = sorted(nodes + joiners, key=_key)
        else:
            for node in joiners:
                insort(nodes, node, key=_key)
        self._nodes = tuple(nodes)
        self.version += 1
        self._tend_soon()
        self._split([node for node in self._ejected if node not in leaving])
        if not nodes:
            self._arrived.clear()
        else:
            self._arrived.set()
        left = tuple(node.endpoint for node in leavers)
        self._outbox.append(events.EndpointsChanged(self.service, tuple(added), left, len(nodes)))

    def _started(self, endpoint: Endpoint, now: float) -> float:
        """When a server started, by the balancer's clock. The registry's words are of the clock on the wall."""
        if endpoint.started_at is None:
            return -inf if self._first_list else now
        return now - max(0.0, time.time() - endpoint.started_at)

    def _tend_soon(self) -> None:
        """Let the policy look at the list before the next pick, if it wants to."""
        if self._tend is not None:
            self._tend_due = -inf

    def unreachable(self, node: Node) -> None:
        """Note that no connection to an endpoint could be made: if it is in limbo, it leaves. Calls report this.

        If it is not, that is remembered until a call succeeds there: picks avoid it from now on, so that no other call
        may tell when the registry drops it.
        """
        with self._changing():
            if self._by_key.get(node.endpoint.key) is node:  # else it left meanwhile
                self._unreachable.add(node)
            self._drop_hopeless()
        self._tell()

    def reachable(self, node: Node) -> None:
        """Note that an endpoint that could not be connected to is connected now: if it is ejected, a call may try it.

        Any call may, also one that cannot be repeated: unlike the end of a wait, a connection is good news.
        """
        now = self.clock()
        self._acquire()
        try:
            self._unreachable.discard(node)
            breaker = node.breaker
            if breaker.state is State.OPEN and self._by_key.get(node.endpoint.key) is node:
                breaker.until = min(breaker.until, now - self.options.health.unsafe_probe_after)
                self._set_due()
        finally:
            self._release()

    def _drop_hopeless(self) -> None:
        """Let go of those in limbo who are ejected or unreachable: two witnesses.

        Not while nobody else is healthy, for it may be our own network; nor while the registry names nobody at all,
        for then it is no witness.
        """
        limbo, unreachable = self._guard.limbo, self._unreachable
        if not limbo or not self._guard.named or all(node in unreachable for node in self._ready):
            return
        hopeless = [node.endpoint.key for node in {*self._ejected, *unreachable} if node.endpoint.key in limbo]
        self._guard.drop(hopeless)
        self._let_go(hopeless)

    def _believe_overdue(self, now: float) -> None:
        """Let go of those who were held for long enough. No timer does that: whoever picks or looks does."""
        if not self._closed:
            self._let_go(self._guard.release(now))

    def _let_go(self, keys: Collection[Key]) -> None:
        self._change((), keys)
        self._to_keep = self._to_keep or bool(keys)

    def _catch_up(self) -> None:
        """Do what has fallen due, for somebody who looks without picking."""
        if self._guard.due == inf:
            return
        with self._changing():
            self._believe_overdue(self.clock())
        self._tell()

    # ------------------------------------------------------------------ changes, and those who hear of them

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the lock for a change of the list.

        The garbage collector may end an abandoned call on this very thread, right here. It finds the list in pieces,
        so what it means for health waits until the change is complete.
        """
        with self._lock:
            outer, self._in_pieces = self._in_pieces, True
            try:
                yield
            finally:
                self._in_pieces = outer
                if self._unsorted:
                    self._sort_by_health()

    def _tell(self) -> None:
        """What is left to do after a change, without the lock."""
        if self._arrived.is_set():
            self._waiters.wake()
        self._deliver()
        if self._to_keep:
            self._to_keep = False
            if self._keep is not None:
                self._keep(self)

    def _deliver(self) -> None:
        """Send out events in the order in which things happened, whichever threads were at it.

        One thread at a time does it, also for the others. A hook that causes an event gets it when it has returned.
        """
        while self._outbox and self._delivering.acquire(blocking=False):
            try:
                while self._outbox:
                    self._emit(self._outbox.popleft())
            finally:
                self._delivering.release()

    def _sort_by_health(self) -> None:
        """Rebuild what the pick reads after the state of a breaker has changed."""
        self._unsorted = True
        if self._in_pieces:
            return
        self._in_pieces = True
        try:
            while self._unsorted:
                self._unsorted = False
                self._split([node for node in self._nodes if node.breaker.state is not State.CLOSED])
        finally:
            self._in_pieces = False

    def _split(self, ejected: list[Node]) -> None:
        nodes = self._nodes
        if ejected:
            without = set(ejected)
            ready = tuple(node for node in nodes if node not in without)
            few = len(ready) < self.options.health.panic_below * len(nodes)
        else:
            ready, few = nodes, False
        if ready and not few:
            self._panicking = False
        elif ready and not self._panicking:
            self._panicking = True
            self._outbox.append(events.Panicked(self.service, len(nodes), len(ready)))
        self._ready = nodes if ready and few else ready
        self._judge.nodes, self._judge.ejected = nodes, tuple(ejected)
        self._ejected = self._judge.ejected
        self._set_due()

    def _set_due(self) -> None:
        """Say when the next pick has to look after something that does not happen by itself."""
        due = [self._figures.ends, self._budget.ends, self._guard.due, self._judge.due, self._tend_due]
        self._due = min(due + [node.breaker.until for node in self._ejected])

    # ------------------------------------------------------------------ the side of calls

    def pick(self, *, wait: float | None = None, key: CallKey | None = None, where: Where | None = None) -> Pick:
        """Pick an endpoint, by hand. Use the result as a context manager, or call its `release`.

        Args:
            wait: Seconds to wait for the first list of endpoints; None takes `Options.wait_for_endpoints`.
            key: Picks with the same key get the same endpoint, if the policy is `Rendezvous` or `RingHash`.
            where: Metadata that the endpoint should have, if the policy is wrapped in `Filter`.

        Raises:
            NoEndpointsError: None became known in time, or none has that metadata and the filter has no fallback.
            ConfigurationError: `key` or `where` is of the wrong kind, or the policy heeds no filter.
            ClosedError: The balancer is closed.
        """
        named = key is not None or where is not None
        try_pick = partial(self.try_pick_for, Request.of(key, where)) if named else self.try_pick
        pick = try_pick()
        if pick is not None:
            return pick
        started = self.clock()
        self.wait(self.options.wait_for_endpoints if wait is None else wait)
        pick = try_pick()
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
            pick = self._pick_with_care(exclude, repeatable, now)
        finally:
            self._release()
        if self._outbox:
            self._tell()
        return pick

    def try_pick_for(
        self, request: Request | None, exclude: Collection[Node] = (), repeatable: bool = True
    ) -> Pick | None:
        """Pick an endpoint now for a call with a key or a filter; None when none is known. Never blocks.

        Args:
            request: What the call says about itself.
            exclude: Nodes that were tried already. They are used again only if there is nobody else.
            repeatable: The call can be repeated elsewhere if it fails, so it may probe an ejected endpoint.

        Raises:
            NoEndpointsError: No endpoint matches the filter, which has no fallback.
            ConfigurationError: The policy heeds no filter.
            ClosedError: The balancer is closed.
        """
        now = self.clock()
        self._acquire()
        try:
            pick = self._pick_with_care(exclude, repeatable, now, request)
        finally:
            self._release()
        if self._outbox:
            self._tell()
        return pick

    def _pick_with_care(
        self, exclude: Collection[Node], repeatable: bool, now: float, request: Request | None = None
    ) -> Pick | None:
        """The rare picks: something has fallen due, nodes are to be avoided, nobody is healthy, or the call asks."""
        if self._closed:
            raise ClosedError(f"service {self.service!r}: the balancer is closed")
        self._figures.advance(now)
        self._budget.advance(now)
        if now >= self._guard.due:
            with self._changing():
                self._believe_overdue(now)
        if now >= self._tend_due and self._tend is not None:
            self._tend_due = self._tend(self._nodes, now)
        if self._judge.advance(now, self.rng):
            self._sort_by_health()
        self._set_due()
        probe = self._judge.node_to_probe(exclude, repeatable, now) if now >= self._due else None
        if probe is not None and request is not None and not request.matches(probe.endpoint):
            probe = None
        nodes = self._candidates(exclude) if probe is None else (probe,)
        if not nodes:
            return None
        rng = self.rng
        node = self._choose(nodes, now, rng) if request is None else self._choose_for(request, nodes, now, rng)
        pick = Pick(self, node, now)
        pick.node.in_flight += 1
        if not exclude:
            self._budget.calls += 1
        if probe is not None:
            self._judge.lease(probe, pick, now)
            self._sort_by_health()
        return pick

    def _candidates(self, exclude: Collection[Node]) -> tuple[Node, ...]:
        """The nodes to choose from, in this order: healthy and untried, untried, healthy, anybody."""
        if self._nodes and not self._ready and not self._panicking:
            self._panicking = True
            self._outbox.append(events.Panicked(self.service, len(self._nodes)))
        for nodes in (self._ready, self._nodes):
            untried = tuple(node for node in nodes if node not in exclude) if exclude else nodes
            if untried:
                return untried
        return self._ready or self._nodes

    def has_untried(self, tried: Collection[Node]) -> bool:
        """Whether there is a healthy endpoint that is not among those tried."""
        return any(node not in tried for node in self._ready)

    def report(
        self,
        pick: Pick,
        outcome: Outcome,
        reason: str,
        leaving: int,
        now: float | None = None,
        cause: Cause = _APPLICATION,
    ) -> None:
        """Let the outcome of an attempt reach figures, breaker and policy. Picks call this.

        Args:
            pick: The attempt.
            outcome: How it went.
            reason: Why, in a word or two.
            leaving: 1 when the call is no longer in flight from now on, else 0.
            now: Seconds of the clock, if they were just read.
            cause: What kind of failure it was, if it was one.
        """
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
                if not success:
                    self._figures.failures[node.column] += 1
                    self._changed(self._judge.failed(pick, cause, reason, now, self.rng))
                elif node.troubled:
                    self._succeeded(pick, leaving, now)
                if self._observe is not None:
                    self._observe(node, seconds, success, now)
            elif self._judge.ignored(pick, now):
                self._sort_by_health()
        finally:
            self._release()
        if self._outbox:
            self._tell()

    def note_load(self, node: Node, report: LoadReport | None) -> None:
        """Note what a server said about its load, if it did. Shells call this, while `wants_reports` is true."""
        if report is not None:
            with self._lock:
                node.report = report

    def leave(self, pick: Pick) -> None:
        """Let a call whose outcome was reported before be no longer in flight. Picks call this."""
        node = pick.node
        self._acquire()
        try:
            node.in_flight -= 1
            if node.troubled and pick.observed is _SUCCESS:  # the body was fine, too
                self._succeeded(pick, 1, self.clock())
        finally:
            self._release()
        if self._outbox:
            self._tell()

    def _succeeded(self, pick: Pick, leaving: int, now: float) -> None:
        """Let a success that is news to health reach it."""
        if leaving or pick.node.breaker.state is not State.CLOSED:
            self._unreachable.discard(pick.node)
        self._changed(self._judge.succeeded(pick, leaving, now, self.rng))

    def _changed(self, changed: bool) -> None:
        """Look after what follows when the state of a breaker may have changed."""
        if not changed:
            return
        self._sort_by_health()
        if self._guard.limbo and not self._in_pieces:
            with self._changing():
                self._drop_hopeless()

    def _note(self, event: events.Event) -> None:
        self._outbox.append(event)

    # ------------------------------------------------------------------ waiting for the first list

    def wait(self, timeout: float) -> bool:
        """Block until a list of endpoints has arrived, at most `timeout` seconds."""
        patience = min(timeout, _SPARE_AFTER)
        if self._arrived.wait(patience):
            return True
        self._want_spare()
        return self._arrived.wait(timeout - patience)

    async def wait_async(self, timeout: float) -> bool:
        """The same for a coroutine; blocks no event loop."""
        patience = min(timeout, _SPARE_AFTER)
        if not self._arrived.is_set():
            await self._waiters.wait(self._arrived.is_set, patience)
        if not self._arrived.is_set():
            self._want_spare()
            await self._waiters.wait(self._arrived.is_set, timeout - patience)
        return self._arrived.is_set()

    def no_endpoints(self, asked_at: float) -> NoEndpointsError:
        """Say which service and registry, since when, and what the registry last answered."""
        return NoEndpointsError(explain.no_endpoints(self, self.clock() - asked_at))

    # ------------------------------------------------------------------ insight

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Every endpoint with its live state, ordered by key. To be read, not changed."""
        self._catch_up()
        return self._nodes

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Every endpoint in use, whatever its health, those in `limbo` among them."""
        return tuple(node.endpoint for node in self.nodes)

    @property
    def limbo(self) -> tuple[Endpoint, ...]:
        """Endpoints that the registry no longer names and that are used nevertheless: see `GuardOptions`."""
        return tuple(held.endpoint for held, _ in self.held())

    def held(self) -> tuple[tuple[Held, float], ...]:
        """Those in `limbo` with the reason, and when each is let go in seconds of the clock; inf during an outage."""
        self._catch_up()
        with self._lock:
            return tuple((held, self._guard.until(held)) for held in self._guard.limbo.values())

    @property
    def age(self) -> float | None:
        """Seconds since the registry was last known to be in agreement with this list; 0 while nothing is wrong.

        A watch is silent while nothing changes, so silence is agreement until the watch reports an error. Of a list
        from the disk it is the time since that was written. None before the first list.
        """
        with self._lock:
            if self.cached_since is not None:
                return self.clock() - self._cached_true_at
            if self.updated_at is None:
                return None
            return 0.0 if self.failing_since is None else self.clock() - self.failing_since

    @property
    def stale(self) -> bool:
        """Whether the registry cannot confirm the list: it is failing, or the list is from the disk."""
        return self.failing_since is not None or self.cached_since is not None

    @property
    def registry_state(self) -> str:
        """`"waiting"` for the first list, `"cached"` while one from the disk is used instead, `"ok"` or `"failing"`."""
        if self.cached_since is not None:
            return "cached"
        if self.failing_since is not None:
            return "failing"
        return "waiting" if self.updated_at is None else "ok"

    def stats(self) -> ServiceStats:
        """Figures of the service and of each endpoint over the last 10 to 20 seconds."""
        self._catch_up()
        now = self.clock()
        with self._changing():
            self._figures.advance(now)
            gone = self._gone.settled(self._figures)
            nodes = self._nodes
            counted, before, seconds = self._figures.snapshot(now)
        return summarise(self, nodes, gone, counted, before, seconds)

    def explain(self, picks: int = 5) -> str:
        """Say in words, for each endpoint, why it is picked or not, and what the last picks were chosen among.

        Args:
            picks: How many of the last picks (default 5), if there is a journal: `Options.journal`.
        """
        return str(self.explanation(picks))

    def explanation(self, picks: int = 5) -> Explanation:
        """The same as values."""
        self._catch_up()
        now = self.clock()
        with self._lock:
            counted, _, _ = self._figures.snapshot(now)
            suspended = self._judge.suspended(now)
        return explain.balancer(
            self, self._policy, self._ready, self._lock, counted, now, picks, self._panicking, suspended
        )

    def withdraw_retry(self, now: float) -> bool:
        """Take one retry out of the budget of the service; False when there is none left."""
        with self._lock:
            return self._budget.withdraw(now)

    # ------------------------------------------------------------------ hedges, failure domains and throttling

    def hedge_delay(self, hedge: HedgeOptions, now: float) -> float | None:
        """After how many seconds an attempt is late; None while too little is known to say so."""
        if hedge.delay is not None:
            return max(hedge.least, hedge.delay)
        seconds, attempts, until = self._quantiles.get(hedge.percentile, (0.0, 0, -inf))
        if now >= until:
            with self._lock:
                if now >= self._due:
                    self._figures.advance(now)
                counted, before, _ = self._figures.snapshot(now)
            recent = difference(counted.total(), before.total())
            seconds, attempts = quantiles(recent, (hedge.percentile,))[0] or 0.0, sum(recent)
            self._quantiles[hedge.percentile] = (seconds, attempts, now + _QUANTILE_LASTS)
        return max(hedge.least, seconds) if attempts >= hedge.enough else None

    def try_hedge(self, tried: TriedNodes, avoid: Collection[str], try_pick: Callable[..., Pick | None]) -> Pick | None:
        """Pick an endpoint for a second attempt beside one that is late; None if there is none, or no budget left.

        Args:
            tried: Where the call has been or is now. The second attempt never goes there.
            avoid: `RetryOptions.avoid`.
            try_pick: That of this balancer, for what the call asks for.
        """
        if not self.has_untried(tried) or not self.withdraw_retry(self.clock()):
            return None
        try:
            pick = try_pick(self.to_avoid(tried, avoid), False)
        except (ClosedError, NoEndpointsError):  # the attempt that runs is still good
            return None
        if pick is not None and pick.node in tried:  # nobody else fits, or the others have just left
            pick.release(_IGNORED)
            return None
        return pick

    def supersede(self, pick: Pick, now: float) -> None:
        """End an attempt that another attempt of its call was faster than. Picks call this.

        It is no evidence for the endpoint's health, but of its latency: that is at least the time until now. So it
        counts in the figures and for the policy, as in Finagle.
        """
        node = pick.node
        seconds = now - pick.started
        with self._lock:
            node.in_flight -= 1
            if now >= self._due:
                self._figures.advance(now)
            self._figures.count_with_care(bucket(seconds), node.column)
            if self._judge.ignored(pick, now):
                self._sort_by_health()
            if self._observe is not None:
                self._observe(node, seconds, True, now)
        self._tell()

    def to_avoid(self, tried: TriedNodes, names: Collection[str]) -> TriedNodes:
        """Nodes that an attempt after `tried` keeps away from: those, and all that share something with one of them.

        Args:
            tried: Where the call has been.
            names: What endpoints share: `RetryOptions.avoid`. When nobody healthy would be left, that does not count.
        """
        if not names:
            return tried
        spoilt = {(name, shared) for node in tried for name in names if (shared := _described(node, name))}
        near = tried.and_also(
            node
            for node in self._nodes
            if node not in tried and any((name, _described(node, name)) in spoilt for name in names)
        )
        return near if self.has_untried(near) else tried

    def admit(self) -> bool:
        """Whether a call may be made; False refuses it, because the service turns most calls away."""
        with self._lock:
            return self.throttle is None or self.throttle.admit(self.clock(), self.rng)

    def accepted(self) -> None:
        """A call was not turned away."""
        with self._lock:
            if self.throttle is not None:
                self.throttle.accepted(self.clock())

    def count_hedge(self, event: events.Hedged) -> None:
        """Count and announce a second attempt."""
        with self._lock:
            self.hedges += 1
        self._emit(event)

    def count_retry(self, event: events.Retried | events.RetryDenied) -> None:
        """Count and announce a retry, or one that the budget denied."""
        with self._lock:
            if isinstance(event, events.Retried):
                self.retries += 1
            else:
                self.retries_denied += 1
        self._emit(event)

    # ------------------------------------------------------------------ life

    def close(self) -> None:
        """Take no more news and give no more picks. Calls that run finish. Idempotent."""
        with self._changing():
            self._closed = True
            self._gone.add(self._nodes, self._figures)
            self._ready = ()
            self._nodes = ()
            self._ejected = ()
            self._by_key = {}
            self._judge.nodes = self._judge.ejected = ()
            self._guard = Guard(self.options.guard)
            self._due = inf
        self._arrived.set()
        self._waiters.wake()
        if self.journal is not None:
            self.journal.close()

    def after_fork(self) -> None:
        """Make the copy in a forked child usable: no call runs here, and the lock may have been held."""
        self._new_lock()
        if self.journal is not None:
            self.journal.after_fork()
        if self._own_rng:
            self.rng = random.Random()  # children that draw the same numbers would march in step
        self._new_policy()
        # picks of the parent that end here, such as by garbage collection, must not count: their nodes are left behind
        self._nodes = tuple(node.detached() for node in self._nodes)
        self._by_key = {node.endpoint.key: node for node in self._nodes}
        self._gone.leavers = [node.detached() for node in self._gone.leavers]
        self._unreachable.clear()
        self._judge.after_fork(self.clock())
        self._sort_by_health()
        if self._nodes:
            self._arrived.set()

    def _new_policy(self) -> None:
        self._policy = make_policy(self.options.policy)
        self._choose: Choose = self._policy.choose
        self._choose_for = chooser(self._policy)
        if self.journal is not None:
            self._choose, self._choose_for = self.journal.watch(self._policy, self._choose, self._choose_for)
        self.wants_reports: bool = wants_reports(self._policy)
        self._tend = self._policy.tend if isinstance(self._policy, TendingPolicy) else None
        self._tend_due = inf if self._tend is None else -inf
        self._observe = self._policy.observe if isinstance(self._policy, LearningPolicy) else None

    def _new_lock(self) -> None:
        # reentrant, at the same price: the garbage collector may end an abandoned call while this thread has the lock
        self._lock = threading.RLock()
        self._news = threading.RLock()  # one piece of news at a time; picks go on meanwhile. Taken before the lock
        self._delivering = threading.Lock()
        self._outbox: deque[events.Event] = deque()
        self._in_pieces = self._unsorted = False
        # on the hot path these two cost half of what `with` does (CPython 3.11: 140 ns against 270 ns)
        self._acquire = self._lock.acquire
        self._release = self._lock.release
        self._arrived = threading.Event()
        self._waiters = AsyncWaiters()

    def _emit(self, event: events.Event) -> None:
        if self._emit_event is not None:
            self._emit_event(event)

    def __repr__(self) -> str:
        return f"<Balancer {self.service!r}: {len(self._ready)} of {len(self._nodes)} endpoints healthy>"


def _key(node: Node) -> Key:
    return node.endpoint.key


def _described(node: Node, name: str) -> str | None:
    """What discovery says of an endpoint under a name: zone, host, version, or a key of the metadata."""
    if name in ("zone", "host", "version"):
        return getattr(node.endpoint, name) or node.endpoint.metadata.get(name)
    return node.endpoint.metadata.get(name)
