"""Least time: what draws traffic, what repels it, and how a node gets its next chance. The clock is a number."""

import random
from itertools import pairwise
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clientlb import ConfigurationError, HealthOptions, Options, Outcome
from clientlb.balancer import Balancer
from clientlb.policy import LeastTime, make_policy
from tests.core.policies import chosen, nodes, shares


def known(policy, *latencies, now=0.0, **described):
    """Nodes that have been answering in so many seconds."""
    made = nodes(len(latencies), **described)
    for node, seconds in zip(made, latencies, strict=True):
        node.connected = True
        policy.observe(node, seconds, True, now)
    return made


def test_has_a_name():
    assert type(make_policy("least_time")) is LeastTime


def test_prefers_the_fast():
    policy = LeastTime()
    assert shares(policy, known(policy, 0.010, 0.012)) == [1, 0]


@pytest.mark.parametrize(("in_flight", "share"), [(7, 0.0), (9, 1.0)])
def test_three_times_the_latency_is_worth_nine_calls(in_flight, share):
    policy = LeastTime()
    two = known(policy, 0.030, 0.010)
    two[1].in_flight = in_flight
    assert shares(policy, two)[0] == share


def test_weighs():
    policy = LeastTime()
    two = known(policy, 0.010, 0.010, weights=[4, 1])
    two[0].in_flight, two[1].in_flight = 2, 0  # 3/4 against 1/1
    assert shares(policy, two) == [1, 0]
    two[0].in_flight = 4  # 5/4 against 1/1
    assert shares(policy, two) == [0, 1]


def test_shares_of_equal_busy_nodes_follow_their_weights():
    policy = LeastTime()
    ten = known(policy, *[0.010] * 10, weights=[1, 3])
    rng = random.Random(3)
    for _ in range(2_000):
        policy.choose(ten, 0.0, rng).in_flight += 1  # and nobody answers
    heavy = sum(node.in_flight for node in ten[1::2])
    assert heavy / 2_000 == pytest.approx(0.75, abs=0.01)


def test_the_slower_half_gets_what_four_draws_leave_it():
    policy = LeastTime()
    hundred = known(policy, *[0.010, 0.020] * 50)
    slow = sum(shares(policy, hundred)[1::2])
    assert slow == pytest.approx((0.5 * 49 / 99) ** 2, abs=0.03), "only when all four are slow"


def test_remembers_so_many_answers():
    policy = LeastTime(answers=7)
    (node,) = known(policy, 0.100)
    for _ in range(20):
        policy.observe(node, 0.100, True, 0.0)
    policy.observe(node, 0.800, True, 0.0)
    assert policy.latency(node) == pytest.approx(0.200)


def test_remembers_ten_seconds():
    policy = LeastTime()
    (node,) = known(policy, 0.100)
    rng = random.Random(1)
    for turn in range(101):
        assert policy.choose((node,), 10.0 * turn, rng) is node
        policy.observe(node, 0.100 if turn < 100 else 0.300, True, 10.0 * turn)
    assert policy.latency(node) == pytest.approx(0.200, abs=0.005), "the one before counts half, ten seconds later"


def test_a_failure_does_not_look_fast():
    policy = LeastTime()
    two = known(policy, 0.010, 0.025)
    policy.observe(two[0], 0.0001, False, 0.0)
    assert policy.latency(two[0]) == pytest.approx(0.030)
    assert shares(policy, two) == [0, 1]


def test_a_failure_that_took_long_counts_for_as_long():
    policy = LeastTime()
    (node,) = known(policy, 0.010)
    policy.observe(node, 1.0, False, 0.0)
    assert policy.latency(node) == pytest.approx(1.0)


def test_failures_in_a_row_add_up_to_half_a_minute():
    policy = LeastTime()
    (node,) = known(policy, 0.010)
    for _ in range(20):
        policy.observe(node, 0.0001, False, 0.0)
    assert policy.latency(node) == pytest.approx(30.0)


def test_the_first_answer_is_not_counted():
    policy = LeastTime()
    (node,) = nodes(1)
    policy.observe(node, 0.500, True, 0.0)
    assert policy.latency(node) is None
    policy.observe(node, 0.010, True, 0.1)
    assert policy.latency(node) == pytest.approx(0.010)


def test_a_first_call_that_fails_is_known_at_once():
    policy = LeastTime()
    (node,) = nodes(1)
    policy.observe(node, 0.001, False, 0.0)
    assert policy.latency(node) == pytest.approx(3.0)


class TestUnknownNode:
    @pytest.mark.parametrize("count", [2, 4, 10, 100])
    def test_is_neither_flooded_nor_starved(self, count):
        policy = LeastTime()
        several = (*known(policy, *[0.010] * (count - 1)), *nodes(1))
        assert shares(policy, several, picks=15_000)[-1] == pytest.approx(1 / count, rel=0.15)

    @pytest.mark.parametrize("count", [2, 4, 10, 100])
    def test_has_one_call_at_a_time(self, count):
        policy = LeastTime()
        several = (*known(policy, *[0.010] * (count - 1)), *nodes(1))
        several[-1].in_flight = 1
        assert chosen(policy, several, 5_000)[several[-1]] == 0

    def test_a_lucky_answer_counts_half(self):
        policy = LeastTime()
        two = (*known(policy, 0.100), *nodes(1))
        two[1].connected = True
        assert chosen(policy, two, 100)[two[1]] > 0
        policy.observe(two[1], 0.001, True, 0.0)
        assert policy.latency(two[1]) == pytest.approx(0.0505)

    def test_a_fleet_of_which_nothing_is_known_is_filled_evenly(self):
        policy, ten, rng = LeastTime(), nodes(10), random.Random(5)
        for _ in range(1_000):
            policy.choose(ten, 0.0, rng).in_flight += 1
        assert max(node.in_flight for node in ten) - min(node.in_flight for node in ten) <= 4


@pytest.mark.parametrize("count", [2, 4, 10])
class TestForgottenNode:
    """One that was slow, and that nobody has called since."""

    def slow(self, policy, count):
        fleet = known(policy, *[0.010] * (count - 1), 2.0)
        for node in fleet[:-1]:
            node.heard_at = 31.0
        return fleet

    def test_is_left_alone_for_a_while(self, count):
        policy = LeastTime(retry_after=30.0)
        assert chosen(policy, self.slow(policy, count), 5_000, now=29.0)[-1] == 0

    def test_is_tried_once(self, count):
        policy = LeastTime(retry_after=30.0)
        fleet = self.slow(policy, count)
        assert chosen(policy, fleet, 5_000, now=31.0)[fleet[-1]] == 1

    def test_is_as_good_as_the_others_when_it_answers_as_they_do(self, count):
        policy = LeastTime(retry_after=30.0)
        fleet = self.slow(policy, count)
        chosen(policy, fleet, 5_000, now=31.0)
        policy.observe(fleet[-1], 0.010, True, 31.0)
        assert policy.latency(fleet[-1]) == pytest.approx(0.010)
        assert shares(policy, fleet, now=31.0)[-1] == pytest.approx(1 / count, rel=0.15)

    def test_is_left_alone_again_when_it_is_still_slow(self, count):
        policy = LeastTime(retry_after=30.0)
        fleet = self.slow(policy, count)
        chosen(policy, fleet, 5_000, now=31.0)
        policy.observe(fleet[-1], 2.0, True, 33.0)
        assert chosen(policy, fleet, 5_000, now=60.0)[fleet[-1]] == 0

    def test_what_it_failed_with_before_still_counts(self, count):
        policy = LeastTime(retry_after=30.0)
        fleet = self.slow(policy, count)
        chosen(policy, fleet, 5_000, now=31.0)
        policy.observe(fleet[-1], 0.001, False, 31.0)
        assert policy.latency(fleet[-1]) == pytest.approx(6.0)


@pytest.mark.parametrize("count", [2, 4, 10])
def test_who_is_fast_rests_for_thirty_of_its_own_latencies(count):
    for now, tried in ((1.4, 0), (1.6, 1)):
        policy = LeastTime()
        fleet = known(policy, *[0.010] * (count - 1), 0.050)
        for node in fleet[:-1]:
            node.heard_at = now
        assert chosen(policy, fleet, 5_000, now=now)[fleet[-1]] == tried


def test_who_stays_slow_rests_twice_as_long_each_time():
    policy, rng, now = LeastTime(), random.Random(7), 0.0
    two = known(policy, 0.010, 0.040)
    tried = []
    while now < 100.0:
        now += 0.010
        node = policy.choose(two, now, rng)
        policy.observe(node, 0.040 if node is two[1] else 0.010, True, now)
        if node is two[1]:
            tried.append(now)
    rests = [later - earlier for earlier, later in pairwise(tried)]
    assert rests[0] < 3.0
    assert rests[:3] == sorted(rests[:3])
    assert all(9.9 < rest < 11.0 for rest in rests[4:]), "as long as `retry_after`"
    assert len(rests) > 8


def test_who_is_no_longer_slow_rests_as_briefly_as_before():
    policy = LeastTime()
    two = known(policy, 0.010, 0.050)
    two[1].rest = 8.0  # it was slow for long
    for _ in range(20):
        policy.observe(two[1], 0.050, True, 0.0)
    two[0].heard_at = 13.0
    assert chosen(policy, two, 1_000, now=13.0)[two[1]] == 1
    assert two[1].rest == 1.0


def test_a_forgotten_node_is_taken_to_be_like_those_that_are_known_well():
    policy = LeastTime()
    three = known(policy, 0.010, 0.500, 0.500)  # of two of them, the only answer was slow
    for _ in range(50):
        policy.observe(three[0], 0.010, True, 9.0)
    three[1].heard_at = 9.0
    assert chosen(policy, three, 1_000, now=10.5)[three[2]] == 1
    policy.observe(three[2], 0.010, True, 10.5)
    assert policy.latency(three[2]) < 0.020


def test_who_calls_rarely_does_not_take_the_slow_one_for_forgotten_each_time():
    policy, rng = LeastTime(), random.Random(7)
    two = known(policy, 0.010, 2.0)
    slow = 0
    for minute in range(1, 2_001):
        node = policy.choose(two, 60.0 * minute, rng)
        slow += node is two[1]
        policy.observe(node, 2.0 if node is two[1] else 0.010, True, 60.0 * minute)
    assert 0 < slow <= 2_000 / 32


def test_a_pick_changes_nothing_that_is_known_of_a_latency():
    policy = LeastTime()
    ten = known(policy, *[0.010] * 10)
    before = [(node.score, node.mean) for node in ten]
    chosen(policy, ten, 1_000, now=5.0)
    assert [(node.score, node.mean) for node in ten] == before


class TestSilence:
    def test_a_node_that_hangs_is_left_alone_before_its_first_timeout(self):
        policy, rng = LeastTime(), random.Random(1)
        hanging, working = two = known(policy, 0.010, 0.010)
        working.in_flight = 3
        assert policy.choose(two, 1.0, rng) is hanging
        hanging.in_flight = 1
        assert shares(policy, two, 1_000, now=1.005) == [1, 0], "it may be about to answer"
        policy.observe(working, 0.010, True, 1.1)
        assert shares(policy, two, 1_000, now=1.1) == [0, 1], "no answer for ten times as long"

    def test_an_answer_ends_it(self):
        policy, rng = LeastTime(), random.Random(1)
        busy, other = two = known(policy, 0.010, 0.010)
        other.in_flight = 2
        assert policy.choose(two, 1.0, rng) is busy
        busy.in_flight = 1
        policy.observe(busy, 0.010, True, 1.5)
        policy.observe(other, 0.010, True, 1.5)
        assert shares(policy, two, 1_000, now=1.505) == [1, 0]

    def test_an_idle_node_is_not_silent(self):
        policy, rng = LeastTime(), random.Random(1)
        two = known(policy, 0.010, 0.012)
        two[1].in_flight = 1
        two[1].heard_at = 8.0
        assert policy.choose(two, 8.005, rng) is two[0]
        two[0].in_flight = 1
        assert policy.choose(two, 8.010, rng) is two[0], "it was given a call a moment ago"

    def test_costs_are_weighed(self):
        policy = LeastTime()
        two = known(policy, 0.010, 0.010, weights=[9, 1])
        for node in two:
            node.in_flight = 1
        assert shares(policy, two, 1_000, now=1.0) == [1, 0]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_best_of_few_is_always_found(count):
    policy = LeastTime()
    few = known(policy, *[0.010 * (number + 1) for number in range(count)])
    assert shares(policy, few, picks=200)[0] >= 0.99  # of four, one pick in 32 compares three


@pytest.mark.parametrize("count", [2, 3, 5, 10, 100, 999, 2_000])
def test_every_node_is_drawn_as_often_as_the_others(count):
    policy, rng = LeastTime(), random.Random(11)
    fleet = known(policy, *[0.010] * count)
    for _ in range(40 * count):
        policy.choose(fleet, 0.005, rng).in_flight += 1  # and nobody answers
    assert {node.in_flight for node in fleet} <= set(range(34, 47)), "each takes its share"


def test_among_thousands_an_unknown_node_gets_its_share():
    policy = LeastTime()
    fleet = (*known(policy, *[0.010] * 2_000), *nodes(1))
    assert chosen(policy, fleet, 100_000)[fleet[-1]] == pytest.approx(50, abs=20)


def test_a_signal_between_two_rounds_spoils_nothing():
    class Interrupted(random.Random):
        """Ctrl-C arrives the second time that something is drawn."""

        times = 0

        def randint(self, least, most):
            self.times += 1
            if self.times == 2:
                raise KeyboardInterrupt
            return super().randint(least, most)

    policy, rng = LeastTime(), Interrupted(13)
    fleet = known(policy, *[0.010] * 1_000)
    for _ in range(1_000):
        policy.choose(fleet, 0.0, rng)
    with pytest.raises(KeyboardInterrupt):
        policy.choose(fleet, 0.0, rng)
    assert len({policy.choose(fleet, 0.0, rng) for _ in range(1_000)}) > 600


def test_who_failed_last_is_left_alone_for_longer():
    policy = LeastTime()
    two = known(policy, 0.010, 0.010)
    policy.observe(two[1], 1.0, False, 0.0)
    two[1].troubled = True
    for now, tried in ((11.0, 0), (29.0, 0), (31.0, 1)):
        two[0].heard_at = now
        assert chosen(policy, two, 1_000, now=now)[two[1]] == tried


def test_takes_turns_between_lists():
    policy, rng = LeastTime(), random.Random(3)
    fleet = known(policy, *[0.010] * 40)
    for turn in range(2_000):
        among = fleet[: 2 + turn % 39]
        assert policy.choose(among, 0.0, rng) in among


@given(
    events=st.lists(
        st.tuples(
            st.integers(0, 5), st.floats(0, 1e4), st.booleans(), st.floats(0, 1e5), st.integers(0, 3), st.booleans()
        ),
        max_size=60,
    ),
    count=st.integers(1, 6),
)
def test_whatever_happens_scores_stay_comparable(events, count):
    policy, rng, now, fleet = LeastTime(), random.Random(1), 0.0, nodes(count, weights=[0.1, 1, 40])
    for index, seconds, success, later, in_flight, restored in events:
        now += later
        node = fleet[index % count]
        node.in_flight = in_flight
        if restored:
            node.score, node.connected = -inf, False
        policy.observe(node, seconds, success, now)
        assert policy.choose(fleet, now, rng) in fleet
        assert all(one.score == -inf or 0 < one.score < inf for one in fleet)


def test_a_node_that_comes_back_is_not_rushed_to():
    now = 0.0
    options = Options(policy="least_time", health=HealthOptions(consecutive_failures=1, open_for=1.0))
    balancer = Balancer("orders", options, clock=lambda: now, rng=random.Random(1))
    balancer.update(node.endpoint for node in nodes(5))

    def calls(count):
        """Begin so many calls at once, and let all end well, each after 10 ms."""
        nonlocal now
        picks = [balancer.try_pick() for _ in range(count)]
        now += 0.010
        for pick in picks:
            pick.release(Outcome.SUCCESS)
        return picks

    for _ in range(10):
        calls(20)
    pick = balancer.try_pick()
    pick.release(Outcome.FAILURE)
    now += 10.0
    (probe,) = calls(1)
    assert probe.node is pick.node
    assert sum(each.node is pick.node for each in calls(50)) <= 1, "one, until it has answered"


@pytest.mark.parametrize(
    ("setting", "value"),
    [("answers", 0.5), ("decay", 0.0), ("retry_after", -1.0), ("failure_factor", 0.9), ("decay", float("nan"))],
)
def test_bad_settings_are_named(setting, value):
    with pytest.raises(ConfigurationError, match=f"LeastTime: {setting} is "):
        LeastTime(**{setting: value})
