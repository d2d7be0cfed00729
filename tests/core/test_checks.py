"""What active checks mean for an endpoint: thresholds, ejection, return, and who has the last word. No test sleeps."""

from __future__ import annotations

import random
from typing import Any

import pytest

from clientlb import Balancer, Cause, Endpoint, HealthOptions, HttpCheck, Options, Outcome, TcpCheck, events
from clientlb.health.checkup import Checkup, Finding, first_delay, next_delay
from clientlb.testing import FakeClock


class Bench:
    """A balancer with a clock, a memory for its events, and checks that say what they are told. All passed one."""

    def __init__(self, endpoints: int = 3, *, passing: bool = True, **health: Any) -> None:
        self.clock = FakeClock()
        self.events: list[events.Event] = []
        health.setdefault("check", TcpCheck())
        options = Options(policy="round_robin", health=HealthOptions(**health))
        self.balancer = Balancer("orders", options, emit=self.events.append, clock=self.clock, rng=random.Random(1))
        self.balancer.update([Endpoint("10.0.0.1", port) for port in range(1, endpoints + 1)])
        if passing:
            for port in range(1, endpoints + 1):
                self.check(port, "+")

    def node(self, port: int) -> Any:
        return next(node for node in self.balancer.nodes if node.endpoint.port == port)

    def check(self, port: int, pattern: str, reason: str = "connection refused", **finding: Any) -> None:
        """Checks of one endpoint, one a second: `+` passes, `-` fails."""
        for letter in pattern:
            self.clock.advance(1.0)
            now = self.clock()
            passed = letter == "+"
            found = Finding(passed, now, "" if passed else reason, **{"next_at": now + 1.0, **finding})
            self.balancer.checked(self.node(port), found)

    def call(self, port: int, pattern: str, cause: Cause = Cause.APPLICATION) -> None:
        for letter in pattern:
            pick = self.balancer.try_pick([node for node in self.balancer.nodes if node.endpoint.port != port])
            assert pick is not None
            assert pick.endpoint.port == port
            pick.release(Outcome.SUCCESS if letter == "+" else Outcome.FAILURE, "503", None, cause)

    def picked(self, picks: int = 12) -> set[int]:
        """Who is picked in the next calls. They succeed."""
        found = set()
        for _ in range(picks):
            pick = self.balancer.try_pick()
            assert pick is not None
            pick.release()
            found.add(pick.endpoint.port)
        return found

    def seen(self, kind: type[events.Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def verdict(self, port: int) -> str:
        return next(each.verdict for each in self.balancer.explanation().endpoints if each.endpoint.port == port)


@pytest.mark.parametrize(
    ("pattern", "failing"),
    [("", False), ("--", False), ("---", True), ("--+--", False), ("---+", True), ("---+-+", True), ("---++", False)],
)
def test_thresholds(pattern: str, failing: bool) -> None:
    checkup, turns = Checkup(), 0
    for number, letter in enumerate(pattern):
        turns += checkup.take(Finding(letter == "+", float(number)), TcpCheck(unhealthy=3, healthy=2))
    assert checkup.failing is failing
    assert turns == ("---" in pattern) + pattern.endswith("++")


def test_what_the_server_says_itself_needs_no_threshold() -> None:
    checkup = Checkup()
    assert checkup.take(Finding(False, 1.0, "it says NOT_SERVING", final=True), TcpCheck())
    assert checkup.why == "active check failed: it says NOT_SERVING"
    assert checkup.take(Finding(True, 2.0, final=True), TcpCheck())
    assert not checkup.failing


def test_one_that_joins_is_checked_at_once_and_a_thousand_are_spread_over_the_interval() -> None:
    rng, check = random.Random(1), TcpCheck(interval=5.0, jitter=0.1)
    assert first_delay(1, check, rng) == 0.0
    assert max(first_delay(11, check, rng) for _ in range(100)) <= 0.1
    many = [first_delay(1000, check, rng) for _ in range(1000)]
    assert max(many) <= 5.0
    assert sum(1 for each in many if each < 1.0) < 300
    second = [next_delay(1, check, rng) for _ in range(1000)]
    assert min(second) < 0.5
    assert 4.5 < max(second) <= 5.0
    later = [next_delay(2, check, rng) for _ in range(1000)]
    assert 4.5 <= min(later) < 4.6
    assert 5.4 < max(later) <= 5.5


def test_a_failing_check_takes_an_endpoint_out_and_a_passing_one_brings_it_back() -> None:
    bench = Bench()
    bench.check(1, "--")
    assert bench.picked() == {1, 2, 3}
    assert bench.verdict(1) == "may be picked"
    bench.check(1, "-")
    (ejected,) = bench.seen(events.Ejected)
    assert (ejected.endpoint.port, ejected.rule, ejected.seconds) == (1, "check", float("inf"))
    assert bench.picked() == {2, 3}
    bench.check(1, "-+")
    assert bench.picked() == {2, 3}
    bench.check(1, "+")
    assert [event.endpoint.port for event in bench.seen(events.Restored)] == [1]
    assert bench.picked() == {1, 2, 3}


def test_explain_says_why_since_when_and_what_comes_next() -> None:
    bench = Bench()
    bench.check(1, "-")
    assert "failed 0.0 s ago: connection refused" in bench.balancer.explain()
    bench.check(1, "--", next_at=None)
    bench.clock.advance(2.0)
    assert bench.verdict(1) == (
        "ejected 2.0 s ago: active check failed 3 times: connection refused; it is back when it says so"
    )
    bench.check(1, "-", reason="answered 503")
    bench.clock.advance(0.25)
    assert bench.verdict(1) == "ejected 3.2 s ago: active check failed 4 times: answered 503; next check in 0.8 s"
    bench.clock.advance(0.75)
    assert bench.verdict(1).endswith("answered 503; a check is under way")
    bench.check(2, "+")
    assert "10.0.0.1:2: may be picked (0 in flight; check passed 0.0 s ago)" in bench.balancer.explain()


def test_no_call_probes_whom_a_check_holds_out() -> None:
    bench = Bench()
    bench.check(1, "---")
    for _ in range(50):
        bench.clock.advance(60.0)
        assert bench.picked() == {2, 3}
    bench.balancer.reachable(bench.node(1))
    assert bench.picked() == {2, 3}
    assert bench.seen(events.Probing) == []


def test_when_all_checks_fail_nobody_is_held_until_one_passes() -> None:
    bench = Bench()
    for port in (1, 2):
        bench.check(port, "---")
    assert bench.picked() == {3}
    bench.check(3, "--")
    assert bench.picked() == {3}
    bench.check(3, "-")
    assert bench.picked() == {1, 2, 3}
    assert [event.size for event in bench.seen(events.Panicked)] == [3]
    assert "may be picked (0 in flight; active check failed 3 times: connection refused" in bench.balancer.explain()
    assert "nobody passes the active check, so nobody is ejected for that" in bench.balancer.explain()
    for port in (1, 2, 3):
        bench.check(port, "--+--")
    assert bench.picked() == {1, 2, 3}
    assert len(bench.seen(events.Panicked)) == 1
    bench.check(2, "++")
    assert bench.picked() == {1, 2, 3}, "the others are given the time of one check"
    bench.check(1, "+")
    bench.check(3, "-")
    assert bench.picked() == {1, 2}


def test_where_no_check_was_ever_passed_nobody_is_held() -> None:
    bench = Bench(passing=False)
    bench.check(1, "------")
    assert bench.picked() == {1, 2, 3}
    assert bench.seen(events.Panicked) == []
    bench.check(2, "+")
    bench.check(1, "-")
    assert bench.picked() == {2, 3}


def test_one_slip_of_the_last_one_that_passes_lets_nobody_else_back() -> None:
    bench = Bench(2)
    bench.check(1, "---")
    bench.check(2, "--")
    bench.check(1, "--")
    assert bench.picked() == {2}


def test_what_servers_say_themselves_is_heard_again_when_one_passes() -> None:
    bench = Bench(passing=False)
    said: dict[str, Any] = {"final": True, "next_at": None, "reason": "it says NOT_SERVING"}
    bench.check(1, "-", **said)
    assert bench.picked() == {1, 2, 3}
    bench.check(2, "-", **said)
    bench.check(3, "+", **said)
    assert bench.picked() == {3}
    bench.check(3, "-", **said)
    assert bench.picked() == {1, 2, 3}
    bench.check(1, "+", **said)
    assert bench.picked() == {1}


def test_if_nothing_is_to_be_suspended_everybody_is_used_in_panic_and_no_call_ends_that() -> None:
    bench = Bench(suspend=False)
    for port in (1, 2, 3):
        bench.check(port, "---")
    assert bench.picked() == {1, 2, 3}
    assert len(bench.seen(events.Panicked)) == 1
    assert bench.seen(events.Restored) == []
    assert "no endpoint is healthy: all of them are used" in bench.balancer.explain()
    bench.check(2, "++")
    assert bench.picked() == {2}


def test_panic_below_holds_for_checks_too() -> None:
    bench = Bench(4, panic_below=0.5)
    for port in (1, 2, 3):
        bench.check(port, "---")
    assert [event.healthy for event in bench.seen(events.Panicked)] == [1]
    assert bench.picked() == {1, 2, 3, 4}


def test_on_trial_a_check_only_says_what_it_would_do() -> None:
    bench = Bench(dry_run={"check"})
    bench.check(1, "-----")
    assert [(event.endpoint.port, event.rule) for event in bench.seen(events.WouldEject)] == [(1, "check")]
    assert bench.picked() == {1, 2, 3}
    assert "may be picked (0 in flight; active check failed 5 times: connection refused" in bench.balancer.explain()
    bench.check(1, "++---")
    assert len(bench.seen(events.WouldEject)) == 2
    assert bench.seen(events.Ejected) == []


def test_a_passing_check_ends_an_ejection_for_connections_that_could_not_be_made() -> None:
    bench = Bench(suspend=False)
    bench.check(1, "++++")
    bench.call(1, "-----", Cause.CONNECT)
    assert bench.picked() == {2, 3}
    bench.check(1, "+")
    assert bench.picked() == {1, 2, 3}


def test_a_check_that_passed_all_the_while_says_nothing_about_calls_that_fail() -> None:
    bench = Bench(suspend=False, open_for=30.0)
    bench.check(1, "++++")
    bench.call(1, "-----")
    bench.check(1, "++++")
    assert bench.picked() == {2, 3}
    assert bench.verdict(1).endswith("next probe in 26.0 s")


def test_a_check_that_failed_as_calls_did_ends_their_ejection_when_it_passes() -> None:
    bench = Bench(suspend=False, open_for=30.0)
    bench.call(1, "-----")
    bench.check(1, "-+")
    assert bench.picked() == {2, 3}
    bench.check(1, "+")
    assert bench.picked() == {1, 2, 3}


def test_a_check_that_began_before_the_trouble_is_no_evidence() -> None:
    bench = Bench(suspend=False)
    bench.check(1, "++")
    began = bench.clock()
    bench.clock.advance(0.5)
    bench.call(1, "-----", Cause.CONNECT)
    bench.balancer.checked(bench.node(1), Finding(True, began))
    assert bench.picked() == {2, 3}


def test_a_check_that_fails_takes_over_from_a_probe_under_way() -> None:
    bench = Bench(suspend=False)
    bench.call(1, "-----")
    bench.clock.advance(6.0)
    probe = bench.balancer.try_pick()
    assert probe is not None
    assert probe.endpoint.port == 1
    bench.check(1, "---")
    probe.release()
    assert bench.picked() == {2, 3}
    assert [event.rule for event in bench.seen(events.Ejected)] == ["consecutive", "check"]


def test_a_check_that_passes_ends_the_doubt_whether_the_trouble_is_our_own() -> None:
    bench = Bench()
    for port in (1, 2):
        bench.call(port, "-----")
    assert len(bench.seen(events.EjectionSuspended)) == 1
    restored = len(bench.seen(events.Restored))
    bench.check(3, "+")
    assert len(bench.seen(events.EjectionResumed)) == 1
    assert len(bench.seen(events.Restored)) == restored


def test_a_check_that_passed_meanwhile_proves_that_the_trouble_is_not_our_own() -> None:
    bench = Bench()
    bench.call(1, "-----")
    bench.check(3, "+")
    bench.call(2, "-----")
    assert bench.seen(events.EjectionSuspended) == []
    assert bench.picked() == {3}


def test_one_in_limbo_whose_check_fails_is_dropped() -> None:
    bench = Bench(4)
    bench.balancer.update([Endpoint("10.0.0.1", 1)])
    assert len(bench.balancer.limbo) == 3
    bench.check(2, "---")
    assert sorted(endpoint.port for endpoint in bench.balancer.limbo) == [3, 4]


def test_what_is_found_about_one_that_left_is_forgotten() -> None:
    bench = Bench()
    node = bench.node(3)
    bench.balancer.update([Endpoint("10.0.0.1", 1), Endpoint("10.0.0.1", 2)])
    for _ in range(3):
        bench.balancer.checked(node, Finding(False, bench.clock(), "refused"))
    assert bench.seen(events.Ejected) == []
    assert bench.picked() == {1, 2}


def test_checks_are_in_no_figures() -> None:
    bench = Bench()
    bench.check(1, "+++---")
    bench.check(2, "+++")
    assert [(each.calls, each.failures) for each in bench.balancer.stats().endpoints] == [(0, 0)] * 3


def test_survivors_keep_what_is_known_and_a_new_server_on_the_same_address_does_not() -> None:
    bench = Bench()
    bench.check(1, "---")
    bench.balancer.update([Endpoint("10.0.0.1", 1, weight=2.0), Endpoint("10.0.0.1", 2), Endpoint("10.0.0.1", 3)])
    assert bench.picked() == {2, 3}
    bench.balancer.after_fork()
    assert bench.picked() == {2, 3}
    bench.balancer.update(
        [Endpoint("10.0.0.1", 1, id="again"), Endpoint("10.0.0.1", 2), Endpoint("10.0.0.1", 3)],
    )
    assert bench.picked() == {1, 2, 3}


def test_without_a_check_among_the_options_nothing_is_judged() -> None:
    bench = Bench(check=None)
    bench.check(1, "-----")
    assert bench.picked() == {1, 2, 3}


def test_an_http_check_is_a_value() -> None:
    assert HttpCheck("/healthz", headers={"X-From": "a"}) == HttpCheck("/healthz", headers={"X-From": "a"})
    assert len({HttpCheck("/a"), HttpCheck("/a"), HttpCheck("/b")}) == 2
