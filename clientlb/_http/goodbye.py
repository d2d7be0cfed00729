"""What a server's goodbye on an HTTP/2 connection, its GOAWAY, means for each request (RFC 9113, 6.8).

It names the last request that the server looks at. Those up to it are answered, although nothing new may be sent; those
above it were never processed and may be sent elsewhere, whatever they are. httpcore lets both fail, and h2 refuses to
read on. So neither of them sees a goodbye: it is taken out of what arrives, and each request above it is reset, as a
server does that refuses a single request. That the connection is not used any more is for its owner to see to.

Some servers do not answer what they said they would, and leave the connection open: those that are built on h2 cannot
send or read anything after their goodbye (Hypercorn, after 1000 requests). A ping in its place makes our h2 write a few
bytes. Such a server closes the connection when they come, which ends the call at once; others take no notice.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client sends first, and never over HTTP/1.1."""
_HEADERS, _GOAWAY = 1, 7
_HEADER = 9
"""Bytes before each frame: three for its length, one for its kind, one for flags, four for its stream."""
_MOST = 16_384
"""Bytes of the longest frame that httpcore allows; a longer one is passed on, for h2 to complain about."""
_STREAM_ID = 0x7FFFFFFF
_RESET = struct.Struct(">HBBBLL")
"""A whole RST_STREAM: four bytes in a frame of kind 3 without flags, its stream, and why."""
_REFUSED = 7
_PING = struct.pack(">HBBBLQ", 0, 8, 6, 0, 0, 0)
"""A frame that h2 answers."""


@dataclass(frozen=True)
class NotTaken:
    """Stands in httpcore's error for a request that a goodbye excludes, as h2's events do for others.

    Args:
        stream: Of the request; 1 is the first of its connection.
    """

    stream: int

    def __str__(self) -> str:
        return "GOAWAY: the server takes no more requests on this connection, and did not take this one"


class Goodbye:
    """Listens to one connection. HTTP/1.1 passes unseen.

    Attributes:
        said: The server takes no more requests on the connection.
        reason: Why, if it is an error; empty otherwise.
    """

    __slots__ = ("_held", "_http2", "_last", "_opened", "_refused", "_rest", "reason", "said")

    def __init__(self) -> None:
        self.said = False
        self.reason = ""
        self._http2 = False
        self._opened = -1  # requests of a client have odd numbers
        self._last = self._refused = _STREAM_ID
        self._rest = 0  # bytes to come of a frame whose beginning was passed on
        self._held = b""  # what came of a frame that may be a goodbye

    def excludes(self, stream: int) -> bool:
        """Whether the server has said that it did not look at this request."""
        return stream > self._last

    def sent(self, data: bytes) -> None:
        """Note which requests begin in whole frames that are sent."""
        at = 0
        if data.startswith(_PREFACE):
            self._http2 = True
            at = len(_PREFACE)
        elif not self._http2:
            return
        while at + _HEADER <= len(data):
            if data[at + 3] == _HEADERS:
                self._opened = max(self._opened, int.from_bytes(data[at + 5 : at + 9]) & _STREAM_ID)
            at += _HEADER + int.from_bytes(data[at : at + 3])

    def heard(self, data: bytes) -> bytes:
        """What httpcore may see of something that came; nothing if the rest must come first."""
        if not self._http2:
            return data
        data = self._held + data
        at = min(self._rest, len(data))
        self._rest -= at
        passed: list[bytes] = []
        start = 0
        while at + _HEADER <= len(data):
            length = int.from_bytes(data[at : at + 3])
            end = at + _HEADER + length
            if data[at + 3] != _GOAWAY or not 8 <= length <= _MOST:
                at = min(end, len(data))
                self._rest = end - at
                continue
            if end > len(data):
                break
            self._note(data[at + _HEADER : end])
            passed += [data[start:at], _PING, self.refusals()]
            at = start = end
        self._held = data[at:]
        return b"".join([*passed, data[start:at]])

    def _note(self, said: bytes) -> None:
        self.said = True
        last, error = struct.unpack(">LL", said[:8])
        self._last = last & _STREAM_ID
        # there may be two of them: one that stops new requests, and later one that says which were still taken
        self._refused = self._last - 1 + self._last % 2
        self.reason = f"error {error} {said[8:].decode('latin-1')}".rstrip() if error else ""

    def refusals(self) -> bytes:
        """Resets of the requests that were sent and not taken. Each comes once, or twice, which does no harm."""
        refused = range(self._refused + 2, self._opened + 1, 2)
        self._refused = max(self._refused, self._opened)
        return b"".join(_RESET.pack(0, 4, 3, 0, stream, _REFUSED) for stream in refused)
