"""Prequal: the rule, the wear of answers, and its settings."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clientlb import ConfigurationError
from clientlb.policy import Prequal
from tests.core.policies import nodes


class Servers:
    """A probe that is answered at once, or when the test says so."""

    def __init__(self, loads=None, silent=()):
        self.loads = loads or {}
        self.silent = silent
        self.asked = []

    def ask(self, node, answer):
        self.asked.append((node, answer))
        if node not in self.silent:
            answer(*self.loads.get(node, (1, 0.010)))


def most_chosen(policy, among, picks=300, now=0.0):
    rng = random.Random(1)
    counted = [policy.choose(among, now + number * 0.001, rng) for number in range(picks)]
    return max(among, key=counted.count), counted


def test_the_fastest_of_the_cold_is_best():
    ten = nodes(10)
    loads = {node: (1, 0.010 + 0.001 * number) for number, node in enumerate(ten)}
    loads[ten[0]] = (50, 0.001)  # fast, but hot
    best, counted = most_chosen(Prequal(Servers(loads), quantile=0.8), ten)
    assert best is ten[1]
    assert counted.count(ten[0]) < 10


def test_a_quantile_of_0_looks_at_requests_in_flight_only():
    ten = nodes(10)
    loads = {node: (1 + number, 0.1 - 0.01 * number) for number, node in enumerate(ten)}
    assert most_chosen(Prequal(Servers(loads), quantile=0), ten)[0] is ten[0]


def test_a_quantile_of_1_looks_at_latency_only():
    ten = nodes(10)
    loads = {node: (1 + number, 0.1 - 0.01 * number) for number, node in enumerate(ten)}
    assert most_chosen(Prequal(Servers(loads), quantile=1), ten)[0] is ten[9]


def test_probes_are_sent_at_their_rate_to_different_random_nodes():
    servers, ten = Servers(), nodes(10)
    policy, rng = Prequal(servers, probes=2.5), random.Random(1)
    for number in range(100):
        before = len(servers.asked)
        policy.choose(ten, number * 0.001, rng)
        asked = [node for node, _ in servers.asked[before:]]
        assert len(set(asked)) == len(asked)
    assert len(servers.asked) == 250
    counted = [sum(node is other for other, _ in servers.asked) for node in ten]
    assert min(counted) > 10


def test_without_answers_a_call_goes_anywhere():
    ten = nodes(10)
    assert len(set(most_chosen(Prequal(Servers(silent=ten)), ten)[1])) == 10


def test_an_answer_counts_from_the_question_and_expires():
    ten = nodes(10)
    servers = Servers(silent=ten)
    policy, rng = Prequal(servers, removals=0, probes=10), random.Random(1)

    def answer_of(*answering):
        for node, answer in servers.asked:
            if node in answering:
                answer(0, 0.001 if node is ten[3] else 0.010)
        servers.asked.clear()

    policy.choose(ten, 0.0, rng)
    answer_of(ten[3], ten[4])  # late, between two calls
    assert policy.choose(ten, 0.9, rng) is ten[3]
    answer_of(ten[3], ten[4])
    servers.asked.clear()
    assert len({policy.choose(ten, 5.0, rng) for _ in range(200)}) == 10, "answers to what was asked long ago"


def test_own_calls_are_added_to_what_was_answered():
    pair = nodes(8)
    policy = Prequal(Servers(dict.fromkeys(pair, (0, 0.010))), quantile=0, removals=0)
    rng = random.Random(1)
    assert len({policy.choose(pair, 0.0, rng) for _ in range(8)}) >= 3


@given(
    count=st.integers(1, 40),
    pool=st.integers(2, 16),
    probes=st.floats(0.1, 5),
    removals=st.floats(0, 3),
    quantile=st.floats(0, 0.99),
    seed=st.integers(),
)
@settings(max_examples=30)
def test_whatever_happens_a_candidate_is_chosen_and_the_pool_is_bounded(count, pool, probes, removals, quantile, seed):
    rng = random.Random(seed)
    everybody = nodes(count)
    servers = Servers({node: (rng.randrange(20), rng.random()) for node in everybody})
    policy = Prequal(servers, pool, probes, removals, quantile)
    now = 0.0
    for _ in range(40):
        now += rng.choice((0.001, 0.1, 2.0))
        present = tuple(rng.sample(everybody, rng.randint(1, count)))
        assert policy.choose(present, now, rng) in present
        assert len(policy._pool) <= pool
        assert all(answer.uses > 0 for answer in policy._pool)


@pytest.mark.parametrize(
    "setting",
    [{"pool": 1}, {"probes": 0}, {"removals": -1}, {"quantile": 1.1}, {"expiry": 0}],
    ids=lambda setting: next(iter(setting)),
)
def test_settings_are_checked(setting):
    with pytest.raises(ConfigurationError, match=next(iter(setting))):
        Prequal(Servers(), **setting)
