"""What has to be read again, and when: the part of ZooKeeper discovery that does no I/O."""

from __future__ import annotations

from clientlb.discovery._zookeeper_agenda import Agenda, Errand, View
from clientlb.discovery.decode import InstanceDecoder
from clientlb.discovery.feed import Feed
from clientlb.testing import RecordingListener


def view(path: str) -> View:
    return View(path, InstanceDecoder("test"), Feed(RecordingListener(), "test"))


def done(agenda: Agenda, now: float = 0.0) -> list[Errand]:
    """Take all there is; afterwards it counts as read."""
    errands = agenda.take(100, now)
    for errand in errands:
        errand.view.epoch = 1
    return errands


def test_a_new_service_is_listed() -> None:
    agenda, orders = Agenda(), view("/services/orders")
    agenda.add(orders)
    assert agenda.take(10, 0.0) == [Errand(orders, True, frozenset())]
    assert agenda.take(10, 0.0) == []


def test_events_mark_what_they_concern_and_nothing_else() -> None:
    agenda, orders, group, nested = Agenda(), view("/s/orders"), view("/s/group"), view("/s/group/orders")
    for each in (orders, group, nested):
        agenda.add(each)
    done(agenda)
    for path in ("/s/orders/a", "/s/orders/b", "/s/orders/a"):
        assert agenda.event(path)
    assert done(agenda) == [Errand(orders, False, frozenset("ab"))]
    assert agenda.event("/s/group/orders")
    assert done(agenda) == [Errand(nested, True, frozenset()), Errand(group, False, frozenset({"orders"}))]
    for path in ("/s", "/s/other", "/s/other/a", "/s/orders/a/deeper", "/"):
        assert not agenda.event(path)
    assert done(agenda) == []


def test_the_longest_marked_is_first() -> None:
    agenda, views = Agenda(), [view(f"/s/{n}") for n in range(5)]
    for each in views:
        agenda.add(each)
    done(agenda)
    for n in (3, 1, 3, 0):
        agenda.event(f"/s/{n}/a")
    assert [errand.view for errand in agenda.take(2, 0.0)] == [views[3], views[1]]
    agenda.event("/s/3/a")
    assert [errand.view for errand in agenda.take(2, 0.0)] == [views[0], views[3]]


def test_what_failed_is_read_later_whatever_happens_meanwhile() -> None:
    agenda, orders = Agenda(), view("/s/orders")
    agenda.add(orders)
    done(agenda)
    agenda.postpone(orders, 5.0)
    agenda.event("/s/orders/a")
    assert agenda.due() == 5.0
    assert agenda.take(10, 4.9) == []
    assert agenda.take(10, 5.0) == [Errand(orders, True, frozenset("a"))]
    assert agenda.due() is None


def test_those_that_were_denied_are_read_again_after_a_pause_and_the_others_as_ever() -> None:
    agenda, orders = Agenda(), view("/s/orders")
    agenda.add(orders)
    done(agenda)
    orders.deny({"a", "b"})
    for _ in range(3):  # one reminder, however often it is read
        agenda.remind(orders, 100.0)
        agenda.event("/s/orders/c")
        assert done(agenda) == [Errand(orders, False, frozenset("c"))]
    due = agenda.due()
    assert due is not None
    assert 100.0 < due <= 101.0
    orders.lose({"b"})
    assert done(agenda, due) == [Errand(orders, False, frozenset("a"))]
    assert agenda.due() is None
    orders.learn("a", b"10.0.0.1:80")
    agenda.remind(orders, 100.0)
    assert agenda.due() is None


def test_a_reminder_does_not_end_a_pause() -> None:
    agenda, orders = Agenda(), view("/s/orders")
    agenda.add(orders)
    done(agenda)
    orders.deny({"a"})
    agenda.remind(orders, 0.0)
    agenda.postpone(orders, 50.0)
    assert done(agenda, 49.0) == []
    assert done(agenda, 50.0) == [Errand(orders, True, frozenset("a"))]
    agenda.remind(orders, 50.0)
    agenda.renew()
    assert len(done(agenda)) == 1
    agenda.remind(orders, 50.0)  # the other one went with the old connection
    assert agenda.due() is not None


def test_a_new_connection_reads_everything_at_once() -> None:
    agenda, views = Agenda(), [view(f"/s/{n}") for n in range(3)]
    for each in views:
        agenda.add(each)
    done(agenda)
    agenda.postpone(views[1], 5.0)
    agenda.renew()
    assert {errand.view for errand in done(agenda) if errand.listing} == set(views)
    assert agenda.due() is None


def test_what_is_removed_is_forgotten() -> None:
    agenda, one, same = Agenda(), view("/s/orders"), view("/s/orders")
    agenda.add(one)
    agenda.add(same)
    done(agenda)
    agenda.postpone(one, 5.0)
    assert not agenda.remove(one)  # somebody else watches the same service
    assert agenda.watches("/s/orders")
    assert agenda.remove(same)
    assert not agenda.remove(same)
    for each in (one, same):
        agenda.give_back(each)
    agenda.postpone(same, 5.0)
    assert not agenda.event("/s/orders/a")
    assert (agenda.take(10, 9.0), agenda.due(), list(agenda), agenda.watches("/s/orders")) == ([], None, [], False)
