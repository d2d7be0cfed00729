"""Balancer: one service. It has the one clock and the one source of randomness; its roster has the one lock.

Discovery feeds it with `update` and `error`; calls take a `Pick` from it and report back through it. Everything that
decides (policy, breaker, retry) is pure code that is called with `now` and `rng` while the lock is held. The lock is
never held across I/O. Events are noted while it is held, and go out in that order after it was released.

General layout: `roster` has the endpoints in use, sorted by health, and the lock; `news` is the side of discovery and
changes the roster; `retrying` says what a call may cost beyond its first attempt; `arrival` is where calls wait for the
first list, `outbox` where events wait for their delivery.
Here is the side of calls.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterable
from functools import partial
from math import floor, log2

from clientlb import events, explain
from clientlb.endpoint import Endpoint
from clientlb.errors import ClosedError, ConfigurationError, NoEndpointsError, of_service
from clientlb.explanation import Explanation
from clientlb.guard import Held
from clientlb.health.breaker import State
from clientlb.health.checkup import Finding
from clientlb.histogram import PER_OCTAVE, bucket
from clientlb.journal import Journal
from clientlb.news import News
from clientlb.node import LoadReport, Node
from clientlb.options import CallKey, Options, Where
from clientlb.outbox import Outbox
from clientlb.outcome import Cause, Outcome
from clientlb.pick import Pick, TriedNodes, pick_of
from clientlb.policy import Choose, LearningPolicy, Request, TendingPolicy, chooser, fitter, make_policy, wants_reports
from clientlb.retrying import Retrying
from clientlb.roster import Roster
from clientlb.stats import ServiceStats, summarise

# an attribute of an enum class costs CPython 3.11 more than 100 ns, a global 10
_SUCCESS = Outcome.SUCCESS
_IGNORED = Outcome.IGNORED
_APPLICATION = Cause.APPLICATION

_BUCKETS_PER_OCTAVE = float(PER_OCTAVE)  # a float times a whole number costs twice as much as a float times a float


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
        self.created_at: float = clock()
        self._outbox = Outbox(emit)
        self._pending = self._outbox.pending
        self._roster = Roster(service, self.options.health, self._outbox, self.created_at, self._others_due)
        self._roster.judge.learn = self._learn_of_failure
        keep_this = partial(keep, self) if keep is not None else _nobody_keeps
        self._news = News(service, self.options.guard, self._roster, self._outbox, clock, keep_this)
        self.journal: Journal | None = None
        """What is recorded, if `Options.journal` says so."""
        if self.options.journal is not None:
            self.journal = Journal(self, self.options.journal)
        self._new_policy()
        self.retrying: Retrying = Retrying(self.options, self._roster, self._outbox, self._may_go_to, self.created_at)
        """Decides what a call may cost beyond its first attempt."""
        self._budget = self.retrying.budget
        self.plain: bool = self.options.plain
        """Calls have neither deadline nor attempt timeout, and are neither hedged nor throttled, unless they ask."""
        self._closed = False
        self.remarks: Callable[[], list[str]] = list
        """Says what its list does not show, for `explain()`; see `RemarkingResolver`."""

    # ------------------------------------------------------------------ the side of discovery

    def update(self, endpoints: Iterable[Endpoint]) -> None:
        """Take over the complete list of endpoints, as far as the guard believes it.

        Endpoints that are still there keep their state and their connections; those that left finish the calls they
        have. Who is missing may stay for a while: see `GuardOptions`.
        """
        self._news.update(tuple(endpoints))

    def error(self, error: Exception) -> None:
        """Note that the registry could not be read. The last good list stays in use."""
        self._news.error(error)

    def offer(self, endpoints: Iterable[Endpoint], age: float) -> None:
        """Offer a list of an earlier time, to be used if the registry delivers none.

        It is used when the registry cannot be read, or when a call has waited 0.3 s. The registry's own first list
        replaces it by the rules for the time after an outage.

        Args:
            endpoints: The list.
            age: Seconds since it was true.
        """
        self._news.offer(tuple(endpoints), age)

    def unreachable(self, node: Node) -> None:
        """Note that no connection to an endpoint could be made: if it is in limbo, it leaves. Calls report this."""
        self._news.unreachable(node)

    def reachable(self, node: Node) -> None:
        """Note that an endpoint that could not be connected to is connected now: if it is ejected, a call may try it.

        Any call may, also one that cannot be repeated: unlike the end of a wait, a connection is good news.
        """
        now = self.clock()
        with self._roster.lock:
            self._roster.reachable(node, now)

    def checked(self, node: Node, finding: Finding) -> None:
        """Note what an active check of an endpoint found. `clientlb.checking` reports this."""
        now = self.clock()
        with self._roster.lock:
            if self._roster.by_key.get(node.endpoint.key) is node:  # else it left meanwhile
                self._changed(self._roster.judge.checked(node, finding, now))
        if self._pending:
            self._news.tell()

    def _others_due(self) -> float:
        """When the next of those things falls due that the roster knows nothing of."""
        return min(self._budget.ends, self._news.due)

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
        try:
            try_pick = partial(self.try_pick_for, Request.of(key, where)) if named else self.try_pick
        except ConfigurationError as error:
            raise of_service(self.service, error) from None
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
        # `self.clock()` takes CPython 3.11 three times as long as getting the attribute first: it looks for a method of
        # the class. So what is none is got first
        clock = self.clock
        now = clock()
        roster = self._roster
        acquire = roster.acquire
        acquire()
        try:
            if now < roster.due and not exclude:
                choose = self._choose
                node = choose(roster.ready, now, self.rng)
                node.in_flight += 1
                self._budget.calls += 1
                # `pick_of`, without the call; an __init__ would cost as much as the rest of this block
                pick = Pick()
                pick._balancer = self
                pick.node = node
                pick.started = now
                pick.observed = None
                return pick
            found = self._pick_with_care(exclude, repeatable, now)
        finally:
            release = roster.release
            release()
        if self._pending:
            self._news.tell()
        return found

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
        roster = self._roster
        roster.acquire()
        try:
            pick = self._pick_with_care(exclude, repeatable, now, request)
        except (ConfigurationError, NoEndpointsError) as error:  # the policy's
            raise of_service(self.service, error) from None
        finally:
            roster.release()
        if self._pending:
            self._news.tell()
        return pick

    def _pick_with_care(
        self, exclude: Collection[Node], repeatable: bool, now: float, request: Request | None = None
    ) -> Pick | None:
        """The rare picks: something has fallen due, nodes are to be avoided, nobody is healthy, or the call asks."""
        if self._closed:
            raise ClosedError(f"service {self.service!r}: the balancer is closed")
        roster = self._roster
        roster.figures.advance(now)
        self._budget.advance(now)
        if now >= self._news.due:
            self._news.believe_overdue(now)
        roster.let_tend(now)
        if roster.judge.advance(now, self.rng):
            roster.sort_by_health()
        roster.set_due()
        probe: Node | None = None
        if now >= roster.due:
            fitting = None if request is None else self._fitting(request, roster.nodes)
            probe = roster.judge.node_to_probe(exclude, repeatable, now, fitting)
        nodes = self._candidates(exclude) if probe is None else (probe,)
        if not nodes:
            return None
        if request is None:
            node = self._choose(nodes, now, self.rng)
        else:
            node = self._choose_asked(request, nodes, exclude, now)
        pick = pick_of(self, node, now)
        node.in_flight += 1
        if not exclude:
            self._budget.calls += 1
        if probe is not None:
            roster.judge.lease(probe, pick, now)
            roster.sort_by_health()
        return pick

    def _choose_asked(self, request: Request, nodes: tuple[Node, ...], exclude: Collection[Node], now: float) -> Node:
        """Choose for a call that asks. Who is ejected or was tried is better than nobody, as for any other call."""
        try:
            return self._choose_for(request, nodes, now, self.rng)
        except NoEndpointsError:
            fitting = tuple(self._fitting(request, self._roster.nodes))
            if not fitting:
                raise
            untried = tuple(node for node in fitting if node not in exclude)
            return self._choose_for(request, untried or fitting, now, self.rng)

    def _may_go_to(self, nodes: Iterable[Node], tried: TriedNodes) -> bool:
        """Whether there is one of `nodes` that a call has not tried and may be given."""
        untried = (node for node in nodes if node not in tried)
        if tried.request is None:
            return next(untried, None) is not None
        with self._roster.lock:
            return len(self._fitting(tried.request, tuple(untried))) > 0

    def _candidates(self, exclude: Collection[Node]) -> tuple[Node, ...]:
        """The nodes to choose from, in this order: healthy and untried, untried, healthy, anybody."""
        roster = self._roster
        if roster.nodes and not roster.ready:
            roster.panic()
        for nodes in (roster.ready, roster.nodes):
            untried = tuple(node for node in nodes if node not in exclude) if exclude else nodes
            if untried:
                return untried
        return roster.ready or roster.nodes

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
            clock = self.clock  # see `try_pick`
            now = clock()
        node = pick.node
        roster = self._roster
        acquire = roster.acquire
        acquire()
        try:
            node.in_flight -= leaving
            if outcome is _SUCCESS and now < roster.due and not node.troubled:
                seconds = now - pick.started
                index = floor(log2(1.0 + seconds * 1e6) * _BUCKETS_PER_OCTAVE)  # histogram.bucket, without the call
                try:
                    roster.rows[index][node.column] += 1
                except (IndexError, OverflowError):
                    roster.figures.count_with_care(index, node.column)
                observe = self._observe
                if observe is not None:
                    observe(node, seconds, True, now)
                return
            self._report_with_care(pick, outcome, reason, leaving, now, cause)
        finally:
            release = roster.release
            release()
        if self._pending:
            self._news.tell()

    def _report_with_care(
        self, pick: Pick, outcome: Outcome, reason: str, leaving: int, now: float, cause: Cause
    ) -> None:
        """The rare reports: of a failure, of an endpoint in trouble, or when something has fallen due."""
        node = pick.node
        roster = self._roster
        if outcome is _IGNORED:
            if roster.judge.ignored(pick, now):
                roster.sort_by_health()
            return
        success = outcome is _SUCCESS
        seconds = now - pick.started
        if pick.observed is None:  # else the head was counted, and then the body broke off
            self._count(node, seconds, now)
        if not success:
            roster.figures.failures[node.column] += 1
            self._changed(roster.judge.failed(pick, cause, reason, now, self.rng))
        elif node.troubled:
            self._succeeded(pick, leaving, now)
        if self._observe is not None and (success or not roster.judge.withheld):
            self._observe(node, seconds, success, now)

    def _count(self, node: Node, seconds: float, now: float) -> None:
        if now >= self._roster.due:
            self._roster.figures.advance(now)
        self._roster.figures.count_with_care(bucket(seconds), node.column)

    def note_load(self, node: Node, report: LoadReport | None) -> None:
        """Note what a server said about its load, if it did. Shells call this, while `wants_reports` is true."""
        if report is not None:
            with self._roster.lock:
                node.report = report

    def leave(self, pick: Pick) -> None:
        """Let a call whose outcome was reported before be no longer in flight. Picks call this."""
        node = pick.node
        roster = self._roster
        acquire = roster.acquire  # see `try_pick`
        acquire()
        try:
            node.in_flight -= 1
            if node.troubled and pick.observed is _SUCCESS:  # the body was fine, too
                self._succeeded(pick, 1, self.clock())
        finally:
            release = roster.release
            release()
        if self._pending:
            self._news.tell()

    def _succeeded(self, pick: Pick, leaving: int, now: float) -> None:
        """Let a success that is news to health reach it."""
        if leaving or pick.node.breaker.state is not State.CLOSED:
            self._roster.unreachable.discard(pick.node)
        self._changed(self._roster.judge.succeeded(pick, leaving, now, self.rng))

    def _changed(self, changed: bool) -> None:
        """Look after what follows when the state of a breaker may have changed."""
        if changed:
            self._roster.sort_by_health()
            self._news.heed_health()

    def _learn_of_failure(self, node: Node, seconds: float, now: float) -> None:
        """Let a failure that was withheld reach the policy."""
        if self._observe is not None:
            self._observe(node, seconds, False, now)

    def wait(self, timeout: float) -> bool:
        """Block until a list of endpoints has arrived, at most `timeout` seconds."""
        return self._news.arrival.wait(timeout)

    async def wait_async(self, timeout: float) -> bool:
        """The same for a coroutine; blocks no event loop."""
        return await self._news.arrival.wait_async(timeout)

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
        self._news.catch_up()
        return self._roster.nodes

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
        self._news.catch_up()
        return self._news.held()

    @property
    def age(self) -> float | None:
        """Seconds since the registry was last known to be in agreement with this list; 0 while nothing is wrong.

        A watch is silent while nothing changes, so silence is agreement until the watch reports an error. Of a list
        from the disk it is the time since that was written. None before the first list.
        """
        return self._news.age

    @property
    def stale(self) -> bool:
        """Whether the registry cannot confirm the list: it is failing, or the list is from the disk."""
        return self.registry_state in ("cached", "failing")

    @property
    def registry_state(self) -> str:
        """`"waiting"` for the first list, `"cached"` while one from the disk is used instead, `"ok"` or `"failing"`."""
        return self._news.registry_state

    @property
    def version(self) -> int:
        """Grows with every change of the list of endpoints."""
        return self._roster.version

    @property
    def updated_at(self) -> float | None:
        """When discovery last delivered a list, in seconds of the clock."""
        return self._news.updated_at

    @property
    def failing_since(self) -> float | None:
        """When discovery began to fail, if it fails now."""
        return self._news.failing_since

    @property
    def last_error(self) -> Exception | None:
        """What discovery last complained about, if it fails now."""
        return self._news.last_error

    @property
    def cached_since(self) -> float | None:
        """Since when a list of an earlier time is used (`offer`), while it is."""
        return self._news.cached_since

    def stats(self) -> ServiceStats:
        """Figures of the service and of each endpoint over the last 10 to 20 seconds."""
        self._news.catch_up()
        return summarise(self, self._roster.counted(self.clock()))

    def explain(self, picks: int = 5) -> str:
        """Say in words, for each endpoint, why it is picked or not, and what the last picks were chosen among.

        Args:
            picks: How many of the last picks (default 5), if there is a journal: `Options.journal`.
        """
        return str(self.explanation(picks))

    def explanation(self, picks: int = 5) -> Explanation:
        """The same as values."""
        self._news.catch_up()
        return explain.balancer(self, self._roster, self._policy, self.clock(), picks)

    # ------------------------------------------------------------------ hedges

    def try_hedge(
        self, tried: TriedNodes, avoid: Collection[str], try_pick: Callable[..., Pick | None], late: Pick
    ) -> Pick | None:
        """Pick an endpoint for a second attempt beside one that is late; None if there is none, or no budget left.

        Args:
            tried: Where the call has been or is now. The second attempt never goes there.
            avoid: `RetryOptions.avoid`.
            try_pick: That of this balancer, for what the call asks for.
            late: The attempt that is.
        """
        retrying, now = self.retrying, self.clock()
        if not retrying.has_untried(tried):
            return None
        if not retrying.withdraw(now):
            retrying.count_denied_hedge(events.HedgeDenied(self.service, late.endpoint, now - late.started))
            return None
        try:
            pick = try_pick(retrying.to_avoid(tried, avoid), False)
        except (ClosedError, NoEndpointsError):  # the attempt that runs is still good
            pick = None
        if pick is not None and pick.node in tried:  # nobody else fits, or the others have just left
            pick.release(_IGNORED)
            pick = None
        if pick is None:
            retrying.give_back()
        else:
            retrying.count_hedge(events.Hedged(self.service, pick.endpoint, now - late.started))
        return pick

    def supersede(self, pick: Pick, now: float) -> None:
        """End an attempt that another attempt of its call was faster than. Picks call this.

        It is no evidence for the endpoint's health, but of its latency: that is at least the time until now. So it
        counts in the figures and for the policy, as in Finagle.
        """
        node = pick.node
        seconds = now - pick.started
        with self._roster.lock:
            node.in_flight -= 1
            self._count(node, seconds, now)
            if self._roster.judge.ignored(pick, now):
                self._roster.sort_by_health()
            if self._observe is not None:
                self._observe(node, seconds, True, now)
        self._news.tell()

    # ------------------------------------------------------------------ life

    def close(self) -> None:
        """Take no more news and give no more picks. Calls that run finish. Idempotent."""
        self._closed = True
        self._news.close()
        if self.journal is not None:
            self.journal.close()

    def after_fork(self) -> None:
        """Make the copy in a forked child usable: no call runs here, and the lock may have been held."""
        self._outbox.after_fork()
        if self.journal is not None:
            self.journal.after_fork()
        if self._own_rng:
            self.rng = random.Random()  # children that draw the same numbers would march in step
        self._new_policy()
        self._roster.after_fork(self.clock())
        self._news.after_fork()

    def _new_policy(self) -> None:
        try:
            self._policy = make_policy(self.options.policy)
        except ConfigurationError as error:
            raise of_service(self.service, error) from None
        except Exception as error:  # of whoever makes it: the user's own, or a class that wants other arguments
            error.add_note(f"clientlb: service {self.service!r}: its policy {self.options.policy!r} cannot be made")
            raise
        self._choose: Choose = self._policy.choose
        self._choose_for = chooser(self._policy)
        self._fitting = fitter(self._policy)
        if self.journal is not None:
            self._choose, self._choose_for = self.journal.watch(self._policy, self._choose, self._choose_for)
        self.wants_reports: bool = wants_reports(self._policy)
        self._roster.tend_with(self._policy.tend if isinstance(self._policy, TendingPolicy) else None)
        self._observe = self._policy.observe if isinstance(self._policy, LearningPolicy) else None

    def __repr__(self) -> str:
        return f"<Balancer {self.service!r}: {len(self._roster.ready)} of {len(self._roster.nodes)} endpoints healthy>"


def _nobody_keeps() -> None:
    """Nobody wants to know of lists that are worth keeping."""
