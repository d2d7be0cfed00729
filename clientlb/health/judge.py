"""Judge: what an outcome means for the health of an endpoint. It owns the decisions, the balancer owns lock and lists.

Successes of an endpoint without trouble never get here. What does: every failure, successes of those in trouble,
and once in ten seconds the figures of all.

    rule          trips when                                              limited by
    consecutive   5 failures of the application in a row                  nothing: nobody is served there
    connect       5 connections in a row that could not be made           nothing
    ratio         fewer than 80 % of 10 calls or more in 10 s succeed     most_ejected, never the last healthy one
    outlier       its success rate is far below that of its peers         the same
    slow          most of its calls are slower than nearly all of theirs  the same
    check         its active check fails: `clientlb.health.checkup`       nobody's check passes: then no one

All methods are called under the balancer's lock. Those that return a truth say whether the state of a breaker changed.
The garbage collector may end an abandoned call, and so come in here, in the middle of any of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from math import inf
from typing import TYPE_CHECKING

from clientlb import events
from clientlb.check_options import Check
from clientlb.health.breaker import State
from clientlb.health.checkup import Checkup, Finding, fails_checks, passes_checks
from clientlb.health.doubt import Doubt
from clientlb.health.outlier import failing, slow
from clientlb.health.window import Window
from clientlb.health_options import HealthOptions
from clientlb.outcome import Cause

if TYPE_CHECKING:
    from clientlb.figures import Figures
    from clientlb.node import Node
    from clientlb.pick import Pick

_CLOSED = State.CLOSED
_UNLIMITED = frozenset({"consecutive", "connect"})


class Judge:
    """The health of the endpoints of one service.

    Args:
        service: Its name.
        options: Of health.
        figures: The counters of the balancer.
        note: Takes an event, to be sent when the lock is released.
        now: Seconds of the clock.

    Attributes:
        nodes: All endpoints. The balancer keeps this true, and `ejected`.
        ejected: Those whose breaker is not closed.
        panicking: All endpoints are used whatever their state.
        withheld: The last failure is our own trouble, or may be: the policy is not told, or only when it is judged.
        learn: Tells the policy of a failure that was withheld: the endpoint, the seconds that it took, and now. The
            balancer sets it.
    """

    def __init__(
        self,
        service: str,
        options: HealthOptions,
        figures: Figures,
        note: Callable[[events.Event], None],
        now: float,
    ) -> None:
        self.options = options
        self.nodes: tuple[Node, ...] = ()
        self.ejected: tuple[Node, ...] = ()
        self.panicking: bool = False
        self.withheld: bool = False
        self.learn: Callable[[Node, float, float], None] = lambda node, seconds, now: None
        self._service = service
        self._figures = figures
        self._note = note
        self._doubt: Doubt[Node, tuple[Pick, Cause, str, float]] = Doubt(now)
        self._why_suspended = ""
        self._swept = figures.began
        self._would: dict[tuple[Node, str], float] = {}
        self._passed_checks = 0
        self._checks_void = False  # nobody passes
        self._spared = False  # somebody failed and was not held for that

    # ------------------------------------------------------------------ what falls due

    @property
    def due(self) -> float:
        """When `advance` has something to do."""
        if not self.options.suspend:
            return inf
        return min(self._doubt.next_beat, self._doubt.due)

    def advance(self, now: float, rng: random.Random) -> bool:
        """Do what has fallen due: a pick is about to be made."""
        changed = False
        if self.options.suspend:
            self._doubt.seen(now)
            if now >= self._doubt.due:
                changed = self._judge_waiting(now, rng)
        if self._swept != self._figures.began:
            self._swept = self._figures.began
            changed |= self._sweep(now, rng)
        return changed

    # ------------------------------------------------------------------ outcomes

    def succeeded(self, pick: Pick, leaving: int, now: float, rng: random.Random) -> bool:
        """Judge a success of an endpoint in trouble.

        Args:
            pick: The attempt.
            leaving: 0 if only the head of the response is there.
            now: Seconds of the clock.
            rng: Source of randomness.
        """
        node = pick.node
        breaker = node.breaker
        if self._doubt.ends(pick.started):
            self._resume(now)
        if not leaving and breaker.state is _CLOSED:
            return False  # a good head does not make up for failures before: the body is yet to come
        if breaker.probe is pick and now - pick.started > breaker.bearable:
            breaker.reason = f"it is as slow as ever: {now - pick.started:.2f} s"
            return self._open_again(node, now, rng)
        changed = breaker.succeeded(pick.started, now)
        node.troubled = breaker.state is not _CLOSED or self._doubt.suspended_at is not None
        if changed:
            self._restored(node, now)
        return changed

    def failed(self, pick: Pick, cause: Cause, reason: str, now: float, rng: random.Random) -> bool:
        """Judge a failure."""
        node = pick.node
        node.troubled = True
        self.withheld = False
        if self.options.suspend:
            doubt = self._doubt
            doubt.seen(now)
            if doubt.suspended_at is not None or (doubt.is_backlog(pick.started) and not node.breaker.excused):
                self.withheld = True
                return node.breaker.ignored(pick, now)
            if doubt.from_before(pick.started, now) and not node.breaker.excused and self._is_doubtful(node):
                self.withheld = True
                return self._put_off(pick, cause, reason, now)
        return self._judge(pick, cause, reason, now, rng)

    def ignored(self, pick: Pick, now: float) -> bool:
        """An attempt ended without evidence: give back the probe that it may have held."""
        return pick.node.breaker.ignored(pick, now)

    def _judge(self, pick: Pick, cause: Cause, reason: str, now: float, rng: random.Random) -> bool:
        node = pick.node
        breaker = node.breaker
        if breaker.state is not _CLOSED:
            if not breaker.fails_probe(pick.started):
                return False  # the attempt began before the breaker opened, or nobody else was left
            breaker.reason = f"the probe failed, the last one {reason}" if reason else "the probe failed"
            return self._open_again(node, now, rng)
        tripped = self._tripped(node, cause, now)
        if tripped is None:
            return False
        rule, why = tripped
        return self._eject(node, rule, f"{why}, the last one {reason}" if reason else why, now, rng)

    def _tripped(self, node: Node, cause: Cause, now: float) -> tuple[str, str] | None:
        """Count a failure; returns the rule that trips, and why."""
        breaker = node.breaker
        found = None
        if self.options.ratio.enabled:
            if breaker.window is None:
                breaker.window = Window()
            column, figures = node.column, self._figures
            found = breaker.window.failed(
                now, self.options.ratio, lambda: figures.attempts(column), lambda: figures.history(column)
            )
        rule = breaker.count(cause, self.options)
        if rule == "consecutive":
            return rule, f"{breaker.failures} failures in a row"
        if rule == "connect":
            return rule, f"{breaker.refusals} connections in a row could not be made"
        if found is not None:
            return "ratio", f"{found[0]} of {found[1]} calls failed within {self.options.ratio.window:g} s"
        return None

    # ------------------------------------------------------------------ active checks

    def checked(self, node: Node, finding: Finding, now: float) -> bool:
        """Judge what an active check of an endpoint found."""
        check, breaker = self.options.check, node.breaker
        if check is None:
            return False
        checkup = breaker.checkup
        if checkup is None:
            checkup = breaker.checkup = Checkup()
        turned = checkup.take(finding, check)
        if "check" in self.options.dry_run:
            if turned and checkup.failing:
                self._note(events.WouldEject(self._service, node.endpoint, "check", checkup.why))
            return False
        if finding.passed:
            return self._check_passed(node, checkup, check, finding, now)
        return checkup.failing and self._check_failed(node, checkup, now)

    def _check_passed(self, node: Node, checkup: Checkup, check: Check, finding: Finding, now: float) -> bool:
        self._passed_checks += 1
        if self._doubt.ends(finding.began):
            self._resume(now)  # somebody answers, so the trouble is not our own
        changed = checkup.ends(node.breaker, check)
        if changed:
            node.breaker.close(now)
            self._restored(node, now)
        if self._spared and not checkup.failing:
            self._spared = self._checks_void = False
            for other in self.nodes:  # who is asked again is judged then; these will say nothing new
                theirs = other.breaker.checkup
                if theirs is not None and theirs.failing and theirs.last is not None and theirs.last.final:
                    changed |= self._hold(other, theirs, now)
        return changed

    def _check_failed(self, node: Node, checkup: Checkup, now: float) -> bool:
        if not self.options.suspend:
            return self._hold(node, checkup, now)
        if all(fails_checks(other.breaker) for other in self.nodes):
            return self._void_checks(now)
        if node.breaker.held or any(passes_checks(other.breaker) for other in self.nodes):
            return self._hold(node, checkup, now)
        self._spared = True
        return False

    def _void_checks(self, now: float) -> bool:
        """Let nobody be held by its check: nobody's passes, so they are no help in choosing."""
        if not self._checks_void:
            self._spared = self._checks_void = True
            self._note(events.Panicked(self._service, len(self.nodes)))
        held = [node for node in self.ejected if node.breaker.held]
        for node in held:
            node.breaker.close(now)
            self._restored(node, now)
        return bool(held)

    def _hold(self, node: Node, checkup: Checkup, now: float) -> bool:
        """Let an endpoint get no calls until its check passes, also no probe if it is ejected already."""
        breaker = node.breaker
        breaker.reason = checkup.why
        if breaker.held:
            return False
        if breaker.state is _CLOSED:
            self.ejected = (*self.ejected, node)
        breaker.hold(now)
        breaker.rule = "check"
        node.troubled = True
        self._note(events.Ejected(self._service, node.endpoint, breaker.reason, inf, "check"))
        return True

    # ------------------------------------------------------------------ ejection

    def _eject(
        self,
        node: Node,
        rule: str,
        reason: str,
        now: float,
        rng: random.Random,
        *,
        open_for: float | None = None,
        good_until: float | None = None,
    ) -> bool:
        """Eject an endpoint by a rule, as far as the rule may."""
        breaker = node.breaker
        if self._doubt.suspended_at is not None:
            return False
        if rule in self.options.dry_run:
            self._would_eject(node, rule, reason, now)
            return False
        if rule not in _UNLIMITED and not self._may_eject_one_more():
            return False
        if self.options.suspend:
            at_once = self._doubt.tripped(node, len(self.nodes), self._successes, now)
            if at_once:
                self._suspend(at_once, f"{len(at_once)} of {len(self.nodes)} endpoints failed at once", now)
                return True
        breaker.open(now, self.options, rng, open_for=open_for, good_until=good_until)
        breaker.rule, breaker.reason = rule, reason
        node.troubled = True
        self.ejected = (*self.ejected, node)
        self._note(events.Ejected(self._service, node.endpoint, reason, breaker.until - now, rule))
        return True

    def _may_eject_one_more(self) -> bool:
        ejected, endpoints = len(self.ejected), len(self.nodes)
        most = max(1, int(endpoints * self.options.most_ejected))
        return ejected < most and endpoints - ejected > 1

    def _would_eject(self, node: Node, rule: str, reason: str, now: float) -> None:
        """Say that a rule that is on trial would have ejected, once for the time that it would have been."""
        if now >= self._would.get((node, rule), -inf):
            self._would = {key: until for key, until in self._would.items() if until > now}
            self._would[node, rule] = now + self.options.open_for
            self._note(events.WouldEject(self._service, node.endpoint, rule, reason))
        if rule == "consecutive":  # else it would stand before the rules that are in force
            node.breaker.failures = 0
        elif rule == "connect":
            node.breaker.refusals = 0

    def _open_again(self, node: Node, now: float, rng: random.Random) -> bool:
        breaker = node.breaker
        open_for = self.options.outlier.open_for if breaker.rule == "outlier" else None
        breaker.open(now, self.options, rng, open_for=open_for)
        node.troubled = True
        self._note(events.Ejected(self._service, node.endpoint, breaker.reason, breaker.until - now, breaker.rule))
        return True

    def _restored(self, node: Node, now: float) -> None:
        # what was known before the trouble says nothing about now
        node.score = -inf
        node.connected = False
        self._begin_anew(node, now)
        self._note(events.Restored(self._service, node.endpoint))

    def _begin_anew(self, node: Node, now: float) -> None:
        node.breaker.forget()
        if node.breaker.window is not None:
            node.breaker.window.begin(now, self._figures.attempts(node.column))

    # ------------------------------------------------------------------ doubt

    def _is_doubtful(self, node: Node) -> bool:
        """Whether most endpoints had calls in flight when the process stood still, if it did."""
        doubt = self._doubt
        if doubt.possible is None:
            healthy = [other for other in self.nodes if other.breaker.state is _CLOSED]
            busy = sum(1 for other in healthy if other is node or other.in_flight)
            doubt.possible = len(healthy) > 1 and 2 * busy > len(healthy)
        return doubt.possible

    def _put_off(self, pick: Pick, cause: Cause, reason: str, now: float) -> bool:
        """Let a doubtful failure wait; when most endpoints have some, none of them counts."""
        doubt, node = self._doubt, pick.node
        if doubt.ours or node.breaker.probe is pick:
            return node.breaker.ignored(pick, now)
        failing = doubt.wait(node, (pick, cause, reason, now))
        if 2 * failing <= len(self.nodes) - len(self.ejected):
            return False
        waiting = [waited for waited, _ in doubt.take_waiting()]
        doubt.ours = True
        self._suspend(waiting, f"this process stood still for {doubt.gap:.1f} s", now)
        return True

    def _judge_waiting(self, now: float, rng: random.Random) -> bool:
        changed = False
        for node, (pick, cause, reason, failed_at) in self._doubt.take_waiting():
            self.learn(node, failed_at - pick.started, now)
            changed |= self._judge(pick, cause, reason, now, rng)
        return changed

    def _suspend(self, excused: Collection[Node], why: str, now: float) -> None:
        """Judge nothing until a call succeeds, and take back what was just done to these."""
        self._doubt.suspend(now)
        self._why_suspended = why
        self._note(events.EjectionSuspended(self._service, why, len(self.nodes)))
        for node in excused:
            breaker = node.breaker
            breaker.excused = True
            if breaker.state is not _CLOSED and not breaker.held:
                breaker.close(now)
                self._note(events.Restored(self._service, node.endpoint))
        for node in self.nodes:
            node.troubled = True  # so that the first success is heard of, whose ever it is

    def _resume(self, now: float) -> None:
        since = self._doubt.suspended_at
        assert since is not None
        self._doubt.resume()
        for node in self.nodes:
            self._begin_anew(node, now)
        self._note(events.EjectionResumed(self._service, now - since))

    def _successes(self) -> int:
        return self._figures.total - sum(self._figures.failures) + self._passed_checks

    def suspended(self, now: float) -> str | None:
        """Why nobody is ejected at the moment, if that is so; for people."""
        since = self._doubt.suspended_at
        if since is not None:
            return f"nobody is ejected for {now - since:.1f} s now: {self._why_suspended}"
        return "nobody passes the active check, so nobody is ejected for that" if self._checks_void else None

    # ------------------------------------------------------------------ once in ten seconds

    def _sweep(self, now: float, rng: random.Random) -> bool:
        """Compare the endpoints with each other over the window of the figures that has just ended."""
        outlier, slowness = self.options.outlier, self.options.slow
        if self._doubt.suspended_at is not None or not (outlier.enabled or slowness.enabled):
            return False
        figures = self._figures
        began = figures.previous_began
        compared = [node for node in self.nodes if node.breaker.state is _CLOSED and node.breaker.closed_at <= began]
        changed = False
        if outlier.enabled and len(compared) >= outlier.endpoints and self._worth_comparing(compared):
            counts = {node: figures.lately(node.column) for node in compared}
            for node, why in failing(counts, outlier).items():
                changed |= self._eject(node, "outlier", why, now, rng, open_for=outlier.open_for, good_until=began)
        if slowness.enabled and len(compared) >= slowness.endpoints:
            latencies = {node: figures.latencies_lately(node.column) for node in compared}
            for node, (why, bound) in slow(latencies, slowness).items():
                if node.breaker.state is _CLOSED and self._eject(node, "slow", why, now, rng, good_until=began):
                    node.breaker.bearable = bound
                    changed = True
        return changed

    def _worth_comparing(self, nodes: Collection[Node]) -> bool:
        """Whether somebody failed at all who had enough calls. In large fleets that is rarely so, and soon found."""
        figures, calls = self._figures, self.options.outlier.calls
        return any(figures.failures_lately(node.column) and figures.lately(node.column)[0] >= calls for node in nodes)

    # ------------------------------------------------------------------ probes

    def node_to_probe(
        self,
        exclude: Collection[Node],
        repeatable: bool,
        now: float,
        fitting: Collection[Node] | None = None,
    ) -> Node | None:
        """The ejected endpoint that the next call should probe, if one is due.

        Args:
            exclude: Where the call has been.
            repeatable: It can be repeated elsewhere.
            now: Seconds of the clock.
            fitting: Endpoints that it may be given; None is any.
        """
        patience = 0.0 if repeatable else self.options.unsafe_probe_after
        for node in self.ejected:
            if node.breaker.probe_due(now - patience) and node not in exclude and (fitting is None or node in fitting):
                return node
        return None

    def lease(self, node: Node, pick: Pick, now: float) -> None:
        """Let a pick probe an endpoint."""
        node.breaker.lease(pick, now, self.options)
        self._note(events.Probing(self._service, node.endpoint))

    def after_fork(self, now: float) -> None:
        """Forget what the parent's calls were about to say."""
        self._doubt = Doubt(now)
        self._would = {}
