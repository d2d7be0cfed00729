"""The simulated client does what a shell does: it obeys the call, and what the balancer raises is a lost call."""

import random
from math import inf

import pytest

from clientlb import Endpoint, Options
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
