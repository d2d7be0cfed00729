"""The breaker, transition by transition, as its picture shows it."""

import random

import pytest

from clientlb import Cause, HealthOptions
from clientlb.health.breaker import Breaker, State

OPTIONS = HealthOptions(consecutive_failures=3, open_for=5, open_for_max=60, probe_timeout=30, connect_failures=3)
PROBE = object()


def opened(now=100.0, rng=None):
    breaker = Breaker()
    breaker.open(now, OPTIONS, rng or random.Random(1))
    assert breaker.state is State.OPEN
    return breaker


def test_failures_of_each_kind_are_counted_apart():
    breaker = Breaker()
    kinds = [Cause.APPLICATION, Cause.CONNECT, Cause.OVERLOAD, Cause.APPLICATION, Cause.CONNECT, Cause.OVERLOAD]
    assert [breaker.count(cause, OPTIONS) for cause in kinds] == [None] * 6
    assert breaker.count(Cause.OVERLOAD, OPTIONS) is None, "a server that is busy works"
    assert breaker.count(Cause.APPLICATION, OPTIONS) == "consecutive"
    assert breaker.count(Cause.CONNECT, OPTIONS) == "connect"


def test_success_in_between_starts_the_count_again():
    breaker = Breaker()
    for _ in range(10):
        assert breaker.count(Cause.APPLICATION, OPTIONS) is None
        assert breaker.count(Cause.APPLICATION, OPTIONS) is None
        breaker.succeeded(0, 1)


def test_probe_is_due_only_when_the_time_is_up():
    breaker = opened(now=100.0)
    assert not breaker.probe_due(104.9)
    assert breaker.probe_due(105.0)


def test_probe_success_closes():
    breaker = opened(now=100.0)
    breaker.lease(PROBE, 105.0, OPTIONS)
    assert breaker.state is State.HALF_OPEN
    assert breaker.succeeded(started=105.0, now=105.1)
    assert (breaker.state, breaker.failures, breaker.probe) == (State.CLOSED, 0, None)


def test_probe_failure_opens_for_longer_with_equal_jitter():
    for seed in range(50):
        rng = random.Random(seed)
        breaker, now, waits = opened(100.0, rng), 100.0, []
        for _ in range(6):
            now = breaker.until
            breaker.lease(PROBE, now, OPTIONS)
            assert breaker.fails_probe(started=now)
            breaker.open(now + 0.1, OPTIONS, rng)
            waits.append(breaker.until - breaker.opened_at)
        for wait, (low, high) in zip(waits, [(5, 10), (10, 20), (20, 40), (40, 60), (60, 60), (60, 60)], strict=True):
            assert low - 1e-6 <= wait <= high + 1e-6


@pytest.mark.parametrize(("good", "longest"), [(0, 40), (9.9, 40), (10, 20), (20, 10), (29.9, 10), (30, 5), (3600, 5)])
def test_good_behaviour_is_paid_back_step_by_step(good, longest):
    breaker, rng = opened(100.0), random.Random(1)
    for _ in range(2):
        breaker.lease(PROBE, breaker.until, OPTIONS)
        breaker.open(breaker.until, OPTIONS, rng)
    breaker.lease(PROBE, breaker.until, OPTIONS)
    assert breaker.succeeded(started=breaker.until, now=200.0)
    breaker.open(200.0 + good, OPTIONS, rng)
    wait = breaker.until - breaker.opened_at
    assert (longest / 2 if longest > 5 else 5) - 1e-6 <= wait <= longest + 1e-6


def test_cancelled_probe_is_given_back():
    breaker = opened(100.0)
    breaker.lease(PROBE, 105.0, OPTIONS)
    assert not breaker.ignored(object(), 106.0), "somebody else's cancelled call is not the probe"
    assert breaker.ignored(PROBE, 106.0)
    assert breaker.state is State.OPEN
    assert breaker.probe_due(106.0)


def test_probe_that_never_comes_back_runs_out():
    breaker = opened(100.0)
    breaker.lease(PROBE, 105.0, OPTIONS)
    assert not breaker.probe_due(134.9)
    assert breaker.probe_due(135.0)
    second = object()
    breaker.lease(second, 135.0, OPTIONS)
    assert not breaker.ignored(PROBE, 136.0), "the first probe holds nothing any more"
    assert breaker.ignored(second, 136.0)


@pytest.mark.parametrize("state", [State.OPEN, State.HALF_OPEN])
def test_calls_from_before_the_trouble_say_nothing(state):
    breaker = opened(100.0)
    if state is State.HALF_OPEN:
        breaker.lease(PROBE, 105.0, OPTIONS)
    assert not breaker.succeeded(started=99.0, now=106.0)
    assert not breaker.fails_probe(started=99.0)
    assert breaker.state is state


def test_success_of_a_call_in_panic_closes():
    breaker = opened(100.0)
    assert breaker.succeeded(started=101.0, now=102.0)
    assert breaker.state is State.CLOSED
