"""A run is a pure function of setting, options and seed; and every scenario runs."""

import subprocess
import sys
from dataclasses import replace
from math import inf

import pytest

from clientlb import ConfigurationError, Options, events
from clientlb.policy import RoundRobin
from clientlb.simulation import HARSH, MILD, SCENARIOS, Condition, Setting, Steady, simulate
from clientlb.simulation.setting import share_left

BUSY = Setting(clients=5, servers=10, antagonists=HARSH, slow_share=0.5, warm_up=2.0, measured=4.0)
ELSEWHERE = """
from clientlb.simulation import HARSH, Setting, simulate
setting = Setting(clients=5, servers=10, antagonists=HARSH, slow_share=0.5, warm_up=2.0, measured=4.0)
print(simulate(setting, seed=7).digest)
"""


def test_one_seed_is_one_run_to_the_last_bit():
    digest = simulate(BUSY, seed=7).digest
    assert simulate(BUSY, seed=7).digest == digest
    assert simulate(BUSY, seed=8).digest != digest


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_a_run_is_the_same_in_every_process(hash_seed):
    there = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": hash_seed}
    )
    assert there.stdout.strip() == simulate(BUSY, seed=7).digest


def test_policies_meet_the_same_calls():
    def arrivals(policy):
        result = simulate(BUSY, options=Options(policy=policy))
        return [moment.calls for moment in result.timeline(0.1)]

    assert arrivals("least_time") == arrivals("random")


def test_offered_load_is_what_was_asked_for():
    # 0.9 of 10 x 6.4 cores, for calls of 86.67 core-ms that are half as much again on half of the servers
    assert BUSY.rate == pytest.approx(0.9 * 10 * 6.4 / (1.08332 * 0.080 * 1.5), rel=1e-4)
    calls = simulate(replace(BUSY, measured=15.0)).calls
    assert calls == pytest.approx(15.0 * BUSY.rate, rel=0.03)


def test_an_error_is_slower_than_everything():
    nobody_answers = replace(BUSY, incidents=lambda world: [server.stop() for server in world.servers], warm_up=0.0)
    result = simulate(nobody_answers)
    assert result.lost == result.calls > 0
    assert result.lost_share == 1.0
    assert result.quantile(0.01) == inf
    assert result.within(5.0) == 0.0


def test_late_calls_are_waited_for_and_late_arrivals_do_not_count():
    slow = Setting(clients=1, servers=1, calls_per_second=10.0, work=Steady(3.0), cores=inf, warm_up=1.0, measured=5.0)
    result = simulate(slow)
    assert result.calls == sum(moment.calls for moment in result.timeline() if moment.second >= 1.0)
    assert result.quantile(1.0) == pytest.approx(3.0, abs=0.01)


def test_a_call_ends_at_its_deadline():
    hopeless = Setting(
        clients=1, servers=2, calls_per_second=5.0, work=Steady(60.0), cores=inf, warm_up=0.0, measured=5.0
    )
    result = simulate(replace(hopeless, deadline=2.0))
    assert result.lost == result.calls
    assert result.attempts_per_call == 1.0  # there was no time left for another one


def test_an_attempt_timeout_leaves_time_for_another_server():
    def one_is_mute(world):
        world.servers[0].condition = Condition.SILENT

    half_mute = Setting(
        clients=1, servers=2, calls_per_second=5.0, work=Steady(0.1), cores=inf, warm_up=0.0, measured=20.0
    )
    half_mute = replace(half_mute, incidents=one_is_mute, attempt_timeout=0.5)
    assert simulate(half_mute, options=Options(policy=RoundRobin)).lost == 0
    assert simulate(replace(half_mute, retries=False), options=Options(policy=RoundRobin)).lost > 0


def test_a_process_that_stands_still_sees_timeouts_and_no_answers():
    def stand_still(world):
        for client in world.clients:
            client.stalled_until = 3.0

    still = Setting(clients=1, servers=1, calls_per_second=50.0, work=Steady(0.1), cores=inf, warm_up=0.0, measured=6.0)

    def stall(world):
        world.at(1.0, lambda: stand_still(world))

    result = simulate(replace(still, attempt_timeout=1.0, retries=False, incidents=stall))
    # what was sent in the last tenth of a second before the stall is answered during it, and times out at its end
    in_flight = result.latencies(0.9, 1.0)
    assert in_flight
    assert set(in_flight) == {inf}
    # no call begins while the process stands still; those that came meanwhile begin at once when it runs again
    assert result.latencies(1.0, 3.0) == []
    assert len(result.latencies(3.0, 3.01)) > 80


def test_events_of_balancers_are_counted():
    sinkhole = replace(SCENARIOS["sinkhole"].points["retries"], clients=2, servers=4, calls_per_second=100.0)
    result = simulate(sinkhole, options=Options(policy="round_robin"))
    assert result.events(events.Ejected) >= 4
    assert result.lost == 0
    assert result.attempts_per_call > 1.0


def test_shares_add_up():
    result = simulate(BUSY)
    assert sum(result.shares) == pytest.approx(1.0)
    assert sum(result.shares[5:]) > 0.5  # the fast half


@pytest.mark.parametrize("table", [MILD, HARSH])
def test_neighbours_leave_what_their_table_says(table):
    for u, share in table:
        assert share_left(table, u) == share
    assert table[0][1] <= share_left(table, 0.5) <= table[-1][1]


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_runs(name):
    scenario = SCENARIOS[name]
    for setting in list(scenario.points.values())[-2:]:
        result = simulate(replace(setting, calls_per_second=10.0, clients=10))
        assert result.calls > 0
        assert all(figure >= 0.0 for figure in scenario.figures(result).values())


@pytest.mark.parametrize("wrong", [{"clients": 0}, {"servers": 0}, {"measured": 0.0}, {"cores": inf}])
def test_a_fleet_that_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigurationError, match=r"simulation: .*give"):
        Setting(**wrong)
