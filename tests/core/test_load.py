"""What a server says of its load: rates and mean over a window, through every kind of application."""

import random
import threading

import pytest

from clientlb import ConfigurationError
from clientlb.load import LoadRecorder
from clientlb.load.wsgi import Reported
from clientlb.orca import of_header
from clientlb.testing import FakeClock


def served(recorder, clock, count, each, *, every=0.0, failed=False):
    for _ in range(count):
        recorder.began()
        clock.advance(each)
        recorder.ended(failed=failed)
        clock.advance(every)


def test_rates_and_utilization_are_those_of_the_window():
    clock = FakeClock()
    recorder = LoadRecorder(4, window=10.0, clock=clock)
    served(recorder, clock, 1000, 0.05)  # 20/s, one at a time
    served(recorder, clock, 150, 0.05, every=0.05, failed=True)  # 10/s, for half of the time
    report = recorder.report()
    assert report.qps == pytest.approx(10.0, rel=0.02)
    assert report.eps == pytest.approx(10.0, rel=0.02)
    assert report.utilization == pytest.approx(0.5 / 4, rel=0.02)
    assert recorder.in_flight == 0


def test_a_request_that_runs_counts_as_busy():
    clock = FakeClock()
    recorder = LoadRecorder(2, window=10.0, clock=clock)
    recorder.began()
    clock.advance(1000.0)
    assert recorder.report().utilization == pytest.approx(0.5)


def test_a_pause_is_forgotten_after_a_window():
    clock = FakeClock()
    recorder = LoadRecorder(1, window=10.0, clock=clock)
    clock.advance(3600.0)
    served(recorder, clock, 100, 0.1)
    report = recorder.report()
    assert report.qps == pytest.approx(10.0, rel=0.02)
    assert report.utilization == pytest.approx(1.0, rel=0.02)
    clock.advance(10.5)
    assert recorder.report().qps == pytest.approx(0.0, abs=0.5)


def test_random_traffic_agrees_with_what_was_counted():
    clock, rng = FakeClock(), random.Random(1)
    recorder = LoadRecorder(10, window=5.0, clock=clock)
    ends = []
    for _ in range(3000):
        clock.advance(rng.expovariate(20.0))
        if recorder.in_flight and rng.random() < 0.5:
            recorder.ended()
            ends.append(clock())
        else:
            recorder.began()
        if rng.random() < 0.01:
            clock.advance(rng.uniform(0.0, 8.0))
        expected = sum(end > clock() - 5.0 for end in ends) / 5.0
        if clock() > ends[0] + 10.0 if ends else False:
            assert recorder.report().qps == pytest.approx(expected, abs=3.0)


def test_threads_lose_nothing():
    recorder = LoadRecorder(8, window=1000.0)

    def work():
        for _ in range(2000):
            recorder.began()
            recorder.ended()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert recorder.in_flight == 0
    assert recorder._now.requests == 16_000


def test_a_utilization_of_ones_own_is_reported_and_one_that_fails_is_not(caplog):
    clock = FakeClock()
    recorder = LoadRecorder(utilization=lambda: 0.25, clock=clock)
    served(recorder, clock, 10, 0.1)
    assert of_header(recorder.text(), 0.0).utilization == 0.25
    assert of_header(recorder.text(), 0.0).qps == pytest.approx(10.0)
    failing = LoadRecorder(utilization=lambda: 1 / 0)
    assert failing.text() is None
    assert failing.report_if_possible() is None
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({}, "capacity or utilization"),
        ({"capacity": 1, "utilization": float}, "capacity or utilization"),
        ({"capacity": 0}, "capacity is 0"),
        ({"capacity": 1, "window": -1.0}, "window is -1.0"),
    ],
)
def test_arguments_that_cannot_be_right_are_named(arguments, named):
    with pytest.raises(ConfigurationError, match=named):
        LoadRecorder(**arguments)


class TestWsgi:
    def ask(self, app, recorder):
        said = []
        answer = Reported(app, recorder)({}, lambda status, headers, *error: said.append((status, dict(headers))))
        try:
            return said, list(answer)
        finally:
            assert recorder.in_flight == 1
            answer.close()
            answer.close()
            assert recorder.in_flight == 0

    def test_an_answer_has_the_header_and_ends_when_it_was_sent(self):
        def app(environ, start_response):
            start_response("200 OK", [("A", "b")])
            return [b"x", b"y"]

        clock = FakeClock()
        recorder = LoadRecorder(1, clock=clock)
        served(recorder, clock, 5, 0.1)
        ((status, headers),), parts = self.ask(app, recorder)
        assert (status, headers["A"], parts) == ("200 OK", "b", [b"x", b"y"])
        assert of_header(headers["endpoint-load-metrics"], 0.0).qps > 0
        assert recorder.report().eps == 0

    def test_a_5xx_and_an_exception_are_errors(self):
        def fails(environ, start_response):
            start_response("500 Oh", [])
            return [b""]

        def breaks_off(environ, start_response):
            start_response("200 OK", [])
            yield b"x"
            raise RuntimeError

        def raises(environ, start_response):
            raise RuntimeError

        recorder = LoadRecorder(1)
        self.ask(fails, recorder)
        with pytest.raises(RuntimeError):
            self.ask(breaks_off, recorder)
        with pytest.raises(RuntimeError):
            Reported(raises, recorder)({}, lambda *said: None)
        assert recorder.in_flight == 0
        assert recorder._now.errors == 3
