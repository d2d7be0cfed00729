"""Who is next: shares and orders, with a seeded source of randomness and a clock that stands where it is put."""

import random
from collections import Counter

import pytest

from clientlb import ConfigurationError, Endpoint
from clientlb.node import Node
from clientlb.policy import P2C, POLICIES, PeakEwma, Random, RoundRobin, make_policy


def nodes(count, **weights):
    return tuple(Node(Endpoint(f"10.0.0.{number + 1}", 80)) for number in range(count))


def shares(policy, among, picks=20_000, now=0.0):
    rng = random.Random(42)
    counted = Counter(among.index(policy.choose(among, now, rng)) for _ in range(picks))
    return [counted[index] / picks for index in range(len(among))]


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_equal_nodes_get_equal_shares(name, count):
    assert shares(make_policy(name), nodes(count)) == pytest.approx([1 / count] * count, abs=0.02)


def test_round_robin_takes_turns_and_survives_a_shrinking_list():
    policy, rng, three = RoundRobin(), random.Random(1), nodes(3)
    first = [policy.choose(three, 0, rng) for _ in range(6)]
    assert first[:3] == first[3:]
    assert set(first) == set(three)
    assert policy.choose(three[:1], 0, rng) is three[0]


def test_round_robin_starts_anywhere():
    ten = nodes(10)
    starts = {RoundRobin().choose(ten, 0, random.Random(seed)).endpoint.host for seed in range(200)}
    assert len(starts) == 10


def test_p2c_never_takes_the_busiest_and_prefers_the_idle():
    three = nodes(3)
    three[0].in_flight = 9
    share = shares(P2C(), three)
    assert share[0] == 0, "drawn without replacement, the busiest of all never wins"
    assert shares(P2C(), three[:2])[0] == 0, "also with two nodes"


def test_p2c_weighs():
    two = (Node(Endpoint("a", 1, weight=4)), Node(Endpoint("b", 1, weight=1)))
    two[0].in_flight, two[1].in_flight = 3, 1  # 4/4 against 2/1
    assert shares(P2C(), two) == [1, 0]


def test_random_ignores_load():
    two = nodes(2)
    two[0].in_flight = 100
    assert shares(Random(), two) == pytest.approx([0.5, 0.5], abs=0.02)


def connected(count):
    """Nodes that have answered before."""
    made = nodes(count)
    for node in made:
        node.connected = True
    return made


class TestPeakEwma:
    def test_prefers_the_fast(self):
        policy, two = PeakEwma(), connected(2)
        policy.observe(two[0], 0.010, True, 1.0)
        policy.observe(two[1], 0.012, True, 1.0)
        assert shares(policy, two, now=1.0) == [1, 0]

    def test_calls_in_flight_multiply(self):
        policy, two = PeakEwma(), connected(2)
        policy.observe(two[0], 0.010, True, 1.0)
        policy.observe(two[1], 0.035, True, 1.0)
        two[0].in_flight = 2
        assert shares(policy, two, now=1.0) == [1, 0]
        two[0].in_flight = 3
        assert shares(policy, two, now=1.0) == [0, 1]

    def test_weight_divides(self):
        policy = PeakEwma()
        two = (Node(Endpoint("a", 1, weight=3)), Node(Endpoint("b", 1)))
        two[0].connected = two[1].connected = True
        policy.observe(two[0], 0.029, True, 1.0)
        policy.observe(two[1], 0.010, True, 1.0)
        assert shares(policy, two, now=1.0) == [1, 0]

    def test_latency_is_the_mean_of_the_last_seconds(self):
        policy, (node,) = PeakEwma(decay=10, fade=1e9), connected(1)
        for step in range(400):
            policy.observe(node, 0.010 if step % 2 else 0.030, True, step * 0.1)
        assert policy.latency(node, 40.0) == pytest.approx(0.020, rel=0.02)
        for step in range(400):
            policy.observe(node, 0.010, True, 40 + step * 0.1)
        assert policy.latency(node, 80.0) == pytest.approx(0.010, rel=0.05)

    def test_a_peak_counts_at_once(self):
        policy, (node,) = PeakEwma(peak=4, fade=1e9), connected(1)
        for step in range(100):
            policy.observe(node, 0.010, True, step * 0.1)
        policy.observe(node, 0.039, True, 10.0)
        assert policy.latency(node, 10.0) < 0.011, "one that is not extreme is averaged"
        policy.observe(node, 1.0, True, 10.0)
        assert policy.latency(node, 10.0) == pytest.approx(1.0)
        policy.observe(node, 0.010, True, 10.1)
        assert 0.4 < policy.latency(node, 10.1) < 0.6, "a fast answer does not wipe out a peak"

    def test_a_slow_node_is_tried_again_when_nothing_was_heard_of_it(self):
        # after fade * ln(bad / good) seconds
        policy, (bad, good) = PeakEwma(fade=10), connected(2)
        policy.observe(bad, 1.0, True, 0.0)
        for now in range(60):
            policy.observe(good, 0.010, True, now)
            expected = good if now < 46 else bad
            if abs(now - 46.05) > 1:
                assert policy.choose((bad, good), now, random.Random(now)) is expected

    def test_four_are_drawn_so_the_slow_half_gets_a_sixteenth(self):
        policy, hundred = PeakEwma(), connected(100)
        for number, node in enumerate(hundred):
            policy.observe(node, 0.020 if number % 2 else 0.010, True, 0.0)
        assert sum(shares(policy, hundred)[1::2]) == pytest.approx(1 / 16, abs=0.01)
        assert sum(shares(PeakEwma(choices=2), hundred)[1::2]) == pytest.approx(1 / 4, abs=0.01)

    @pytest.mark.parametrize("count", [2, 3, 4])
    def test_the_best_of_few_is_always_found(self, count):
        policy, few = PeakEwma(), connected(count)
        for number, node in enumerate(few):
            policy.observe(node, 0.010 * (number + 1), True, 0.0)
        assert shares(policy, few, picks=200)[0] == 1

    def test_a_node_that_hangs_is_left_alone_before_its_first_timeout(self):
        policy, (hanging, working) = PeakEwma(), connected(2)
        for node in (hanging, working):
            policy.observe(node, 0.010, True, 0.0)
        working.in_flight = 3
        assert policy.choose((hanging, working), 1.0, random.Random(1)) is hanging
        hanging.in_flight = 1
        assert policy.choose((hanging, working), 1.001, random.Random(1)) is hanging, "it may be about to answer"
        policy.observe(working, 0.010, True, 1.1)
        assert policy.choose((hanging, working), 1.1, random.Random(1)) is working, "no answer for ten times as long"
        deaf = PeakEwma(silence=False)
        assert deaf.choose((hanging, working), 1.1, random.Random(1)) is hanging

    def test_an_answer_ends_the_silence(self):
        policy, (busy, other) = PeakEwma(), connected(2)
        for node in (busy, other):
            policy.observe(node, 0.010, True, 0.0)
        other.in_flight = 2
        policy.choose((busy,), 1.0, random.Random(1))
        busy.in_flight = 1
        policy.observe(busy, 0.010, True, 1.5)
        policy.observe(other, 0.010, True, 1.5)
        assert policy.choose((busy, other), 1.501, random.Random(1)) is busy

    def test_reading_changes_nothing(self):
        policy, two = PeakEwma(), connected(2)
        for node in two:
            policy.observe(node, 0.010, True, 0.0)
        before = [node.score for node in two]
        shares(policy, two, picks=100, now=5.0)
        assert [node.score for node in two] == before

    def test_an_unknown_node_gets_its_share_and_one_call_at_a_time(self):
        policy, four = PeakEwma(), connected(4)
        for node in four[:3]:
            policy.observe(node, 0.010, True, 0.0)
        assert shares(policy, four)[3] == pytest.approx(1 / 4, abs=0.02)
        assert shares(PeakEwma(prior=False), four)[3] == 1
        four[3].in_flight = 1
        assert shares(policy, four)[3] == 0

    def test_the_making_of_a_connection_does_not_count(self):
        policy, two = PeakEwma(), nodes(2)
        policy.observe(two[0], 0.050, True, 0.0)
        policy.observe(two[1], 0.001, True, 0.0)
        assert shares(policy, two) == pytest.approx([0.5, 0.5], abs=0.02), "both are still unknown"
        policy.observe(two[0], 0.001, True, 0.0)
        policy.observe(two[1], 0.002, True, 0.0)
        assert shares(policy, two) == [1, 0]

    def test_a_burst_on_a_cold_fleet_spreads(self):
        policy, ten, rng = PeakEwma(), nodes(10), random.Random(5)
        for _ in range(100):
            policy.choose(ten, 0.0, rng).in_flight += 1
        assert max(node.in_flight for node in ten) <= 14

    def test_fast_failures_do_not_look_fast(self):
        policy, (failing, working) = PeakEwma(), connected(2)
        for step in range(20):
            policy.observe(working, 0.010, True, step * 0.1)
            policy.observe(failing, 0.0005, step % 2 == 0, step * 0.1)
        assert shares(policy, (failing, working), now=2.0) == [0, 1]

    def test_failures_are_forgotten_in_bounded_time(self):
        policy, (node,) = PeakEwma(decay=10), connected(1)
        for _ in range(1000):
            policy.observe(node, 0.001, False, 0.0)
        assert policy.latency(node, 0.0) <= 30.001

    def test_instant_answers_have_a_score(self):
        policy, two = PeakEwma(), connected(2)
        for node in two:
            policy.observe(node, 0.0, True, 0.0)
        assert shares(policy, two) == pytest.approx([0.5, 0.5], abs=0.02)

    def test_settings_are_checked(self):
        for setting in ({"choices": 1}, {"decay": 0}, {"fade": -1}, {"peak": 0.5}, {"failure_factor": 0.9}):
            with pytest.raises(ConfigurationError, match=next(iter(setting))):
                PeakEwma(**setting)
