"""Weighted policies: shares in proportion to weights, exactly where that is promised."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clientlb import ConfigurationError
from clientlb.node import LoadReport
from clientlb.policy import LeastRequest, WeightedRoundRobin
from clientlb.policy.weighted import StaticStride
from tests.core.policies import chosen, nodes, shares

WEIGHTS = st.lists(st.floats(0.1, 100.0), min_size=1, max_size=8)


class TestStaticStride:
    @given(WEIGHTS, st.integers(0, 10_000), st.integers(1, 50))
    @settings(max_examples=25)
    def test_every_number_of_rounds_is_exact(self, weights, start, rounds):
        count = len(weights)
        stride = StaticStride(weights, start * count)  # at the beginning of a round
        counted = [0] * count
        while True:
            index = stride.next()
            if stride.turn > (start + rounds) * count:
                break
            counted[index] += 1
        for weight, picks in zip(stride.weights, counted, strict=True):
            assert abs(picks - rounds * weight / 65535) < 1

    def test_a_whole_period_is_exact_to_the_last_pick(self):
        stride = StaticStride([3, 2, 1], 0)
        counted = [0, 0, 0]
        for _ in range(sum(stride.weights)):
            counted[stride.next()] += 1
        assert counted == stride.weights

    def test_picks_are_spread_and_do_not_come_in_bursts(self):
        stride = StaticStride([1, 1, 2], 0)
        order = [stride.next() for _ in range(40)]
        assert all(set(order[at : at + 5]) == {0, 1, 2} for at in range(36))


class TestWeightedRoundRobin:
    @given(WEIGHTS, st.integers())
    @settings(max_examples=25)
    def test_weights_of_the_registry_are_exact(self, weights, seed):
        among = nodes(len(weights), weights=weights)
        counted = chosen(WeightedRoundRobin(), among, 400, seed=seed)
        for node in among:
            expected = 400 * node.endpoint.weight / sum(weights)
            assert abs(counted[node] - expected) <= len(weights) + 1

    def reporting(self, *reports):
        among = nodes(len(reports), weights=[7, 1])  # which reports overrule
        for node, report in zip(among, reports, strict=True):
            node.report = report
        return among

    def after_blackout(self, policy, among, at=11.0):
        policy.choose(among, 0.0, random.Random(1))
        return shares(policy, among, 6000, now=at)

    def test_a_server_gets_calls_by_what_it_does_per_utilization(self):
        among = self.reporting(LoadReport(100, 0.5), LoadReport(100, 0.25), LoadReport(300, 0.5))
        assert self.after_blackout(WeightedRoundRobin(), among) == pytest.approx([1 / 6, 2 / 6, 3 / 6], abs=0.01)

    def test_errors_count_as_work(self):
        among = self.reporting(LoadReport(100, 0.5), LoadReport(100, 0.5, eps=50))
        assert self.after_blackout(WeightedRoundRobin(), among) == pytest.approx([2 / 3, 1 / 3], abs=0.01)
        among = self.reporting(LoadReport(100, 0.5), LoadReport(100, 0.5, eps=50))
        assert self.after_blackout(WeightedRoundRobin(error_penalty=0), among) == pytest.approx([0.5, 0.5], abs=0.01)

    def test_who_does_not_report_has_the_mean(self):
        among = self.reporting(LoadReport(100, 0.5), LoadReport(300, 0.5), None)
        assert self.after_blackout(WeightedRoundRobin(), among) == pytest.approx([1 / 6, 3 / 6, 2 / 6], abs=0.01)

    def test_one_report_is_none(self):
        among = self.reporting(LoadReport(100, 0.1), None)
        assert self.after_blackout(WeightedRoundRobin(), among) == pytest.approx([7 / 8, 1 / 8], abs=0.01)

    def test_reports_count_after_the_blackout_and_until_they_expire(self):
        policy = WeightedRoundRobin()
        among = self.reporting(LoadReport(100, 0.5), LoadReport(300, 0.5))
        policy.choose(among, 0.0, random.Random(1))
        assert shares(policy, among, 800, now=9.0) == pytest.approx([7 / 8, 1 / 8], abs=0.01)
        assert shares(policy, among, 800, now=11.0) == pytest.approx([1 / 4, 3 / 4], abs=0.01)
        assert shares(policy, among, 800, now=181.0) == pytest.approx([7 / 8, 1 / 8], abs=0.01)
        for node in among:
            node.report = LoadReport(100, 0.5, at=200.0)
        assert shares(policy, among, 800, now=201.0) == pytest.approx([7 / 8, 1 / 8], abs=0.01), "a new blackout"

    def test_one_mad_report_does_not_take_all(self):
        among = self.reporting(*[LoadReport(100, 0.5)] * 19, LoadReport(100, 1e-9))
        assert max(self.after_blackout(WeightedRoundRobin(), among)) < 0.95

    def test_settings_are_checked(self):
        with pytest.raises(ConfigurationError, match="update_every"):
            WeightedRoundRobin(update_every=0)
        with pytest.raises(ConfigurationError, match="expiry"):
            WeightedRoundRobin(expiry=-1)


class TestLeastRequest:
    @pytest.mark.parametrize("count", [3, 8, 20])
    def test_an_idle_fleet_is_called_by_weight(self, count):
        among = nodes(count, weights=[1, 2, 4])
        total = sum(node.endpoint.weight for node in among)
        expected = [node.endpoint.weight / total for node in among]
        assert shares(LeastRequest(), among) == pytest.approx(expected, abs=0.02)

    @pytest.mark.parametrize("count", [2, 8])
    def test_the_least_of_few_is_always_found(self, count):
        among = nodes(count)
        for number, node in enumerate(among):
            node.in_flight = number
        assert shares(LeastRequest(), among, 100)[0] == 1

    def test_ties_are_broken_at_random(self):
        among = nodes(4)
        among[1].in_flight = 1
        assert shares(LeastRequest(), among) == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3], abs=0.02)

    @pytest.mark.parametrize("count", [6, 40])
    def test_queues_are_in_proportion_to_weights(self, count):
        among = nodes(count, weights=[1, 3])
        policy, rng = LeastRequest(), random.Random(3)
        for _ in range(count * 100):
            policy.choose(among, 0.0, rng).in_flight += 1
        light = sum(node.in_flight for node in among[::2])
        assert light / (count * 100) == pytest.approx(1 / 4, abs=0.02)

    def test_one_with_all_the_weight_does_not_hang_the_draw(self):
        among = nodes(20, weights=[1e12] + [1e-6] * 19)
        assert shares(LeastRequest(), among, 1000)[0] > 0.99

    def test_settings_are_checked(self):
        with pytest.raises(ConfigurationError, match="scan"):
            LeastRequest(scan=0)
