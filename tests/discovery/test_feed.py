"""The last yard between a resolver and its listener."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import pytest

from clientlb.discovery.feed import ERROR_REPEAT, Feed
from clientlb.endpoint import Endpoint
from clientlb.testing import FakeClock, RecordingListener

A, B = Endpoint("10.0.0.1", 80), Endpoint("10.0.0.2", 80)


def test_an_equal_list_is_no_news_unless_it_ends_an_outage() -> None:
    listener = RecordingListener()
    feed = Feed(listener, "test")
    for _ in range(3):
        feed.update([A, B])
    assert listener.updates == [(A, B)]
    feed.error(OSError("down"))
    feed.update([A, B])
    feed.update([A, B])
    assert listener.updates == [(A, B), (A, B)]


def test_the_first_list_is_news_also_when_it_is_empty() -> None:
    listener = RecordingListener()
    Feed(listener, "test").update([])
    assert listener.updates == [()]


def test_one_server_described_twice_is_one_endpoint() -> None:
    listener = RecordingListener()
    heavier = Endpoint("10.0.0.1", 80, weight=2.0)
    Feed(listener, "test").update([A, B, heavier])
    assert listener.updates == [(heavier, B)]


def test_a_list_that_is_said_to_be_distinct_is_not_searched() -> None:
    listener = RecordingListener()
    feed = Feed(listener, "test")
    for endpoints in ([A, B], [A, B], [A, A]):
        feed.update(endpoints, distinct=True)
    assert listener.updates == [(A, B), (A, A)]


def test_an_error_that_goes_on_is_told_once_and_another_one_too() -> None:
    listener = RecordingListener()
    feed = Feed(listener, "test")
    for text in ("down", "down", "down", "denied", "denied"):
        feed.error(OSError(text))
    assert [str(error) for error in listener.errors] == ["down", "denied"]


def test_an_error_that_goes_on_is_told_again_after_a_while() -> None:
    listener, clock = RecordingListener(), FakeClock()
    feed = Feed(listener, "test", clock)
    for pause, told in ((0.0, 1), (ERROR_REPEAT - 1, 1), (1.0, 2), (1.0, 2), (ERROR_REPEAT, 3)):
        clock.advance(pause)
        feed.error(OSError("down"))
        assert len(listener.errors) == told


class Raising(RecordingListener):
    def update(self, endpoints: Iterable[Endpoint]) -> None:
        super().update(endpoints)
        raise RuntimeError("mistake")

    def error(self, error: Exception) -> None:
        super().error(error)
        raise RuntimeError("mistake")


def test_a_listener_that_raises_does_not_end_the_watch(caplog: pytest.LogCaptureFixture) -> None:
    listener = Raising()
    feed = Feed(listener, "test")
    feed.update([A])
    feed.error(OSError("down"))
    feed.update([B])
    assert listener.updates == [(A,), (B,)]
    assert len(listener.errors) == 1
    assert len(caplog.records) == 3


def test_a_listener_may_close_while_it_is_told() -> None:
    class Closing(RecordingListener):
        def update(self, endpoints: Iterable[Endpoint]) -> None:
            super().update(endpoints)
            feed.close()

    listener = Closing()
    feed = Feed(listener, "test")
    feed.update([A])
    feed.update([B])
    feed.error(OSError("down"))
    assert listener.updates == [(A,)]
    assert not listener.errors


def test_close_waits_for_a_delivery_that_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clientlb.discovery.feed._CLOSE_PATIENCE", 30.0)
    entered, go_on = threading.Event(), threading.Event()
    order: list[str] = []

    class Slow(RecordingListener):
        def update(self, endpoints: Iterable[Endpoint]) -> None:
            entered.set()
            go_on.wait(30)
            order.append("delivered")

    def close() -> None:
        feed.close()
        order.append("closed")

    feed = Feed(Slow(), "test")
    delivery, closing = threading.Thread(target=feed.update, args=([A],)), threading.Thread(target=close)
    delivery.start()
    assert entered.wait(30)
    closing.start()
    closing.join(0.05)  # time to return too early
    go_on.set()
    closing.join(30)
    delivery.join(30)
    assert order == ["delivered", "closed"]


def test_close_does_not_wait_for_ever() -> None:
    entered, go_on = threading.Event(), threading.Event()

    class Stuck(RecordingListener):
        def update(self, endpoints: Iterable[Endpoint]) -> None:
            entered.set()
            go_on.wait(30)

    feed = Feed(Stuck(), "test")
    delivery = threading.Thread(target=feed.update, args=([A],))
    delivery.start()
    assert entered.wait(30)
    feed.close()
    assert delivery.is_alive()
    go_on.set()
    delivery.join(30)
