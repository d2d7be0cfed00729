"""The simulated client does what a shell does: it obeys the call, and what the balancer raises is a lost call."""

import random
from dataclasses import replace
from math import inf

import pytest

from clientlb import Endpoint, HedgeOptions, Options, RetryOptions
from clientlb.simulation import Server, Setting
from clientlb.simulation.client import Client
from clientlb.simulation.loop import Loop
from clientlb.simulation.record import Record

SETTING = Setting(clients=1, servers=1, round_trip=0.0, warm_up=0.0, measured=10.0)


class Alone:
    """One client and one server that discovery does not name yet."""

    def __init__(self, **options):
        self.loop = Loop()
        self.record = Record(SETTING.ends)
        self.server = Server(self.loop, Endpoint("s", 80, id="s"))
        self.record.numbers[self.server] = 0
        servers = {"s": self.server}
        self.client = Client(self.loop, SETTING, Options(**options), servers, self.record, random.Random(1))

    def announce(self):
        self.client.balancer.update([self.server.endpoint])


def test_a_call_waits_for_the_first_list():
    alone = Alone(wait_for_endpoints=2.0)
    alone.client.begin(0.5)
    alone.loop.at(1.0, lambda _: alone.announce())
    alone.loop.run(10.0)
    assert list(alone.record.latencies) == pytest.approx([2.5])


def test_a_call_that_never_gets_an_endpoint_is_lost():
    alone = Alone(wait_for_endpoints=2.0)
    alone.client.begin(0.5)
    alone.loop.run(10.0)
    assert list(alone.record.latencies) == [inf]
    assert alone.record.waited_for == 0
    assert len(alone.record.attempts) == 0


def test_a_call_on_a_closed_balancer_is_lost():
    alone = Alone()
    alone.announce()
    alone.client.balancer.close()
    alone.client.begin(0.5)
    alone.loop.run(10.0)
    assert list(alone.record.latencies) == [inf]


def test_an_answer_takes_its_time_and_the_pick_is_released():
    alone = Alone()
    alone.announce()
    alone.client.begin(0.5)
    alone.loop.run(0.4)
    (node,) = alone.client.balancer.nodes
    assert node.in_flight == alone.server.in_flight == 1
    alone.loop.run(10.0)
    assert list(alone.record.latencies) == pytest.approx([0.5])
    assert node.in_flight == alone.server.in_flight == 0


class Racing:
    """One client that hedges after 0.1 s, and three servers."""

    def __init__(self, at_most=1, **changes):
        self.loop = Loop()
        self.record = Record(SETTING.ends)
        setting = replace(SETTING, hedge=HedgeOptions(delay=0.1, at_most=at_most), **changes)
        servers = {name: Server(self.loop, Endpoint("s", port, id=name)) for port, name in enumerate("abc", 1)}
        self.servers = list(servers.values())
        self.record.numbers.update({server: number for number, server in enumerate(self.servers)})
        options = Options(policy="round_robin")
        self.client = Client(self.loop, setting, options, servers, self.record, random.Random(1))
        self.client.balancer.update([server.endpoint for server in self.servers])

    def first_is_slow(self, seconds=3.0):
        """The next call goes to a server that takes so long."""
        turns = [self.client.balancer.try_pick() for _ in self.servers]
        for pick in turns:
            pick.release()
        self.servers["abc".index(turns[0].endpoint.id)].least_work = seconds

    @property
    def in_flight(self):
        nodes = self.client.balancer.nodes
        return sum(node.in_flight for node in nodes), sum(server.in_flight for server in self.servers)


def test_a_second_attempt_overtakes_the_first_which_is_cancelled():
    racing = Racing()
    racing.first_is_slow()
    racing.client.begin(0.5)
    racing.loop.run(0.05)
    assert racing.in_flight == (1, 1)
    racing.loop.run(0.2)
    assert racing.in_flight == (2, 2)
    racing.loop.run(0.61)
    assert list(racing.record.latencies) == pytest.approx([0.6])
    assert racing.in_flight == (0, 0)
    racing.loop.run(10.0)
    assert len(racing.record.latencies) == 1
    assert racing.client.balancer.retrying.hedges == 1


def test_an_attempt_that_is_fast_has_no_second_one():
    racing = Racing()
    racing.client.begin(0.05)
    racing.loop.run(10.0)
    assert list(racing.record.latencies) == pytest.approx([0.05])
    assert len(racing.record.attempts) == 1


def test_a_third_attempt_follows_the_second_if_wanted():
    racing = Racing(at_most=2)
    for server in racing.servers:
        server.least_work = 1.0
    racing.client.begin(0.5)
    racing.loop.run(10.0)
    assert list(racing.record.attempts) == pytest.approx([0.0, 0.1, 0.2])
    assert list(racing.record.latencies) == pytest.approx([1.0])
    assert racing.in_flight == (0, 0)


def test_attempts_that_all_fail_are_retried():
    racing = Racing(attempt_timeout=0.5)
    for server in racing.servers:
        server.fall_silent()
    racing.client.begin(0.1)
    racing.loop.run(0.55)
    assert len(racing.record.attempts) == 2, "the first has failed, the second one may yet answer"
    racing.loop.run(10.0)
    assert len(racing.record.attempts) > 2
    assert list(racing.record.latencies) == [inf]
    assert racing.in_flight == (0, 0)


def test_a_process_that_stands_still_starts_no_second_attempt():
    racing = Racing()
    racing.client.begin(2.0)
    racing.client.stalled_until = 1.0
    racing.loop.run(0.9)
    assert len(racing.record.attempts) == 1
    racing.loop.run(10.0)
    assert list(racing.record.attempts) == pytest.approx([0.0, 1.0])
    assert list(racing.record.latencies) == pytest.approx([2.0])


def test_hedging_of_the_options_counts_where_the_setting_has_none():
    alone = Alone(retry=RetryOptions(hedge=HedgeOptions(delay=0.1)))
    alone.announce()
    alone.client.begin(0.5)
    alone.loop.run(10.0)
    assert list(alone.record.latencies) == pytest.approx([0.5]), "there is no second server"
    assert len(alone.record.attempts) == 1
