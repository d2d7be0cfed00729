"""Who is next: shares and orders, with a seeded source of randomness and a clock that stands where it is put."""

import random
from collections import Counter

import pytest

from clientlb import Endpoint
from clientlb.node import Node
from clientlb.policy import P2C, POLICIES, Random, RoundRobin, make_policy


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
