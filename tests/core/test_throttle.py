"""Client-side throttling: the formula of "Handling Overload" (Site Reliability Engineering, chapter 21)."""

import random

import pytest

from clientlb import (
    Balancer,
    DeadlineExceededError,
    Endpoint,
    NoEndpointsError,
    Options,
    Outcome,
    RetryOptions,
    ThrottledError,
    ThrottleOptions,
    Verdict,
)
from clientlb.call import Attempt, Wait, call
from clientlb.outcome import SUCCEEDED
from clientlb.retry.policy import Refusal
from clientlb.retry.throttle import Throttle
from clientlb.retry_options import NO_RETRIES
from clientlb.testing import FakeClock

TURNED_AWAY = Verdict(Outcome.RETRYABLE, "503")
BROKEN = Verdict(Outcome.FAILURE, "500")


@pytest.mark.parametrize(
    ("requests", "accepts", "expected"),
    [(0, 0, 0.0), (19, 0, 0.0), (100, 100, 0.0), (100, 50, 0.0), (100, 25, 50 / 101), (100, 0, 100 / 101)],
)
def test_the_formula(requests, accepts, expected):
    throttle = Throttle(ThrottleOptions(), 0.0)
    always = random.Random(1)
    for _ in range(requests):
        throttle.admit(0.0, always)
    for _ in range(accepts):
        throttle.accepted(0.0)
    assert throttle.probability(0.0) == pytest.approx(expected)


@pytest.mark.parametrize("k", [1.5, 2.0, 3.0])
def test_a_service_that_is_wanted_ten_times_as_much_as_it_can_take_is_sent_k_times_that(k):
    throttle, rng = Throttle(ThrottleOptions(k=k), 0.0), random.Random(7)
    capacity, wanted = 10, 100  # per second
    sent = 0
    for second in range(600):
        taken = 0
        for number in range(wanted):
            now = second + number / wanted
            if throttle.admit(now, rng):
                sent += second >= 300
                if taken < capacity:
                    taken += 1
                    throttle.accepted(now)
    assert sent / 300 == pytest.approx(k * capacity, rel=0.1)


def test_it_forgets_after_its_window():
    throttle, rng = Throttle(ThrottleOptions(window=120.0), 0.0), random.Random(1)
    for _ in range(1000):
        throttle.admit(0.0, rng)
    assert throttle.probability(114.0) > 0.9
    assert throttle.probability(121.0) == 0.0
    assert throttle.probability(1e9) == 0.0, "however long nobody asked"


def test_a_well_service_is_never_throttled():
    throttle, rng = Throttle(ThrottleOptions(), 0.0), random.Random(1)
    for number in range(10_000):
        now = number / 100
        assert throttle.admit(now, rng)
        if number % 3:
            throttle.accepted(now)  # every third call fails


class Bench:
    def __init__(self, **retry):
        self.clock = FakeClock()
        options = Options(throttle=ThrottleOptions(least=10), retry=RetryOptions(**retry) if retry else NO_RETRIES)
        self.balancer = Balancer("orders", options, clock=self.clock, rng=random.Random(3))
        self.balancer.update([Endpoint("h", port) for port in (1, 2, 3)])

    def sent(self, verdict, times):
        """How many of so many calls were sent at all."""
        sent = 0
        for _ in range(times):
            self.clock.advance(0.01)
            try:
                steps = call(self.balancer, idempotent=True, whole=True)
                step = next(steps)
            except ThrottledError:
                continue
            sent += 1
            while step is not None:
                step = steps.send(verdict) if isinstance(step, Attempt) else next(steps)
        assert all(node.in_flight == 0 for node in self.balancer.nodes)
        return sent


def test_calls_are_refused_while_the_service_turns_most_of_them_away():
    bench = Bench()
    sent = bench.sent(TURNED_AWAY, 1000)
    assert sent < 100
    assert bench.balancer.stats().throttled == 1000 - sent
    assert bench.balancer.stats().calls == sent
    bench.balancer.rng.random = lambda: 0.0
    with pytest.raises(ThrottledError, match="service 'orders': not sent, because the service turns most calls away"):
        next(call(bench.balancer, idempotent=True, whole=True))


def test_a_call_counts_once_however_often_it_is_tried():
    bench = Bench()
    assert bench.sent(SUCCEEDED, 100) == 100
    assert bench.sent(TURNED_AWAY, 90) > 80, "below half of all calls"


def test_a_service_whose_application_fails_is_not_throttled():
    assert Bench().sent(BROKEN, 200) == 200


def test_a_call_that_was_given_up_was_not_turned_away():
    bench = Bench()
    for _ in range(200):
        steps = call(bench.balancer, idempotent=True)
        next(steps)
        steps.close()


def test_an_attempt_that_our_own_deadline_cut_short_was_not_turned_away():
    bench = Bench()
    for _ in range(50):
        pick = bench.balancer.pick()
        bench.clock.advance(0.2)
        pick.release()
    for _ in range(200):
        steps = call(bench.balancer, idempotent=True, deadline=bench.clock() + 0.05, whole=True)
        attempt = next(steps)
        bench.clock.advance(0.05)
        assert steps.send(Verdict(Outcome.RETRYABLE, "ReadTimeout")) is None
        assert attempt.trace.refusal is Refusal.OUT_OF_TIME
    assert bench.balancer.stats().throttled == 0


def test_calls_that_could_not_be_sent_do_not_count():
    bench = Bench()
    nobody = Balancer("orders", bench.balancer.options, clock=bench.clock, rng=random.Random(3))
    for _ in range(200):
        steps = call(nobody, idempotent=True)
        assert type(next(steps)) is Wait
        with pytest.raises(NoEndpointsError):
            next(steps)
        steps = call(nobody, idempotent=True)
        next(steps)
        steps.close()
    nobody.update(bench.balancer.endpoints)
    for _ in range(200):
        with pytest.raises(DeadlineExceededError):
            next(call(nobody, idempotent=True, deadline=bench.clock()))
    bench.balancer = nobody
    assert bench.sent(SUCCEEDED, 50) == 50


def test_it_is_off_by_default():
    balancer = Balancer("orders")
    assert balancer.retrying.throttle is None
    assert balancer.plain
