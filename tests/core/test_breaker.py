"""The breaker, transition by transition, as its picture shows it."""

import random

import pytest

from clientlb.health.breaker import Breaker, State
from clientlb.options import HealthOptions

OPTIONS = HealthOptions(consecutive_failures=3, open_for=5, open_for_max=60, probe_timeout=30)
PROBE = object()


def opened(now=100.0, rng=None):
    breaker = Breaker()
    for _ in range(3):
        breaker.failed(now - 1, now, OPTIONS, rng or random.Random(1))
    assert breaker.state is State.OPEN
    return breaker


def test_opens_at_the_threshold_and_says_so_once():
    breaker = Breaker()
    changes = [breaker.failed(0, now, OPTIONS, random.Random(1)) for now in (1.0, 2.0, 3.0)]
    assert changes == [False, False, True]
    assert (breaker.state, breaker.until) == (State.OPEN, 8.0)


def test_success_in_between_starts_the_count_again():
    breaker = Breaker()
    for _ in range(10):
        breaker.failed(0, 1, OPTIONS, random.Random(1))
        breaker.failed(0, 1, OPTIONS, random.Random(1))
        breaker.succeeded(0)
    assert breaker.state is State.CLOSED


def test_probe_is_due_only_when_the_time_is_up():
    breaker = opened(now=100.0)
    assert not breaker.probe_due(104.9)
    assert breaker.probe_due(105.0)


def test_probe_success_closes():
    breaker = opened(now=100.0)
    breaker.lease(PROBE, 105.0, OPTIONS)
    assert breaker.state is State.HALF_OPEN
    assert breaker.succeeded(started=105.0)
    assert (breaker.state, breaker.failures, breaker.probe) == (State.CLOSED, 0, None)


def test_probe_failure_opens_for_longer_with_equal_jitter():
    for seed in range(50):
        rng = random.Random(seed)
        breaker, now, waits = opened(100.0, rng), 100.0, []
        for _ in range(6):
            now = breaker.until
            breaker.lease(PROBE, now, OPTIONS)
            assert breaker.failed(now, now + 0.1, OPTIONS, rng)
            waits.append(breaker.until - breaker.opened_at)
        for wait, (low, high) in zip(waits, [(5, 10), (10, 20), (20, 40), (40, 60), (60, 60), (60, 60)], strict=True):
            assert low - 1e-6 <= wait <= high + 1e-6


def test_success_after_trouble_starts_again_with_the_shortest_time():
    breaker = opened(100.0)
    breaker.lease(PROBE, 105.0, OPTIONS)
    breaker.succeeded(105.0)
    for _ in range(3):
        breaker.failed(110, 111, OPTIONS, random.Random(1))
    assert breaker.until == 116.0


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
    assert not breaker.succeeded(started=99.0)
    assert not breaker.failed(started=99.0, now=106.0, options=OPTIONS, rng=random.Random(1))
    assert breaker.state is state


def test_success_of_a_call_in_panic_closes():
    breaker = opened(100.0)
    assert breaker.succeeded(started=101.0)
    assert breaker.state is State.CLOSED
