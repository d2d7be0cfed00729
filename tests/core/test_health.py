"""Who is ejected and who is not: the rules beyond failures in a row, their caps, and doubt. No test sleeps."""

import random

import pytest

from clientlb import (
    Balancer,
    Cause,
    Endpoint,
    HealthOptions,
    Options,
    Outcome,
    OutlierOptions,
    RatioOptions,
    SlowOptions,
    events,
)
from clientlb.health.outlier import failing
from clientlb.health.window import Window
from clientlb.policy import RoundRobin
from clientlb.testing import FakeClock


class Bench:
    """A balancer of some endpoints with a clock and a memory for its events."""

    def __init__(self, endpoints, policy="round_robin", **health):
        self.clock = FakeClock()
        self.events = []
        options = Options(policy=policy, health=HealthOptions(**health))
        self.balancer = Balancer("orders", options, emit=self.events.append, clock=self.clock, rng=random.Random(1))
        self.balancer.update([Endpoint("10.0.0.1", port) for port in range(1, endpoints + 1)])

    def pick(self, port):
        """A pick of one port; the others are excluded."""
        pick = self.balancer.try_pick([node for node in self.balancer.nodes if node.endpoint.port != port])
        assert pick.endpoint.port == port
        return pick

    def call(self, port, ok=True, seconds=0.01, cause=Cause.APPLICATION):
        pick = self.pick(port)
        self.clock.advance(seconds)
        pick.release(Outcome.SUCCESS if ok else Outcome.FAILURE, "" if ok else "503", None, cause)

    def pattern(self, port, pattern, **arguments):
        for letter in pattern:
            self.call(port, letter == "+", **arguments)

    def seen(self, kind):
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def ejected(self):
        return [(event.endpoint.port, event.rule) for event in self.seen(events.Ejected)]


def test_connections_that_cannot_be_made_have_a_threshold_of_their_own():
    bench = Bench(3, connect_failures=3)
    for cause in (Cause.CONNECT, Cause.APPLICATION, Cause.CONNECT, Cause.APPLICATION):
        bench.call(1, False, cause=cause)
    assert bench.ejected == []
    bench.call(1, False, cause=Cause.CONNECT)
    assert bench.ejected == [(1, "connect")]


def test_ratio_sees_what_failures_in_a_row_do_not():
    bench = Bench(3)
    bench.pattern(1, "--++--++--")
    assert bench.ejected == [(1, "ratio")]
    assert "of 10 calls failed within 10 s, the last one 503" in bench.balancer.explain()


def test_successes_before_the_first_failure_count():
    bench = Bench(3)
    bench.pattern(1, "+" * 100 + "--++" * 5)
    assert bench.ejected == []


def test_ratio_forgets_what_left_the_window():
    bench = Bench(3)
    bench.pattern(1, "--++--++")
    bench.clock.advance(30)
    bench.pattern(1, "++++++++-")
    assert bench.ejected == []


def test_burst_is_not_hidden_by_the_time_before():
    window, counted, found = Window(), [4000], None
    for second in range(40):
        window.begin(float(second), 100 * second)
    for number in range(60):
        counted[0] += 1
        found = window.failed(40.0 + number / 1000, RatioOptions(), lambda: counted[0], lambda: [(0.0, 0)]) or found
    assert found is not None
    assert found[0] <= 60


def test_too_much_load_counts_against_the_ratio_only_and_fails_a_probe():
    bench = Bench(3)
    bench.pattern(1, "-" * 9, cause=Cause.OVERLOAD)
    assert bench.ejected == []
    bench.call(1, False, cause=Cause.OVERLOAD)
    assert bench.ejected == [(1, "ratio")]
    bench.clock.advance(5)
    probe = bench.balancer.try_pick()
    assert probe.endpoint.port == 1
    probe.release(Outcome.FAILURE, "429", None, Cause.OVERLOAD)
    assert bench.balancer.stats().healthy == 2


@pytest.mark.parametrize(("endpoints", "most"), [(1, 0), (2, 1), (3, 1), (4, 2), (9, 4)])
def test_rules_of_degree_eject_no_more_than_half(endpoints, most):
    bench = Bench(endpoints, consecutive_failures=1000)
    for port in range(1, endpoints + 1):
        bench.pattern(port, "---+---+---")
        bench.balancer.try_pick().release()
    assert len({port for port, _ in bench.ejected}) == most


def test_failures_in_a_row_know_no_limit():
    bench = Bench(4)
    for port in (1, 2, 3):
        bench.pattern(port, "-----")
        bench.call(4)
    assert bench.ejected == [(port, "consecutive") for port in (1, 2, 3)]
    assert {bench.balancer.try_pick().endpoint.port for _ in range(50)} == {4}


def interval(bench, patterns):
    """Let 10 s pass, in which each port answers as its pattern says."""
    for port, pattern in patterns.items():
        bench.pattern(port, pattern, seconds=0.001)
    bench.clock.advance(11)
    bench.balancer.try_pick().release()


def test_outlier_is_ejected_once_and_for_longer():
    bench = Bench(6, outlier=OutlierOptions(calls=20))
    patterns = {1: "-++++++" * 4, **dict.fromkeys(range(2, 7), "+" * 28)}
    interval(bench, patterns)
    assert bench.ejected == [(1, "outlier")]
    assert bench.seen(events.Ejected)[0].seconds == 30
    interval(bench, dict.fromkeys(range(2, 7), "+" * 28))
    assert bench.ejected == [(1, "outlier")], "what was counted before is not counted again"


def test_same_fault_of_all_is_nobodys():
    assert failing(dict.fromkeys(range(6), (100, 14)), OutlierOptions()) == {}
    few = {0: (100, 30), 1: (100, 0), 2: (100, 0), 3: (100, 0)}
    assert failing(few, OutlierOptions()) == {}, "of four nobody can stand out"
    nearly_perfect = {0: (1000, 2), **dict.fromkeys(range(1, 9), (1000, 0))}
    assert failing(nearly_perfect, OutlierOptions()) == {}


def test_slow_endpoint_is_ejected_and_a_slow_probe_does_not_restore_it():
    bench = Bench(4, slow=SlowOptions(enabled=True))
    for _ in range(30):
        for port in range(1, 5):
            bench.call(port, seconds=0.05 if port == 1 else 0.001)
    bench.clock.advance(11)
    bench.balancer.try_pick().release()
    assert bench.ejected == [(1, "slow")]
    for seconds, healthy in ((0.05, 3), (0.001, 4)):
        bench.clock.advance(11)
        probe = bench.balancer.try_pick()
        assert probe.endpoint.port == 1
        bench.clock.advance(seconds)
        probe.release()
        assert bench.balancer.stats().healthy == healthy


@pytest.mark.parametrize("rule", ["consecutive", "connect", "ratio"])
def test_rule_on_trial_ejects_nobody_and_says_so_once(rule):
    bench = Bench(3, dry_run={"consecutive", "connect", "ratio"})
    cause = Cause.CONNECT if rule == "connect" else Cause.APPLICATION
    bench.pattern(1, "--+" * 12 if rule == "ratio" else "-" * 9, cause=cause)
    assert bench.ejected == []
    (would,) = bench.seen(events.WouldEject)
    assert (would.endpoint.port, would.rule) == (1, rule)


def test_rule_on_trial_does_not_keep_others_from_ejecting():
    bench = Bench(3, dry_run={"ratio"})
    bench.pattern(1, "++++++++-----")
    (ratio,) = bench.seen(events.WouldEject)
    assert ratio.rule == "ratio", "at the third failure of eleven calls"
    (ejected,) = bench.seen(events.Ejected)
    assert ejected.rule == "consecutive"


def test_nobody_is_ejected_when_this_process_stood_still():
    bench = Bench(4)
    running = [bench.pick(port) for port in range(1, 5) for _ in range(8)]
    bench.clock.advance(2)
    for pick in running:
        pick.release(Outcome.RETRYABLE, "ReadTimeout")
    assert bench.ejected == []
    (suspended,) = bench.seen(events.EjectionSuspended)
    assert suspended.reason == "this process stood still for 2.0 s"
    assert "nobody is ejected for 0.0 s now: this process stood still" in bench.balancer.explain()
    bench.call(1)
    assert len(bench.seen(events.EjectionResumed)) == 1
    bench.pattern(2, "-----")
    assert [port for port, _ in bench.ejected] == [2]


def pause_with_calls_in_flight(bench):
    """Let a process stand still for 2 s, and everything fail that was in flight; returns what it sends next."""
    running = [bench.pick(port) for port in range(1, 5) for _ in range(8)]
    bench.clock.advance(2)
    for pick in running[:-1]:
        pick.release(Outcome.RETRYABLE, "ReadTimeout")
    backlog = [bench.pick(1) for _ in range(8)]
    running[-1].release()
    bench.call(1)
    for _ in range(10):
        bench.call(2, seconds=0.1)
    return backlog


def test_nobody_is_ejected_for_what_had_piled_up_while_this_process_stood_still():
    bench = Bench(4)
    for pick in pause_with_calls_in_flight(bench):
        pick.release(Outcome.RETRYABLE, "ReadTimeout")
    assert bench.ejected == []
    bench.pattern(1, "-----")
    assert bench.ejected == [(1, "consecutive")], "later calls count as ever"


def test_who_has_not_answered_since_a_pause_is_ejected_for_what_had_piled_up():
    bench = Bench(4)
    running = [bench.pick(port) for port in range(1, 5) for _ in range(8)]
    bench.clock.advance(2)
    for pick in running:
        pick.release(Outcome.RETRYABLE, "ReadTimeout")
    bench.call(2)
    bench.pattern(1, "-----")
    assert [port for port, _ in bench.ejected] == [1]


def test_a_probe_that_fails_in_our_own_trouble_is_given_back():
    bench = Bench(4)
    bench.pattern(1, "-----")
    bench.call(2)
    bench.clock.advance(5)
    probe = bench.balancer.try_pick()
    assert probe.endpoint.port == 1
    for port in (2, 3, 4):
        bench.pattern(port, "-----", seconds=0.001)
    assert len(bench.seen(events.EjectionSuspended)) == 1
    probe.release(Outcome.FAILURE, "503")
    another = bench.balancer.try_pick()
    assert another.node.breaker.probe is another


class Pupil(RoundRobin):
    """Remembers what it was told."""

    def __init__(self):
        super().__init__()
        self.failures = []
        self.seconds = []

    def observe(self, node, seconds, success, now):
        if not success:
            self.failures.append(node.endpoint.port)
            self.seconds.append(seconds)


def test_policies_learn_nothing_from_our_own_trouble():
    pupil = Pupil()
    bench = Bench(4, policy=lambda: pupil)
    for pick in pause_with_calls_in_flight(bench):
        pick.release(Outcome.RETRYABLE, "ReadTimeout")
    assert pupil.failures == []
    bench.call(3, False)
    assert pupil.failures == [3]


def test_policies_learn_of_failures_in_doubt_when_these_are_judged():
    pupil = Pupil()
    bench = Bench(4, policy=lambda: pupil)
    running = {port: bench.pick(port) for port in range(1, 5)}
    bench.clock.advance(2)
    running.pop(1).release(Outcome.RETRYABLE, "ReadTimeout")
    assert pupil.failures == []
    bench.clock.advance(1)
    for pick in running.values():
        pick.release()
    bench.balancer.try_pick().release()
    assert (pupil.failures, pupil.seconds) == ([1], [2.0])


def test_one_that_hangs_is_not_excused_by_a_lack_of_calls():
    bench = Bench(4)
    running = [bench.pick(1) for _ in range(8)]
    bench.clock.advance(2)
    for pick in running:
        pick.release(Outcome.RETRYABLE, "ReadTimeout")
    assert bench.ejected == [(1, "consecutive")]


def test_failures_in_doubt_are_judged_when_the_moment_is_over():
    bench = Bench(4)
    running = [bench.pick(1) for _ in range(8)]
    others = [bench.pick(port) for port in (2, 3, 4)]
    bench.clock.advance(2)
    for pick in running:
        pick.release(Outcome.RETRYABLE, "ReadTimeout")
    assert bench.ejected == [], "the others may yet fail, too"
    for pick in others:
        pick.release()
    bench.clock.advance(1)
    bench.balancer.try_pick().release()
    assert bench.ejected == [(1, "consecutive")]


def test_most_at_once_and_no_answer_is_our_own_trouble():
    bench = Bench(4)
    for port in (1, 2, 3):
        bench.pattern(port, "-----", seconds=0.001)
    assert [event.reason for event in bench.seen(events.EjectionSuspended)] == ["3 of 4 endpoints failed at once"]
    assert bench.balancer.stats().healthy == 4
    bench.call(4)
    for port in (1, 2, 3):
        bench.pattern(port, "-----", seconds=0.001)
        bench.call(4)
    assert {bench.balancer.try_pick().endpoint.port for _ in range(50)} == {4}


def test_panic_below_a_share_if_wanted():
    bench = Bench(4, panic_below=0.5)
    for port in (1, 2, 3):
        bench.pattern(port, "-----")
        bench.call(4)
    assert [(event.size, event.healthy) for event in bench.seen(events.Panicked)] == [(4, 1)]
    assert {bench.balancer.try_pick().endpoint.port for _ in range(50)} == {1, 2, 3, 4}
    assert "too few endpoints are healthy" in bench.balancer.explain()
