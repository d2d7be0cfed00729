"""Subset, aperture, locality and filter: who is left to choose from, and that looking is cheap."""

import random
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clientlb import Balancer, ConfigurationError, NoEndpointsError, Options
from clientlb.node import Node
from clientlb.policy import (
    POLICIES,
    Aperture,
    Filter,
    LeastTime,
    Locality,
    Prequal,
    Random,
    Rendezvous,
    Request,
    Subset,
    WeightedRoundRobin,
    chooser,
)
from tests.core.policies import chosen, nodes, owner, shares

ANY = Request()


class TestSubset:
    def narrowed(self, policy, among):
        return set(policy.narrow(ANY, among, random.Random(1)))

    def test_a_client_has_its_own_endpoints_for_good(self):
        hundred = nodes(100)
        mine = self.narrowed(Subset("p2c", 10, client="a"), hundred)
        assert len(mine) == 10
        assert self.narrowed(Subset("p2c", 10, client="a"), tuple(reversed(hundred))) == mine
        assert self.narrowed(Subset("p2c", 10, client="b"), hundred) != mine

    def test_a_client_without_a_name_draws_one(self):
        policy, hundred = Subset("random", 5), nodes(100)
        assert len(chosen(policy, hundred, 300)) == 5
        assert set(chosen(policy, hundred, 300, seed=7)) == set(chosen(policy, hundred, 300))

    @given(leaver=st.integers(0, 49))
    @settings(max_examples=20)
    def test_one_that_leaves_is_replaced_by_one(self, leaver):
        fifty = nodes(50)
        policy = Subset("p2c", 10, client="me")
        before = self.narrowed(policy, fifty)
        after = self.narrowed(policy, tuple(node for node in fifty if node is not fifty[leaver]))
        assert after >= before - {fifty[leaver]}
        assert len(after) == 10

    def test_a_small_fleet_is_used_whole(self):
        assert len(chosen(Subset("random", 20), nodes(7), 500)) == 7

    def test_every_endpoint_is_about_equally_popular(self):
        counted = dict.fromkeys(range(50), 0)
        fifty = nodes(50)
        for client in range(500):
            for node in self.narrowed(Subset("p2c", 10, client=f"client {client}"), fifty):
                counted[fifty.index(node)] += 1
        assert 70 < min(counted.values()) <= max(counted.values()) < 130  # binomial: 100 +- 9

    def test_the_size_is_checked(self):
        with pytest.raises(ConfigurationError, match="size is 0"):
            Subset("p2c", 0)


class TestAperture:
    @given(endpoints=st.integers(1, 40), clients=st.integers(1, 30), size=st.integers(1, 12))
    @settings(max_examples=30)
    def test_all_clients_together_load_every_endpoint_alike(self, endpoints, clients, size):
        ring = nodes(endpoints)
        load = dict.fromkeys(ring, 0.0)
        for index in range(clients):
            mixture = Aperture(Random, index, clients, size)._arc(ring)
            assert sum(probability for probability, _ in mixture) == pytest.approx(1)
            for probability, candidates in mixture:
                assert len(set(candidates)) == len(candidates)
                for node in candidates:
                    load[node] += probability / len(candidates)
        assert list(load.values()) == pytest.approx([clients / endpoints] * endpoints)

    def test_a_client_has_few_connections(self):
        used = chosen(Aperture(Random, 3, 7, size=4), nodes(100), 3000)
        assert 4 <= len(used) <= 17

    @pytest.mark.parametrize(("index", "count"), [(-1, 3), (3, 3), (0, 0)])
    def test_the_place_is_checked(self, index, count):
        with pytest.raises(ConfigurationError, match="count from 0"):
            Aperture("p2c", index, count)


class TestLocality:
    def test_the_zone_is_enough(self):
        nine = nodes(9, zones=["a", "b", "c"])
        assert {node.endpoint.zone for node in chosen(Locality("p2c", "b"), nine, 300)} == {"b"}

    def test_a_zone_that_has_lost_half_stays_within_its_factor_and_then_spills(self):
        # 5 of 20 in a, 20 in b; half of the clients in each: a can take 1.4 * 5/25 = 0.28 of all calls and has 0.5
        policy = Locality("p2c", "a")
        assert policy.shares({"a": 5, "b": 20}) == pytest.approx({"a": 0.56, "b": 0.44})
        assert policy.shares({"a": 10, "b": 18}) == pytest.approx({"a": 1.0, "b": 0.0})

    def test_what_spills_goes_where_there_is_room(self):
        # room is 1.4 * weight / 30, minus a third of the clients: none in c, 0.6 - 1/3 in d
        shares_of = Locality("p2c", "a", overprovision=1.0).shares
        assert shares_of({"a": 5, "c": 10, "d": 15}) == pytest.approx({"a": 0.5, "c": 0.0, "d": 0.5})

    def test_clients_are_where_they_are_said_to_be(self):
        shares_of = Locality("p2c", "a", clients={"a": 3, "b": 1}, overprovision=1.0).shares
        assert shares_of({"a": 1, "b": 1}) == pytest.approx({"a": 2 / 3, "b": 1 / 3})
        shares_of = Locality("p2c", "a", clients={"a": 1, "without servers": 1}, overprovision=1.0).shares
        assert shares_of({"a": 1, "b": 1}) == pytest.approx({"a": 1.0, "b": 0.0})

    @given(
        weights=st.dictionaries(st.sampled_from("abcde"), st.floats(0.5, 100), min_size=1),
        overprovision=st.floats(1.0, 2.0),
    )
    @settings(max_examples=25)
    def test_nobody_gets_more_than_the_factor_allows(self, weights, overprovision):
        total = sum(weights.values())
        received = dict.fromkeys(weights, 0.0)
        for zone in weights:  # as many clients in each
            given_out = Locality("p2c", zone, overprovision=overprovision).shares(weights)
            assert sum(given_out.values()) == pytest.approx(1)
            for other, share in given_out.items():
                received[other] += share / len(weights)
        for zone, weight in weights.items():
            assert received[zone] <= overprovision * weight / total + 1e-9

    def test_picks_follow_the_shares(self):
        twelve = nodes(12, zones=["a", "b", "b", "b"])
        counted = chosen(Locality(Random, "a"), twelve, 20_000)
        own = sum(counted[node] for node in twelve if node.endpoint.zone == "a")
        assert own / 20_000 == pytest.approx(1.4 * 3 / 12 / 0.5, abs=0.02)

    def test_a_zone_without_endpoints_sends_everything_elsewhere(self):
        assert shares(Locality(Random, "z"), nodes(2, zones=["a", "b"])) == pytest.approx([0.5, 0.5], abs=0.02)

    def test_endpoints_without_a_zone_are_elsewhere(self):
        among = nodes(4, zones=["a", None])
        assert {node.endpoint.zone for node in chosen(Locality(Random, "a"), among, 100)} == {"a"}
        assert len(chosen(Locality(Random, "z"), among, 200)) == 4

    def test_settings_are_checked(self):
        with pytest.raises(ConfigurationError, match="overprovision"):
            Locality("p2c", "a", overprovision=0.9)
        with pytest.raises(ConfigurationError, match="own zone 'a'"):
            Locality("p2c", "a", clients={"b": 1})


class TestFilter:
    four = staticmethod(lambda: nodes(4, metadata=[{"version": "1"}, {"version": "2"}, {"stage": "stable"}, {}]))

    def picked(self, policy, among, **where):
        rng = random.Random(1)
        request = Request.of(where=where)
        return {among.index(policy.choose_for(request, among, 0.0, rng)) for _ in range(200)}

    def test_a_call_gets_what_it_asks_for(self):
        assert self.picked(Filter("p2c"), self.four(), version="2") == {1}

    def test_a_call_that_asks_for_nothing_gets_any(self):
        assert self.picked(Filter("random"), self.four()) == {0, 1, 2, 3}
        assert len(chosen(Filter("random"), self.four(), 200)) == 4

    def test_fallbacks(self):
        four = self.four()
        assert self.picked(Filter("random"), four, version="3") == {0, 1, 2, 3}
        assert self.picked(Filter("random", {"stage": "stable"}), four, version="3") == {2}
        assert self.picked(Filter("random", {"stage": "gone"}), four, version="3") == {0, 1, 2, 3}
        with pytest.raises(NoEndpointsError, match="none of 4 endpoints has version=3"):
            self.picked(Filter("random", "fail"), four, version="3")

    def test_zone_version_and_id_are_fields(self):
        among = nodes(4, zones=["a", "b"], metadata=[{"zone": "x"}])
        assert self.picked(Filter("random"), among, zone="b") == {1, 3}
        assert self.picked(Filter("random"), among, zone="b", id="10.0.0.3:80") == {3}

    def test_many_filters_are_remembered_one_list_at_a_time(self):
        policy, among = Filter("p2c", "fail"), nodes(200, metadata=[{"shard": str(number)} for number in range(200)])
        for number in range(200):
            assert self.picked(policy, among, shard=str(number)) == {number}

    def test_the_fallback_is_checked(self):
        with pytest.raises(ConfigurationError, match="fallback is 'none'"):
            Filter("p2c", "none")

    @pytest.mark.parametrize("where", ["version=2", {"version": 2}, 5])
    def test_filters_are_checked(self, where):
        with pytest.raises(ConfigurationError, match="give a mapping"):
            Request.of(where=where)

    def test_keys_are_checked(self):
        assert Request.of(key=17) == Request.of(key="17")
        with pytest.raises(ConfigurationError, match="float"):
            Request.of(key=17.0)

    def test_a_policy_that_heeds_no_filter_says_so_but_ignores_a_key(self):
        two, rng = nodes(2), random.Random(1)
        choose_for = chooser(LeastTime())
        assert choose_for(Request.of(key="user-17"), two, 0.0, rng) in two
        with pytest.raises(ConfigurationError, match="LeastTime does not heed; wrap it in Filter"):
            choose_for(Request.of(where={"version": "2"}), two, 0.0, rng)


class Fewest:
    """A policy of a user's own: one method, nothing of ours."""

    def choose(self, nodes, now, rng):
        return min(nodes, key=lambda node: (node.in_flight, rng.random()))


class Silent:
    def ask(self, node, answer):
        pass


def named(within):
    """The same in every process of a parallel run, which an address in memory is not."""
    return within if isinstance(within, str) else getattr(within, "__name__", None) or within.func.__name__


ANYTHING = (*POLICIES, Fewest, partial(Prequal, Silent()))
"""Every shipped policy, by name or made, and one of a user's own."""


class Looked(Node):
    """A node that counts how often it is looked at."""

    looks = 0

    @property
    def endpoint(self):
        Looked.looks += 1
        return self._endpoint

    @endpoint.setter
    def endpoint(self, endpoint):
        self._endpoint = endpoint


class TestAll:
    WRAPPERS = (
        partial(Subset, "random", 20),
        partial(Aperture, "random", 1, 10),
        partial(Locality, "random", "a"),
        partial(Filter, "random"),
    )

    @pytest.mark.parametrize("make", [*WRAPPERS, WeightedRoundRobin])
    def test_a_list_is_looked_at_once(self, make):
        policy, rng = make(), random.Random(1)
        many = tuple(Looked(node.endpoint) for node in nodes(1000, zones=["a", "b"]))
        request = Request.of(where={"zone": "a"})
        choose_for = policy.choose_for if isinstance(policy, Filter) else None
        for _ in range(2):
            looks = Looked.looks
            for _ in range(50):
                choose_for(request, many, 0.0, rng) if choose_for else policy.choose(many, 0.0, rng)
            assert Looked.looks - looks <= 4000
        assert Looked.looks == looks, "the second time"

    def test_they_go_into_one_another_and_the_policy_within_learns(self):
        policy = Filter(partial(Locality, partial(Subset, LeastTime, 4, "me"), "a"))
        forty = nodes(40, zones=["a", "b"], metadata=[{"version": "1"}, {"version": "1"}, {"version": "2"}])
        rng, request = random.Random(1), Request.of(where={"version": "2"})
        used = {policy.choose_for(request, forty, 0.0, rng) for _ in range(300)}
        assert {(node.endpoint.zone, node.endpoint.metadata["version"]) for node in used} == {("a", "2")}
        assert len(used) == 4
        node = next(iter(used))
        node.connected = True
        policy.observe(node, 0.5, True, 0.0)
        assert LeastTime().latency(node, 0.0) == pytest.approx(0.5)

    @pytest.mark.parametrize("within", ANYTHING, ids=named)
    def test_they_wrap_any_policy(self, within):
        policy = Filter(partial(Locality, partial(Subset, within, 4, "me"), "a"))
        forty = nodes(40, zones=["a", "b"], metadata=[{"version": "1"}, {"version": "1"}, {"version": "2"}])
        rng, used = random.Random(1), set()
        for number in range(300):
            request = Request.of(key=f"user {number}", where={"version": "2"})
            node = policy.choose_for(request, forty, number * 0.01, rng)
            node.in_flight += 1
            policy.observe(node, 0.01, True, number * 0.01)
            used.add(node)
        assert {(node.endpoint.zone, node.endpoint.metadata["version"]) for node in used} == {("a", "2")}
        assert len(used) == 4
        assert policy.choose(forty, 4.0, rng).endpoint.zone == "a", "a call that says nothing about itself"

    @pytest.mark.parametrize("within", ANYTHING, ids=named)
    def test_a_balancer_takes_them_whatever_is_within(self, within):
        policy = partial(Filter, partial(Locality, partial(Subset, within, 2, "me"), "a"), fallback="fail")
        balancer = Balancer("orders", Options(policy=policy))
        balancer.update(node.endpoint for node in nodes(12, zones=["a", "b"], metadata=[{"version": "1"}]))
        for number in range(50):
            with balancer.pick(key=number, where={"version": "1"}) as pick:
                assert pick.endpoint.zone == "a"
        with pytest.raises(NoEndpointsError, match="version=3"):
            balancer.pick(where={"version": "3"})
        assert all(node.in_flight == 0 for node in balancer.nodes)
        assert balancer.explain()

    def test_a_policy_of_ones_own_is_asked_and_told_through_all_of_them(self):
        class Own(Fewest):
            told = ()

            def observe(self, node, seconds, success, now):
                self.told = (*self.told, (node, seconds, success, now))

            def latency(self, node, now):
                return 0.7

            def describe(self, node, among, now):
                return "mine"

        own = Own()
        policy = Filter(partial(Locality, partial(Subset, lambda: own, 4, "me"), "a"))
        among = nodes(4, zones=["a"])
        node = policy.choose(among, 0.0, random.Random(1))
        policy.observe(node, 0.2, False, 3.0)
        assert own.told == ((node, 0.2, False, 3.0),)
        assert policy.latency(node, 3.0) == 0.7
        assert "mine" in policy.describe(node, among, 3.0)

    def test_a_key_goes_through_to_the_policy_within(self):
        policy = Filter(partial(Subset, Rendezvous, 5, "me"))
        assert len({owner(policy, nodes(20), "user-17").endpoint.id for _ in range(20)}) == 1

    @pytest.mark.parametrize("make", WRAPPERS)
    def test_a_policy_that_does_not_learn_is_left_in_peace(self, make):
        make().observe(nodes(1)[0], 0.1, True, 0.0)

    @pytest.mark.parametrize("make", WRAPPERS)
    def test_a_probe_goes_where_it_has_to(self, make):
        (elsewhere,) = nodes(1, zones=["far away"])
        assert make().choose((elsewhere,), 0.0, random.Random(1)) is elsewhere

    def test_the_policy_within_is_checked(self):
        with pytest.raises(ConfigurationError, match="'fastest' does not exist; known: least_time"):
            Subset("fastest")
