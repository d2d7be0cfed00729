"""What holds for a balancer after any sequence of calls, outcomes, news, forks and time. No test sleeps."""

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from clientlb import (
    Balancer,
    BudgetOptions,
    Cause,
    DiscoveryError,
    Endpoint,
    GuardOptions,
    HealthOptions,
    Options,
    Outcome,
    OutlierOptions,
    RatioOptions,
    RetryOptions,
)
from clientlb.health.breaker import State
from clientlb.retry.budget import RESERVE_WINDOW
from clientlb.testing import FakeClock

OF_DEGREE = {"ratio", "outlier", "slow"}


def endpoints(*ports):
    return [Endpoint("10.0.0.1", port) for port in ports]


class Anything(RuleBasedStateMachine):
    """A balancer, the calls that run, and what a model of it has counted."""

    @initialize(
        policy=st.sampled_from(["least_time", "p2c", "round_robin", "random"]),
        hold=st.sampled_from([0, 5, 30]),
        empty_hold=st.sampled_from([0, 5, 60]),
        failures=st.sampled_from([2, 5, 100]),
        most_ejected=st.sampled_from([0.0, 0.5, 1.0]),
        panic_below=st.sampled_from([0.0, 0.0, 0.5]),
        suspend=st.sampled_from([False, False, True]),
        budget=st.sampled_from(
            [BudgetOptions(), BudgetOptions(ratio=0.5, reserve=0.0), BudgetOptions(ratio=1.0, reserve=0.2, window=10.0)]
        ),
    )
    def begin(self, policy, hold, empty_hold, failures, most_ejected, panic_below, suspend, budget):
        self.health = HealthOptions(
            consecutive_failures=failures,
            ratio=RatioOptions(calls=4),
            outlier=OutlierOptions(calls=4, endpoints=3),
            most_ejected=most_ejected,
            panic_below=panic_below,
            suspend=suspend,
        )
        options = Options(
            policy=policy,
            guard=GuardOptions(hold=hold, empty_hold=empty_hold),
            health=self.health,
            retry=RetryOptions(budget=budget),
        )
        self.clock = FakeClock()
        self.events = []
        self.balancer = Balancer("orders", options, emit=self.events.append, clock=self.clock, rng=random.Random(1))
        self.balancer.update(endpoints(1, 2, 3, 4))
        self.budget = budget
        self.running = []
        self.left_to_the_parent = []
        self.ejected = set()
        self.calls, self.retries = [], []

    # ------------------------------------------------------------------ calls

    def closed(self, exclude=()):
        return {node for node in self.balancer.nodes if node.breaker.state is State.CLOSED and node not in exclude}

    @rule(repeatable=st.booleans(), exclude=st.sets(st.integers(0, 5), max_size=3))
    def pick(self, repeatable, exclude):
        excluded = [node for number, node in enumerate(self.balancer.nodes) if number in exclude]
        healthy = self.closed(excluded)
        overdue = self.clock() - self.health.unsafe_probe_after
        probed_by_anyone = {node for node in self.balancer.nodes if node.breaker.until <= overdue}
        pick = self.balancer.try_pick(excluded, repeatable=repeatable)
        assert (pick is None) == (not self.balancer.nodes)
        if pick is None:
            return
        if not excluded:
            self.calls.append(self.clock())
        self.running.append(pick)
        is_probe = pick.node.breaker.probe is pick
        panics = len(self.closed()) < self.health.panic_below * len(self.balancer.nodes)
        if healthy & self.closed(excluded) and not panics:
            assert is_probe or pick.node.breaker.state is State.CLOSED, "an ejected endpoint only as a probe"
            assert pick.node not in excluded, "one that was tried only if there is nobody else"
        if is_probe and not repeatable:
            assert pick.node in probed_by_anyone, "what cannot be repeated probes only when nothing else did for long"

    @rule(
        index=st.integers(0, 50),
        outcome=st.sampled_from(Outcome),
        cause=st.sampled_from(Cause),
        observed=st.booleans(),
        of_the_parent=st.booleans(),
    )
    def finish(self, index, outcome, cause, observed, of_the_parent):
        """A call ends; one of the parent does when the garbage collector of the child finds it."""
        calls = self.left_to_the_parent if of_the_parent else self.running
        if calls:
            pick = calls.pop(index % len(calls))
            if observed:
                pick.observe(outcome)
            pick.release(outcome, cause=cause)

    @rule(
        index=st.integers(0, 5),
        pattern=st.sampled_from(["-" * 5, "-+" * 5, "+++-", "-+"]),
        cause=st.sampled_from([Cause.APPLICATION, Cause.APPLICATION, Cause.CONNECT, Cause.OVERLOAD]),
    )
    def call_one_again_and_again(self, index, pattern, cause):
        nodes = self.balancer.nodes
        if not nodes:
            return
        others = [node for node in nodes if node is not nodes[index % len(nodes)]]
        for fate in pattern:
            pick = self.balancer.try_pick(others)
            if pick is None:  # those in limbo have just left
                return
            if not others:
                self.calls.append(self.clock())
            pick.release(Outcome.SUCCESS if fate == "+" else Outcome.FAILURE, cause=cause)

    @rule()
    def nobody_answers_any_more(self):
        for index in range(len(self.balancer.nodes)):
            self.call_one_again_and_again(index, "-----", Cause.APPLICATION)

    @rule(outcome=st.sampled_from(Outcome), cause=st.sampled_from(Cause), observed=st.booleans())
    def probe(self, outcome, cause, observed):
        """The next call comes when somebody has been ejected for long enough."""
        due = [node.breaker.until for node in self.balancer.nodes if node.breaker.state is not State.CLOSED]
        if due:
            self.clock.advance(max(0.0, min(due) - self.clock()))
            self.pick(repeatable=True, exclude=())
            self.finish(len(self.running) - 1, outcome, cause, observed, of_the_parent=False)

    # ------------------------------------------------------------------ retries

    def retries_left(self, *, at_most):
        """How many retries the calls pay for, at most or at least: where a window begins is certain but for a slice."""
        now, budget = self.clock(), self.budget
        slice_ = min(budget.window, RESERVE_WINDOW) / 10

        def lately(moments, window, longest):
            span = window + 1e-6 if longest else window - slice_ - 1e-6
            return sum(moment > now - span for moment in moments)

        earned = budget.ratio * lately(self.calls, budget.window, at_most)
        return max(
            earned - lately(self.retries, budget.window, not at_most),
            budget.reserve * RESERVE_WINDOW - lately(self.retries, RESERVE_WINDOW, not at_most),
        )

    @rule(wanted=st.integers(1, 30))
    def retry(self, wanted):
        for _ in range(wanted):
            if not self.balancer.retrying.withdraw(self.clock()):
                assert self.retries_left(at_most=False) < 1 + 1e-6, "denied, but paid for"
                return
            assert self.retries_left(at_most=True) > 1 - 1e-6, "granted, but paid by nobody"
            self.retries.append(self.clock())

    # ------------------------------------------------------------------ the world

    @rule(ports=st.sampled_from([(1, 2, 3, 4), (1, 2, 3, 4, 5, 6), (2, 3, 5), (1,), (), None]))
    def hear_from_the_registry(self, ports):
        if ports is None:
            self.balancer.error(DiscoveryError("down"))
        else:
            self.balancer.update(endpoints(*ports))

    @rule(seconds=st.one_of(st.floats(0.001, 3), st.floats(3, 40)))
    def wait(self, seconds):
        self.clock.advance(seconds)

    @rule()
    def fork(self):
        """From here on this is the child: the calls run in the parent."""
        self.balancer.after_fork()
        self.left_to_the_parent += self.running
        self.running = []
        assert all(node.in_flight == 0 for node in self.balancer.nodes)

    # ------------------------------------------------------------------ what always holds

    @invariant()
    def every_running_call_is_counted_once(self):
        stats = self.balancer.stats()
        assert stats.in_flight == len(self.running)
        assert stats.failures_per_second >= 0
        assert sum(node.in_flight for node in self.balancer.nodes) <= len(self.running)

    @invariant()
    def rules_of_degree_keep_to_their_cap(self):
        nodes = self.balancer.nodes
        ejected = {node.endpoint.port: node for node in nodes if node.breaker.state is not State.CLOSED}
        new = [node.breaker.rule for port, node in ejected.items() if port not in self.ejected]
        if new and OF_DEGREE.issuperset(new):
            assert len(ejected) <= max(1, int(self.health.most_ejected * len(nodes)))
            assert len(ejected) < len(nodes), "the last healthy one"
        self.ejected = set(ejected)

    @invariant()
    def a_probe_is_running_and_its_lease_ends(self):
        now = self.clock()
        for node in self.balancer.nodes:
            breaker = node.breaker
            if breaker.state is State.HALF_OPEN:
                assert breaker.probe in self.running
                assert breaker.until <= now + self.health.probe_timeout
            else:
                assert breaker.probe is None
            if breaker.state is State.OPEN:
                assert breaker.until <= now + self.health.open_for_max

    def teardown(self):
        for pick in self.running:
            pick.release(Outcome.IGNORED)
        assert all(node.in_flight == 0 for node in self.balancer.nodes)
        for _ in range(2 * len(self.balancer.nodes)):
            self.clock.advance(self.health.open_for_max)
            pick = self.balancer.try_pick()
            if pick is not None:
                pick.release()
        self.balancer.explain()
        assert self.closed() == set(self.balancer.nodes), "whoever answers is used again, whatever was before"


TestAnything = Anything.TestCase
TestAnything.settings = settings(max_examples=150, stateful_step_count=40)
