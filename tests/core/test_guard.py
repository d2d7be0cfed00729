"""The guard by itself, with the time as an argument."""

from math import inf

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from clientlb.endpoint import Endpoint
from clientlb.guard import Guard, Reason
from clientlb.options import GuardOptions


def fleet(*ports):
    return [Endpoint("10.0.0.1", port) for port in ports]


class Watch:
    """A guard, and the list that it publishes."""

    def __init__(self, *ports, **options):
        self.guard = Guard(GuardOptions(**options))
        self.published = set()
        self.now = 1000.0
        self.hears(*ports)

    def hears(self, *ports):
        verdict = self.guard.take(self.guard.compare(fleet(*ports)), self.now)
        self.published |= {endpoint.port for endpoint in verdict.added}
        self.published -= {port for _, _, port in verdict.removed}
        return verdict

    def after(self, seconds):
        self.now += seconds
        self.published -= {port for _, _, port in self.guard.release(self.now)}
        return self.published

    @property
    def limbo(self):
        return {port for _, _, port in self.guard.limbo}


def test_minority_leaves_at_once_also_right_after_the_start():
    watch = Watch(1, 2, 3, 4)
    assert watch.hears(1, 2).reason is None
    assert watch.published == {1, 2}


def test_majority_is_held():
    watch = Watch(1, 2, 3, 4)
    assert watch.hears(1).reason is Reason.MASS
    assert watch.after(29.9) == {1, 2, 3, 4}
    assert watch.after(0.1) == {1}


def test_who_can_be_reached_is_held_if_nobody_else_can():
    """The leases of all end while a registry hangs; when it goes on, it may drop the living before the dead."""
    watch = Watch(1, 2, 3, 4)
    unreachable = {endpoint.key for endpoint in fleet(1, 2)}

    def take(*ports):
        return watch.guard.take(watch.guard.compare(fleet(*ports)), watch.now, unreachable).reason

    assert take(1, 2, 3) is None
    assert take(1, 2) is Reason.UNREACHABLE
    assert watch.limbo == {3}
    assert take(1, 2, 3) is None
    assert not watch.limbo


def test_nobody_is_held_for_others_that_cannot_be_reached():
    unreachable = {endpoint.key for endpoint in fleet(1, 2)}
    for published, left, options in [((1, 2), (1,), {}), ((1, 3, 4), (1, 3), {}), ((1, 3), (1,), {"keep_ratio": 0})]:
        watch = Watch(*published, **options)
        verdict = watch.guard.take(watch.guard.compare(fleet(*left)), watch.now, unreachable)
        assert verdict.reason is None


def test_who_is_first_back_in_an_empty_registry_does_not_push_the_others_out():
    """A registry that was wiped names nobody, then one after the other."""
    watch = Watch(1, 2, 3, 4, 5)
    watch.hears()
    assert watch.after(50) == {1, 2, 3, 4, 5}
    watch.hears(1)
    assert watch.after(29.9) == {1, 2, 3, 4, 5}
    watch.hears(1, 2, 3)
    assert watch.after(0.1) == {1, 2, 3}


def test_majority_that_leaves_one_by_one_is_held():
    watch = Watch(*range(1, 11))
    for left in range(9, 0, -1):
        watch.after(1)
        watch.hears(*range(1, left + 1))
    assert watch.published == {1, 2, 3, 4, 5}
    watch.after(30)
    assert watch.published == {1}


def test_one_by_one_in_their_own_time_they_leave():
    watch = Watch(*range(1, 11))
    for left in range(9, 0, -1):
        watch.after(31)
        assert watch.hears(*range(1, left + 1)).reason is None
    assert watch.published == {1}


def test_who_forgot_living_servers_is_not_believed_soon_after():
    watch = Watch(1, 2, 3, 4)
    assert watch.hears().reason is Reason.EMPTY
    watch.hears(1, 2, 3, 4)
    watch.after(29.9)
    assert watch.hears(1, 2, 3).reason is Reason.UNSETTLED
    watch.hears(1, 2, 3, 4)
    watch.after(30)
    assert watch.hears(1, 2, 3).reason is None


def test_rolling_deployment_is_no_mass():
    watch = Watch(*range(1, 11))
    for step in range(1, 11):
        watch.after(1)
        assert watch.hears(*range(step + 1, step + 11)).reason is None
    assert watch.published == set(range(11, 21))


def test_nobody_leaves_soon_after_an_outage():
    watch = Watch(1, 2, 3, 4)
    watch.guard.error()
    watch.after(100)
    assert watch.hears(1, 2, 3).reason is Reason.UNSETTLED
    watch.after(29)
    assert watch.hears(1, 2).reason is Reason.UNSETTLED
    assert watch.after(1) == {1, 2, 3}, "each one waits for itself"
    assert watch.after(29) == {1, 2}
    assert watch.hears(1).reason is None


def test_outage_restarts_the_clock():
    watch = Watch(1, 2, 3)
    watch.hears(1)
    watch.after(29)
    watch.guard.error()
    assert watch.after(3600) == {1, 2, 3}
    watch.hears(1)
    assert watch.after(29) == {1, 2, 3}
    assert watch.after(1) == {1}


def test_empty_list_has_a_time_of_its_own():
    watch = Watch(1, 2)
    assert watch.hears().reason is Reason.EMPTY
    assert watch.after(59) == {1, 2}
    assert watch.hears().reason is None
    assert watch.after(1) == set()


@pytest.mark.parametrize(
    ("options", "heard"),
    [({"hold": 0}, [1]), ({"keep_ratio": 0}, [1]), ({"empty_hold": 0}, [])],
)
def test_rule_can_be_turned_off(options, heard):
    watch = Watch(1, 2, 3, **options)
    assert watch.hears(*heard).reason is None
    assert watch.published == set(heard)


def test_who_lost_the_address_to_another_is_gone():
    guard = Guard(GuardOptions())
    guard.take(guard.compare([Endpoint("10.0.0.1", 1, "a"), Endpoint("10.0.0.2", 1, "b")]), 0.0)
    verdict = guard.take(guard.compare([Endpoint("10.0.0.1", 1, "c")]), 1.0)
    assert verdict.removed == [("a", "10.0.0.1", 1), ("b", "10.0.0.2", 1)], "one of two is no mass"
    guard.take(guard.compare([Endpoint("10.0.0.3", 1, "d")]), 2.0)
    assert list(guard.limbo) == [("c", "10.0.0.1", 1)]
    verdict = guard.take(guard.compare([Endpoint("10.0.0.1", 1, "e"), Endpoint("10.0.0.3", 1, "d")]), 3.0)
    assert (verdict.removed, guard.limbo) == ([("c", "10.0.0.1", 1)], {})


def test_settling_can_be_turned_off():
    watch = Watch(1, 2, 3, settle=0)
    watch.guard.error()
    assert watch.hears(1, 2).reason is None


def test_same_server_twice_is_one():
    watch = Watch(1, 2)
    survivor = watch.guard.named["10.0.0.1:1", "10.0.0.1", 1]
    heavier = Endpoint("10.0.0.1", 1, weight=2)
    for listed in ([survivor, heavier, *fleet(2)], [heavier, *fleet(2, 2)], [*fleet(1, 2), heavier]):
        verdict = watch.guard.take(watch.guard.compare(listed), watch.now)
        assert (verdict.added, verdict.removed, verdict.held) == ([], [], [])
        assert watch.guard.named["10.0.0.1:1", "10.0.0.1", 1] == heavier


class AnyRegistry(RuleBasedStateMachine):
    """Any sequence of lists, outages and time, with any options."""

    @initialize(
        hold=st.sampled_from([0, 10, 30]),
        settle=st.sampled_from([0, 5, 30]),
        keep_ratio=st.sampled_from([0, 0.5, 1]),
        empty_hold=st.sampled_from([0, 10, 60]),
    )
    def begin(self, **options):
        self.options = GuardOptions(**options)
        self.watch = Watch(**options)
        self.named = set()
        self.down = False
        self.missing = {}  # since when, of healthy time
        self.empty_for = 0.0

    @rule(ports=st.sets(st.integers(1, 8)), same=st.booleans())
    def hears(self, ports, same):
        before = set(self.watch.published)
        listed = [
            self.watch.guard.named.get((each.id, each.host, each.port), each) if same else each
            for each in fleet(*ports)
        ]
        guard = self.watch.guard
        verdict = guard.take(guard.compare(listed), self.watch.now)
        self.watch.published |= {each.port for each in verdict.added}
        removed = {port for _, _, port in verdict.removed}
        self.watch.published -= removed
        if self.down:
            self.missing = dict.fromkeys(self.missing, 0.0)
            self.down, self.empty_for = False, 0.0
        if ports and not self.named:
            self.missing = dict.fromkeys(self.missing, 0.0)  # a registry that named nobody was out of order
        if ports:
            self.empty_for = 0.0
        assert removed <= before - ports
        assert not {each.port for each in verdict.added} & before
        assert {each.port for each in verdict.returned} <= before & ports
        named_before, self.named = self.named, ports
        self.missing = {port: self.missing.get(port, 0.0) for port in self.watch.published - ports}
        if ports and self.options.hold and len(before & ports) < self.options.keep_ratio * len(before):
            assert not removed & named_before, "a mass is held"

    @rule(seconds=st.floats(0.1, 40))
    def wait(self, seconds):
        before = set(self.watch.published)
        if not self.down:
            self.missing = {port: healthy + seconds for port, healthy in self.missing.items()}
            self.empty_for += seconds if not self.named else 0.0
        self.watch.after(seconds)
        assert not self.down or self.watch.published == before
        self.missing = {port: self.missing[port] for port in self.watch.published - self.named}
        if before and not self.watch.published:
            assert self.empty_for >= self.options.empty_hold - 1e-6
        if not self.down:
            assert self.watch.guard.due > self.watch.now
            if self.named:
                assert all(healthy <= self.options.hold + 1e-6 for healthy in self.missing.values())
            else:
                assert self.empty_for <= self.options.empty_hold + 1e-6 or not self.missing

    @rule()
    def fails(self):
        self.watch.guard.error()
        self.down = True

    @rule()
    def drops_one(self):
        for key in list(self.watch.guard.limbo)[:1]:
            self.watch.guard.drop([key])
            self.watch.published.discard(key[2])
            self.missing.pop(key[2], None)

    @invariant()
    def whoever_is_named_is_published(self):
        assert self.watch.published >= self.named

    @invariant()
    def the_rest_is_in_limbo(self):
        assert self.watch.published - self.named == self.watch.limbo
        assert {port for _, _, port in self.watch.guard.named} == self.named

    @invariant()
    def something_is_due_exactly_while_somebody_is_held(self):
        assert (self.watch.guard.due < inf) == (bool(self.watch.limbo) and not self.down)


TestAnyRegistry = AnyRegistry.TestCase
TestAnyRegistry.settings = settings(max_examples=100, stateful_step_count=30)
