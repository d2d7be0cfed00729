"""A hedged call, step by step: when another attempt starts beside the first, which one stands, and what becomes of the
rest. Nothing here waits: the clock is turned by hand."""

import asyncio
import random
from concurrent.futures import Future
from functools import partial

import pytest

from clientlb import (
    Balancer,
    BudgetOptions,
    Cause,
    Endpoint,
    HedgeOptions,
    JournalOptions,
    Options,
    Outcome,
    RetryOptions,
    Verdict,
    events,
)
from clientlb.call import LATE, Attempt, Await, Ended, Sleep, call
from clientlb.hedging import drive_hedged, drive_hedged_async, not_made
from clientlb.outcome import SUCCEEDED
from clientlb.policy import Filter, Request
from clientlb.retry.policy import Refusal
from clientlb.testing import FakeClock

FAILED = Verdict(Outcome.RETRYABLE, "503")
REFUSED = Verdict(Outcome.RETRYABLE, "ConnectError", sent=False, cause=Cause.CONNECT)
BROKEN = Verdict(Outcome.FAILURE, "500")


class Bench:
    def __init__(self, endpoints=3, hedge=None, policy="least_time", **retry):
        self.clock = FakeClock()
        self.events = []
        retry = RetryOptions(hedge=hedge or HedgeOptions(delay=0.1), **retry)
        options = Options(policy=policy, retry=retry)
        self.balancer = Balancer("orders", options, emit=self.events.append, clock=self.clock, rng=random.Random(1))
        self.balancer.update(
            each if isinstance(each, Endpoint) else Endpoint("h", each)
            for each in (range(1, endpoints + 1) if isinstance(endpoints, int) else endpoints)
        )

    def call(self, **arguments):
        return call(self.balancer, **({"idempotent": True} | arguments))

    def of(self, kind):
        return [event for event in self.events if type(event) is kind]

    @property
    def in_flight(self):
        return sum(node.in_flight for node in self.balancer.nodes)


def test_an_attempt_says_when_it_is_late():
    assert next(Bench().call()).hedge_after == 0.1
    assert next(Bench().call(idempotent=False)).hedge_after is None
    assert next(Bench().call(replayable=False)).hedge_after is None
    assert next(Bench(hedge=HedgeOptions(delay=0.0001)).call()).hedge_after == 0.001, "`least`"


def test_the_second_attempt_goes_elsewhere_and_may_win():
    for _ in range(50):
        bench = Bench(endpoints=2)
        steps = bench.call()
        first = next(steps)
        bench.clock.advance(0.1)
        second = steps.send(LATE)
        assert type(second) is Attempt
        assert second.pick.endpoint != first.pick.endpoint
        assert second.hedge_after is None, "one hedge is all"
        assert bench.in_flight == 2
        bench.clock.advance(0.05)
        assert steps.send(Ended(second, SUCCEEDED)) is None
        assert bench.in_flight == 1, "that of the winner, whose body is yet to be read"
        second.pick.release()
        assert bench.in_flight == 0
        assert [(tried.endpoint, tried.reason) for tried in second.trace.attempts] == [
            (first.pick.endpoint, "superseded"),
            (second.pick.endpoint, ""),
        ]
        assert [tried.seconds for tried in second.trace.attempts] == pytest.approx([0.15, 0.05])
        assert second.trace.hedges == 1
        [hedged] = bench.of(events.Hedged)
        assert (hedged.endpoint, hedged.seconds) == (second.pick.endpoint, pytest.approx(0.1))
        figures = bench.balancer.stats()
        assert (figures.calls, figures.hedges, figures.retries, figures.failures) == (1, 1, 0, 0)


def test_the_first_attempt_may_still_win():
    bench = Bench()
    steps = bench.call()
    first = next(steps)
    second = steps.send(LATE)
    assert steps.send(Ended(first, SUCCEEDED)) is None
    first.pick.release()
    assert bench.in_flight == 0
    assert first.trace.endpoint == first.pick.endpoint
    assert second.pick.endpoint != first.trace.endpoint


def test_who_was_overtaken_has_not_failed_but_was_slow():
    bench = Bench(endpoints=2)
    steps = bench.call()
    first = next(steps)
    bench.clock.advance(0.1)
    second = steps.send(LATE)
    bench.clock.advance(0.9)
    steps.send(Ended(second, SUCCEEDED))
    second.pick.release()
    by_endpoint = {each.endpoint: each for each in bench.balancer.stats().endpoints}
    assert by_endpoint[first.pick.endpoint.address].failures == 0
    assert by_endpoint[first.pick.endpoint.address].median == pytest.approx(1.0, rel=0.1)


def test_a_failure_waits_for_the_other_attempt():
    bench = Bench()
    steps = bench.call()
    first = next(steps)
    second = steps.send(LATE)
    assert steps.send(Ended(first, FAILED)) == Await()
    assert bench.in_flight == 1
    assert steps.send(Ended(second, SUCCEEDED)) is None
    second.pick.release()
    assert [tried.reason for tried in second.trace.attempts] == ["503", ""]
    assert bench.in_flight == 0


def test_when_both_fail_the_call_is_retried_on_a_third():
    bench = Bench()
    steps = bench.call()
    first = next(steps)
    second = steps.send(LATE)
    steps.send(Ended(second, FAILED))
    step = steps.send(Ended(first, FAILED))
    assert type(step) is Sleep
    third = next(steps)
    assert len({each.pick.endpoint for each in (first, second, third)}) == 3
    assert third.number == 3
    assert third.hedge_after == 0.1
    assert bench.in_flight == 1
    assert steps.send(SUCCEEDED) is None
    third.pick.release()
    assert bench.in_flight == 0
    figures = bench.balancer.stats()
    assert (figures.calls, figures.retries, figures.hedges) == (1, 1, 1)


@pytest.mark.parametrize("answer", [BROKEN, Verdict(Outcome.IGNORED, "ValueError")], ids=["500", "ValueError"])
def test_what_would_be_the_same_elsewhere_ends_the_call(answer):
    bench = Bench()
    steps = bench.call()
    first = next(steps)
    second = steps.send(LATE)
    assert steps.send(Ended(first, answer)) is None
    first.pick.release()
    assert bench.in_flight == 0
    assert [tried.reason for tried in first.trace.attempts] == ["superseded", answer.reason]
    assert first.trace.endpoint == first.pick.endpoint != second.pick.endpoint
    assert bench.balancer.stats().failures == (answer is BROKEN)


def test_several_hedges_if_wanted_each_after_as_long_again():
    bench = Bench(endpoints=4, hedge=HedgeOptions(delay=0.1, at_most=2))
    steps = bench.call()
    attempts = [next(steps)]
    while attempts[-1].hedge_after is not None:
        attempts.append(steps.send(LATE))
    assert len({each.pick.endpoint for each in attempts}) == 3
    assert steps.send(Ended(attempts[1], SUCCEEDED)) is None
    attempts[1].pick.release()
    assert bench.in_flight == 0


def test_no_hedge_without_another_endpoint():
    bench = Bench(endpoints=1)
    steps = bench.call()
    first = next(steps)
    assert steps.send(LATE) == Await()
    assert steps.send(SUCCEEDED) is None
    first.pick.release()
    assert bench.balancer.stats().hedges == 0


def test_no_hedge_on_an_endpoint_that_is_ejected():
    bench = Bench(endpoints=2)
    steps = bench.call()
    first = next(steps)
    while bench.balancer.stats().healthy == 2:
        bench.balancer.try_pick([first.pick.node]).release(Outcome.RETRYABLE, "503")
    assert steps.send(LATE) == Await()
    steps.close()
    assert bench.in_flight == 0


def test_no_hedge_without_budget():
    bench = Bench(budget=BudgetOptions(ratio=0, reserve=0))
    steps = bench.call()
    first = next(steps)
    bench.clock.advance(0.1)
    assert steps.send(LATE) == Await()
    figures = bench.balancer.stats()
    assert (figures.hedges, figures.hedges_denied) == (0, 1)
    [denied] = bench.of(events.HedgeDenied)
    assert (denied.endpoint, denied.seconds) == (first.pick.endpoint, pytest.approx(0.1))
    steps.close()
    assert bench.in_flight == 0


@pytest.mark.parametrize("which", ["the first", "the second"])
def test_an_attempt_that_could_not_be_started_leaves_the_call_to_the_other(which):
    bench = Bench(budget=BudgetOptions(ratio=0, reserve=0.1))
    for _ in range(3):
        steps = bench.call()
        first = next(steps)
        second = steps.send(LATE)
        gone, good = (first, second) if which == "the first" else (second, first)
        assert steps.send(Ended(gone, not_made(RuntimeError()))) == Await()
        assert bench.in_flight == 1
        assert steps.send(Ended(good, SUCCEEDED)) is None
        good.pick.release()
        assert [tried.reason for tried in good.trace.attempts] == ["RuntimeError", ""]
    assert bench.in_flight == 0
    figures = bench.balancer.stats()
    assert (figures.calls, figures.failures, figures.hedges, figures.hedges_denied) == (3, 0, 0, 0)


def test_a_deadline_that_cuts_both_short_is_evidence_against_neither():
    bench = Bench()
    usual = [bench.balancer.pick() for _ in range(60)]
    bench.clock.advance(1.0)
    for pick in usual:
        pick.release()
    steps = bench.call(deadline=bench.clock() + 0.2, whole=True)
    first = next(steps)
    bench.clock.advance(0.1)
    second = steps.send(LATE)
    bench.clock.advance(0.1)
    assert steps.send(Ended(first, FAILED)) == Await()
    assert steps.send(Ended(second, FAILED)) is None
    figures = bench.balancer.stats()
    assert [endpoint.failures for endpoint in figures.endpoints] == [0, 0, 0]
    assert (figures.calls, figures.failures, figures.hedges) == (60, 0, 0)


def test_when_none_could_be_started_the_call_fails():
    bench = Bench()
    steps = bench.call()
    first = next(steps)
    assert steps.send(Ended(first, not_made(RuntimeError()))) is None
    first.pick.release()
    assert bench.in_flight == 0


@pytest.mark.parametrize("way", ["function", "coroutine"])
@pytest.mark.parametrize("hedge", [HedgeOptions(), HedgeOptions(delay=0.1)], ids=["nothing is known yet", "in time"])
def test_the_loops_drive_a_call_that_is_not_late(way, hedge):
    bench = Bench(hedge=hedge)

    def launch(attempt):
        future = Future()
        future.set_result(attempt)
        return future

    async def send(attempt):
        return attempt

    def classify(attempt, result, error):
        return SUCCEEDED

    if way == "function":
        made = drive_hedged(bench.call(), bench.balancer, launch, classify)
    else:
        made = asyncio.run(drive_hedged_async(bench.call(), bench.balancer, send, classify))
    made.pick.release()
    assert (bench.in_flight, bench.balancer.stats().calls) == (0, 1)


def test_a_second_attempt_that_cannot_be_launched_leaves_the_first_alone():
    bench, launched = Bench(hedge=HedgeOptions(delay=0.001)), []

    class First(Future):
        def result(self, timeout=None):
            return "the first"

    def launch(attempt):
        if launched:
            launched[0].set_result(None)
            raise RuntimeError("can't start new thread")
        launched.append(First())
        return launched[0]

    def classify(attempt, result, error):
        return SUCCEEDED

    assert drive_hedged(bench.call(whole=True), bench.balancer, launch, classify) == "the first"
    assert (bench.in_flight, bench.balancer.stats().hedges) == (0, 0)


def test_hedges_and_retries_share_the_budget():
    bench = Bench(budget=BudgetOptions(ratio=0, reserve=0.1))
    steps = bench.call()
    first = next(steps)
    second = steps.send(LATE)
    steps.send(Ended(first, FAILED))
    assert steps.send(Ended(second, FAILED)) is None
    assert second.trace.refusal is Refusal.OUT_OF_BUDGET
    second.pick.release()
    assert bench.in_flight == 0


def test_a_hedge_that_nobody_fits_costs_no_budget():
    bench = Bench([Endpoint("h", 1, version="1"), Endpoint("h", 2, version="2")], policy=partial(Filter, "p2c", "fail"))
    for _ in range(100):
        steps = bench.call(request=Request.of(where={"version": "1"}))
        first = next(steps)
        bench.clock.advance(0.001)
        assert type(steps.send(LATE)) is Await
        assert steps.send(Ended(first, SUCCEEDED)) is None
        first.pick.release()
    assert bench.in_flight == bench.balancer.stats().hedges == 0
    steps = bench.call()
    next(steps)
    assert type(steps.send(LATE)) is Attempt, "the budget is untouched"
    steps.close()


def test_a_list_that_became_empty_leaves_the_attempt_that_runs():
    bench = Bench()
    steps = bench.call()
    first = next(steps)
    bench.balancer.close()
    assert steps.send(LATE) == Await()
    assert steps.send(SUCCEEDED) is None
    first.pick.release()


@pytest.mark.parametrize("moment", ["alone", "both", "one is left"])
def test_a_call_that_is_given_up_leaves_nothing_in_flight(moment):
    bench = Bench()
    steps = bench.call()
    first = next(steps)
    if moment != "alone":
        steps.send(LATE)
    if moment == "one is left":
        steps.send(Ended(first, FAILED))
    steps.close()
    assert bench.in_flight == 0
    figures = bench.balancer.stats()
    assert (figures.calls, figures.failures) == (0, 0)


def test_an_attempt_beside_the_first_expires_with_the_deadline():
    bench = Bench()
    start = bench.clock()
    steps = bench.call(deadline=start + 1.0, attempt_timeout=0.7)
    first = next(steps)
    assert first.expires == pytest.approx(start + 0.7)
    bench.clock.advance(0.5)
    second = steps.send(LATE)
    assert second.expires == pytest.approx(start + 1.0)
    steps.close()


def test_an_unreachable_endpoint_is_said_so_even_if_the_other_wins():
    bench = Bench(endpoints=2)
    told = []
    bench.balancer.unreachable = told.append
    steps = bench.call()
    first = next(steps)
    second = steps.send(LATE)
    steps.send(Ended(second, REFUSED))
    steps.send(Ended(first, SUCCEEDED))
    first.pick.release()
    assert told == [second.pick.node]


def test_the_journal_has_all_attempts_of_a_hedged_call():
    options = Options(retry=RetryOptions(hedge=HedgeOptions(delay=0.1), avoid=("zone",)), journal=JournalOptions())
    clock = FakeClock()
    balancer = Balancer("orders", options, clock=clock, rng=random.Random(1))
    balancer.update([Endpoint("h", port, zone="ab"[port % 2]) for port in range(1, 7)])
    steps = call(balancer, idempotent=True, whole=True)
    next(steps)
    clock.advance(0.1)
    second = steps.send(LATE)
    clock.advance(0.2)
    steps.send(Ended(second, SUCCEEDED))
    overtaken, winner = balancer.journal.entries()
    assert (overtaken.outcome, overtaken.reason, overtaken.latency) == ("ignored", "superseded", pytest.approx(0.3))
    assert (winner.outcome, winner.latency) == ("success", pytest.approx(0.2))
    assert (overtaken.call, overtaken.attempt) == (winner.call, 1)
    assert winner.attempt == 2
    assert len(winner.excluded) == 3, "the zone of the first"


class TestPercentile:
    def feed(self, bench, seconds, times):
        for _ in range(times):
            pick = bench.balancer.pick()
            bench.clock.advance(seconds)
            pick.release()

    def test_too_little_is_known_at_first(self):
        bench = Bench(hedge=HedgeOptions(percentile=0.95, enough=100))
        self.feed(bench, 0.01, 99)
        assert next(bench.call()).hedge_after is None
        self.feed(bench, 0.01, 1)
        bench.clock.advance(3.0)
        assert next(bench.call()).hedge_after is not None

    def test_it_is_that_of_the_last_seconds(self):
        bench = Bench(hedge=HedgeOptions(percentile=0.9))
        self.feed(bench, 0.01, 180)
        self.feed(bench, 0.1, 10)
        assert next(bench.call()).hedge_after == pytest.approx(0.01, rel=0.1)
        bench.clock.advance(30.0)
        self.feed(bench, 0.05, 200)
        assert next(bench.call()).hedge_after == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_nothing_stays_in_flight_and_no_attempt_repeats_an_endpoint_that_runs(seed):
    rng = random.Random(seed)
    bench = Bench(5, HedgeOptions(delay=0.01, at_most=3), budget=BudgetOptions(ratio=1.0, reserve=10))
    given_up = 0
    for _ in range(100):
        steps = bench.call(whole=True)
        step, running = next(steps), {}
        while step is not None:
            if type(step) is Attempt:
                assert step.pick.endpoint not in {each.pick.endpoint for each in running}
                running[step] = step.hedge_after is not None
            elif type(step) is Sleep:
                running.clear()
                step = next(steps)
                continue
            bench.clock.advance(rng.random() * 0.01)
            latest = list(running)[-1]
            dice = rng.random()
            if dice < 0.05:
                steps.close()
                given_up += 1
                break
            if running[latest] and dice < 0.5:
                running[latest] = False
                step = steps.send(LATE)
            else:
                ended = rng.choice(list(running))
                verdict = rng.choice([SUCCEEDED, FAILED, BROKEN, REFUSED])
                del running[ended]
                step = steps.send(Ended(ended, verdict))
        assert bench.in_flight == 0
    figures = bench.balancer.stats()
    assert figures.hedges > 10
    assert 0 <= figures.failures <= figures.calls == 100 - given_up
