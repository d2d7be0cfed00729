"""Results that are known exactly, or were published, come out of the testbed."""

from dataclasses import replace

import pytest

from clientlb import BudgetOptions, Options, RetryOptions, ThrottleOptions
from clientlb.simulation import SCENARIOS, Exponential, Setting, simulate

LOAD = 0.8
QUEUES = Setting(
    clients=1,
    servers=200,
    load=LOAD,
    work=Exponential(1.0),
    cores=1.0,
    round_trip=0.0,
    deadline=1000.0,
    warm_up=10.0,
    measured=25.0,
)
"""Two hundred queues with one client who knows them all: the supermarket of the theory."""


def test_supermarket_tail_of_two_choices():
    result = simulate(QUEUES, options=Options(policy="p2c"))
    for length in range(1, 6):
        theory = LOAD ** (2**length - 1)
        assert result.in_flight_tail(length) == pytest.approx(theory, abs=0.03), length


def test_tail_of_random_choice_is_geometric():
    result = simulate(replace(QUEUES, measured=15.0), options=Options(policy="random"))
    for length in range(1, 4):
        assert result.in_flight_tail(length) == pytest.approx(LOAD**length, abs=0.05), length


def test_round_robin_sends_one_eleventh_to_the_slow_server():
    buoyant = replace(SCENARIOS["buoyant"].points["1x11"], calls_per_second=200.0)
    result = simulate(buoyant, options=Options(policy="round_robin"))
    slow = result.attempts(result.servers[:1], 15.0, 45.0)
    assert slow == pytest.approx(result.attempts(since=15.0, until=45.0) / 11, abs=1)
    assert round((1 - result.within(1.0)) * result.calls) == slow  # those, and nobody else
    assert result.within(1.0) == pytest.approx(1 - 1 / 11 * 30 / 60, abs=0.003)


def test_the_default_reaches_what_buoyant_published():
    # it pays for what is in flight when the trouble begins, and for a look now and then: less than one in a thousand
    result = simulate(replace(SCENARIOS["buoyant"].points["1x11"], calls_per_second=400.0))
    assert result.within(1.0) > 0.999


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_bad_start_does_not_keep_the_calls_of_a_quiet_client_from_equal_servers(seed):
    figures = SCENARIOS["quiet"].figures(simulate(SCENARIOS["quiet"].points["1x4"], seed=seed))
    assert figures["least of a fair share"] > 0.5  # else servers rest for 10 s each time that they seem slow: 0.11
    assert figures["most of it"] < 1.5


def storm(budget):
    """A fleet at 80 % stands still for 2 s. Returns the share of the calls lost from 5 s after the end of that on."""
    storm = SCENARIOS["retry-storm"].points["drop"]
    storm = replace(storm, clients=3, servers=3, calls_per_second=240.0, warm_up=4.0, measured=15.0)
    result = simulate(storm, options=Options(retry=RetryOptions(budget=budget)))
    late = result.latencies(since=storm.warm_up + 12.0)
    return late.count(float("inf")) / len(late)


def test_retries_without_a_budget_keep_a_fleet_down_and_a_budget_lets_it_recover():
    assert storm(BudgetOptions(ratio=1000.0)) > 0.25
    assert storm(BudgetOptions(ratio=0.1, reserve=0.0)) < 0.01


def test_a_second_attempt_at_p95_costs_a_twentieth_and_cuts_the_tail():
    points = SCENARIOS["tail"].points
    plain, hedged = (simulate(replace(points[name], measured=30.0)) for name in ("not hedged", "hedged at p95"))
    assert 1.04 < hedged.attempts_per_call < 1.06
    assert hedged.quantile(0.999) < 0.75 * plain.quantile(0.999)


@pytest.mark.parametrize("k", [2.0, 4.0])
def test_throttled_clients_send_k_calls_for_each_that_is_accepted(k):
    flood = SCENARIOS["flood"].points["throttled, no retries"]
    flood = replace(flood, throttle=ThrottleOptions(k=k, window=20.0), warm_up=30.0, measured=30.0)
    figures = SCENARIOS["flood"].figures(simulate(flood))
    assert figures["sent per accepted call"] == pytest.approx(k, rel=0.1)


def test_prequals_fig_6_has_no_queues_below_the_allocation():
    # 80, 182, 265 and 325 ms are the paper's; they are the quantiles of the work itself
    result = simulate(replace(SCENARIOS["fig6"].points["0.75"], clients=10, servers=10, warm_up=5.0, measured=20.0))
    found = [1000 * result.quantile(fraction) for fraction in (0.5, 0.9, 0.99)]
    assert found == pytest.approx([80, 182, 265], rel=0.05)
    assert result.lost == 0
