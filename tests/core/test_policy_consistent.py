"""Keys stay where they are, as far as they can, and nobody gets more than the bound."""

import random
from collections import Counter
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clientlb import ConfigurationError
from clientlb.policy import Rendezvous, Request, RingHash
from tests.core.policies import nodes, owner

BOTH = pytest.mark.parametrize("make", [Rendezvous, RingHash])
KEYS = [f"user-{number}" for number in range(600)]


@BOTH
def test_a_key_has_one_owner_for_every_client(make):
    mine, theirs = make(), make()
    ten = nodes(10)
    for key in KEYS[:100]:
        assert owner(mine, ten, key) is owner(theirs, tuple(reversed(ten)), key)


@pytest.mark.parametrize(("make", "expected"), [(Rendezvous, "10.0.0.1:80"), (RingHash, "10.0.0.6:80")])
def test_owners_are_the_same_in_every_version(make, expected):
    assert owner(make(), nodes(10), "user-17").endpoint.address == expected


@BOTH
@given(leaver=st.integers(0, 11), seed=st.integers())
@settings(max_examples=25)
def test_one_that_leaves_takes_only_its_own_keys_along_and_gets_them_back(make, leaver, seed):
    policy, twelve = make(), nodes(12)
    keys = random.Random(seed).sample(KEYS, 60)
    left = tuple(node for node in twelve if node is not twelve[leaver])
    before = [owner(policy, twelve, key) for key in keys]
    after = [owner(policy, left, key) for key in keys]
    for old, new in zip(before, after, strict=True):
        assert new is old if old is not twelve[leaver] else new is not old
    assert [owner(policy, twelve, key) for key in keys] == before


@BOTH
def test_one_that_joins_takes_its_share_and_moves_no_other_key(make):
    policy, eleven = make(), nodes(11)
    ten = eleven[:10]
    before = [owner(policy, ten, key) for key in KEYS]
    after = [owner(policy, eleven, key) for key in KEYS]
    moved = [new for old, new in zip(before, after, strict=True) if new is not old]
    assert set(moved) == {eleven[10]}
    assert len(moved) / len(KEYS) == pytest.approx(1 / 11, abs=0.05)


def test_rendezvous_shares_are_in_proportion_to_weights():
    policy, four = Rendezvous(), nodes(4, weights=[1, 2, 3, 4])
    counted = Counter(owner(policy, four, str(number)) for number in range(10_000))
    assert [counted[node] / 10_000 for node in four] == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.02)


def test_ring_shares_are_nearly_even():
    policy, ten = RingHash(), nodes(10)
    counted = Counter(owner(policy, ten, str(number)) for number in range(10_000))
    assert all(700 < counted[node] < 1350 for node in ten)


@BOTH
def test_a_call_without_a_key_goes_anywhere(make):
    policy, five, rng = make(), nodes(5), random.Random(1)
    assert {policy.choose(five, 0.0, rng) for _ in range(200)} == set(five)


@BOTH
@given(
    weights=st.lists(st.floats(0.5, 5.0), min_size=1, max_size=12),
    bound=st.floats(1.01, 3.0),
    keys=st.lists(st.sampled_from("abc"), min_size=1, max_size=60),
)
@settings(max_examples=25)
def test_nobody_gets_more_than_the_bound(make, weights, bound, keys):
    policy, among = make(bound=bound), nodes(len(weights), weights=weights)
    for total, key in enumerate(keys, start=1):
        node = owner(policy, among, key)
        node.in_flight += 1
        assert node.in_flight <= ceil(bound * total * node.endpoint.weight / sum(weights))


@BOTH
def test_what_is_too_much_goes_to_the_next_in_the_keys_own_order(make):
    policy, ten = make(bound=1.25), nodes(10)
    first = owner(policy, ten, "hot")
    first.in_flight = 1
    second = owner(policy, ten, "hot")
    assert second is owner(policy, tuple(node for node in ten if node is not first), "hot")


def test_the_ring_forgets_those_who_left_for_good():
    policy = RingHash(points=10)
    for generation in range(20):
        policy.choose(nodes(generation + 5)[generation:], 0.0, random.Random(1))
    assert len(policy._ring) <= 200


@BOTH
def test_a_filter_is_refused_rather_than_ignored(make):
    with pytest.raises(ConfigurationError, match="wrap it in Filter"):
        make().choose_for(Request.of(where={"version": "2"}), nodes(2), 0.0, random.Random(1))


@BOTH
def test_bounds_are_checked(make):
    with pytest.raises(ConfigurationError, match=r"bound is 1\.0"):
        make(bound=1.0)


def test_points_are_checked():
    with pytest.raises(ConfigurationError, match="points"):
        RingHash(points=0)
