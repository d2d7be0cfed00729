"""What a goodbye on an HTTP/2 connection does with what was sent and what comes, byte for byte."""

from __future__ import annotations

from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import pytest
from hyperframe.frame import DataFrame, GoAwayFrame, PingFrame
from hypothesis import given
from hypothesis import strategies as st

from clientlb._http.goodbye import Goodbye

HEADERS = [(":method", "GET"), (":scheme", "http"), (":authority", "orders"), (":path", "/")]


class Connection:
    """A client of h2 and what listens to its connection."""

    def __init__(self, requests: int) -> None:
        self.goodbye = Goodbye()
        self.client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.client.initiate_connection()
        self.server.initiate_connection()
        for _ in range(requests):
            self.request()
        self.hear(self.server.data_to_send())

    def request(self) -> None:
        self.client.send_headers(self.client.get_next_available_stream_id(), HEADERS, end_stream=True)
        data = self.client.data_to_send()
        self.goodbye.sent(data)
        self.server.receive_data(data)

    def answer(self, stream: int) -> bytes:
        self.server.send_headers(stream, [(":status", "200")])
        self.server.send_data(stream, b"x" * 1000, end_stream=True)
        return self.server.data_to_send()

    def hear(self, data: bytes) -> list[tuple[str, int]]:
        """What h2 makes of it: the names of the events and their streams."""
        events: list[Any] = self.client.receive_data(self.goodbye.heard(data))
        return [(type(event).__name__, event.stream_id) for event in events if getattr(event, "stream_id", None)]


def last(stream: int, error: int = 0, said: bytes = b"") -> bytes:
    return GoAwayFrame(0, last_stream_id=stream, error_code=error, additional_data=said).serialize()


def reset(*streams: int) -> list[tuple[str, int]]:
    return [("StreamReset", stream) for stream in streams]


def test_what_was_taken_is_answered_and_what_was_not_is_reset() -> None:
    connection = Connection(requests=4)
    assert connection.hear(last(3)) == reset(5, 7)
    assert connection.goodbye.said
    assert [connection.goodbye.excludes(stream) for stream in (1, 3, 5, 7)] == [False, False, True, True]
    assert ("StreamEnded", 3) in connection.hear(connection.answer(3))
    assert ("StreamEnded", 1) in connection.hear(connection.answer(1))


def test_one_that_excludes_all() -> None:
    assert Connection(requests=2).hear(last(0)) == reset(1, 3)


def test_first_no_new_ones_then_which_were_taken() -> None:
    connection = Connection(requests=3)
    assert connection.hear(last(2**31 - 1)) == []
    assert connection.goodbye.said
    assert connection.hear(last(3)) == reset(5)
    assert connection.hear(last(1)) == reset(3)


def test_a_request_that_crosses_the_goodbye_is_reset_once() -> None:
    connection = Connection(requests=1)
    connection.hear(last(1))
    assert connection.goodbye.refusals() == b""
    connection.request()
    events = connection.client.receive_data(connection.goodbye.refusals())
    assert [(type(event).__name__, event.stream_id) for event in events] == reset(3)  # type: ignore[union-attr]
    assert connection.goodbye.refusals() == b""


def test_h2_writes_something_that_a_server_notices_which_cannot_go_on() -> None:
    connection = Connection(requests=1)
    connection.server.close_connection()
    connection.hear(connection.server.data_to_send())
    written = connection.client.data_to_send()
    assert written.endswith(PingFrame(0, flags=["ACK"]).serialize())
    with pytest.raises(h2.exceptions.ProtocolError):
        connection.server.receive_data(written)


def test_why_is_kept() -> None:
    connection = Connection(requests=1)
    connection.hear(last(1, error=11, said=b"too_many_pings"))
    assert connection.goodbye.reason == "error 11 too_many_pings"


def test_a_frame_that_h2_will_complain_about_is_passed_on() -> None:
    long, short = last(1, said=b"x" * 16_385), b"\0\0\1" + last(1)[3:9] + b"x"
    for frame in (long, short):
        connection = Connection(requests=1)
        assert connection.goodbye.heard(frame) == frame
        assert not connection.goodbye.said


def test_what_looks_like_a_goodbye_inside_of_another_frame_is_none() -> None:
    connection = Connection(requests=1)
    frame = DataFrame(1, data=last(1)).serialize()
    for cut in range(len(frame)):
        assert connection.goodbye.heard(frame[:cut]) + connection.goodbye.heard(frame[cut:]) == frame
    assert not connection.goodbye.said


def test_other_protocols_pass() -> None:
    goodbye = Goodbye()
    goodbye.sent(b"GET / HTTP/1.1\r\n\r\n")
    assert goodbye.heard(last(0)) == last(0)
    assert not goodbye.said


@given(st.lists(st.integers(1, 60), max_size=80))
def test_the_pieces_in_which_it_comes_do_not_matter(sizes: list[int]) -> None:
    def conversation(connection: Connection) -> bytes:
        return connection.answer(1) + last(3) + connection.answer(3) + last(3)

    whole = Connection(requests=3)
    expected = whole.goodbye.heard(conversation(whole))
    pieces = Connection(requests=3)
    data, heard = conversation(pieces), b""
    for size in sizes:
        heard += pieces.goodbye.heard(data[:size])
        data = data[size:]
    assert heard + pieces.goodbye.heard(data) == expected
