"""The order in which a server leaves, as a table of times."""

from __future__ import annotations

from clientlb.registration import Stage
from clientlb.registration.departure import Departure


def test_it_serves_for_the_propagation_time_and_then_waits_for_what_is_under_way() -> None:
    departure = Departure(propagation=1.0, drain_timeout=20.0)
    departure.in_flight = 1
    assert departure.begin()
    departure.withdrawn(100.0, was_known=True)
    assert (departure.pause(100.0), departure.stage) == (1.0, Stage.LEAVING)
    assert (departure.pause(100.5), departure.stage) == (0.5, Stage.LEAVING)
    assert (departure.pause(101.0), departure.stage) == (20.0, Stage.DRAINING)
    departure.in_flight = 0
    assert (departure.pause(103.0), departure.stage) == (None, Stage.LEFT)


def test_idle_servers_do_not_drain() -> None:
    departure = Departure(propagation=1.0, drain_timeout=20.0)
    departure.begin()
    departure.withdrawn(100.0, was_known=True)
    assert departure.pause(101.0) is None


def test_draining_has_an_end() -> None:
    departure = Departure(propagation=0.0, drain_timeout=2.0)
    departure.in_flight = 1
    departure.begin()
    departure.withdrawn(100.0, was_known=True)
    assert departure.pause(100.0) == 2.0
    assert departure.pause(102.0) is None
    assert departure.stage is Stage.LEFT


def test_a_server_that_nobody_knew_does_not_wait() -> None:
    departure = Departure(propagation=5.0, drain_timeout=20.0)
    departure.begin()
    departure.withdrawn(100.0, was_known=False)
    assert departure.pause(100.0) is None


def test_nothing_ends_before_the_registry_was_told() -> None:
    departure = Departure(propagation=0.0, drain_timeout=0.0)
    assert departure.stage is Stage.SERVING
    departure.begin()
    assert departure.pause(1e9) == float("inf")


def test_it_begins_once() -> None:
    departure = Departure(propagation=1.0, drain_timeout=1.0)
    assert departure.begin()
    assert not departure.begin()
