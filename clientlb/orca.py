"""ORCA: what servers say of their load in the answers to ordinary calls, and how that is written.

In HTTP it is the header `endpoint-load-metrics`, as text, JSON or base64 of the message, told apart by a prefix:

    endpoint-load-metrics: TEXT cpu_utilization=0.3,rps_fractional=120.5,eps=0.2
    endpoint-load-metrics: JSON {"cpu_utilization": 0.3, "rps_fractional": 120.5}
    endpoint-load-metrics: BIN CTMzMzMzM9M/

In gRPC it is the message `xds.data.orca.v3.OrcaLoadReport` in the trailer `endpoint-load-metrics-bin` (gRFC A51).
grpcio keeps that one to itself: its core reads it, and no program gets to see it. So the header's name and text are
understood as a trailer, too (Envoy does the same), and that is what servers of `clientlb.load.grpc` send beside it. Of
its nine fields the four that say how busy a server is are read; no library for protocol buffers is needed for them.

What cannot be read is no report. It is never an error: the call that it came with has succeeded.
"""

from __future__ import annotations

import json
import struct
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Iterable, Iterator, Mapping
from math import inf
from typing import Final, Protocol

from clientlb.node import LoadReport

HEADER: Final = "endpoint-load-metrics"
"""Of HTTP answers."""
TRAILER: Final = "endpoint-load-metrics-bin"
"""Of gRPC calls. Some HTTP servers have it as a header, in base64."""

_FIELDS = {1: "cpu_utilization", 6: "rps_fractional", 7: "eps", 9: "application_utilization"}
"""The fields that are read. The others: mem_utilization=2, rps=3, request_cost=4, utilization=5, named_metrics=8."""
_NUMBERS = {name: number for number, name in _FIELDS.items()}
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_DOUBLE = struct.Struct("<d")


class Headers(Protocol):
    """The headers of an answer."""

    def get(self, name: str, /) -> str | None:
        """The value of one of them."""


def of_headers(headers: Headers, now: float) -> LoadReport | None:
    """The report in the headers of an HTTP answer, if there is one that can be read.

    Args:
        headers: Whose `get` takes names in lower case.
        now: When it came, in seconds of the balancer's clock.
    """
    value = headers.get(HEADER)
    if value is not None:
        return of_header(value, now)
    value = headers.get(TRAILER)
    return None if value is None else of_header("BIN " + value, now)


def of_trailers(metadata: Iterable[tuple[str, str | bytes]] | None, now: float) -> LoadReport | None:
    """The report in the trailing metadata of a gRPC call, if there is one that can be read."""
    for key, value in metadata or ():
        if key == HEADER and isinstance(value, str):
            return of_header(value, now)
        if key == TRAILER and isinstance(value, bytes):
            return of_message(value, now)
    return None


def of_header(value: str, now: float) -> LoadReport | None:
    """The report that a value of `endpoint-load-metrics` is."""
    kind, _, rest = value.strip().partition(" ")
    try:
        if kind == "JSON":
            return _of_json(rest, now)
        if kind == "BIN":
            return of_message(b64decode(rest.strip() + "==", validate=False), now)
        return _of_text(rest if kind == "TEXT" else value, now)
    except (ValueError, OverflowError, RecursionError, Base64Error):
        return None


def of_message(message: bytes, now: float) -> LoadReport | None:
    """The report that a serialised `OrcaLoadReport` is."""
    try:
        return _report(dict(_doubles(message)), now)
    except (ValueError, IndexError, struct.error):
        return None


def to_text(report: LoadReport) -> str:
    """A report as the value of `endpoint-load-metrics`."""
    return f"TEXT {','.join(f'{name}={value:.6g}' for name, value in _said(report).items())}"


def to_message(report: LoadReport) -> bytes:
    """A report as a serialised `OrcaLoadReport`."""
    return b"".join(
        bytes((_NUMBERS[name] << 3 | _FIXED64,)) + _DOUBLE.pack(value) for name, value in _said(report).items()
    )


def _said(report: LoadReport) -> dict[str, float]:
    return {"application_utilization": report.utilization, "rps_fractional": report.qps, "eps": report.eps}


def _of_text(text: str, now: float) -> LoadReport | None:
    pairs = (pair.partition("=") for pair in text.split(","))
    return _report({key.strip(): float(value) for key, _, value in pairs if key.strip() in _NUMBERS}, now)


def _of_json(text: str, now: float) -> LoadReport | None:
    found = json.loads(text)
    if not isinstance(found, dict):
        return None
    # protocol buffers have names in two spellings in JSON, and doubles also as strings
    named = {_snake(key): value for key, value in found.items()}
    numbers = {key: value for key, value in named.items() if key in _NUMBERS}
    if any(isinstance(value, bool) or not isinstance(value, (int, float, str)) for value in numbers.values()):
        return None
    return _report({key: float(value) for key, value in numbers.items()}, now)


def _snake(key: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in key)


def _report(values: Mapping[str, float], now: float) -> LoadReport | None:
    """Application utilization is better than that of the processor (gRFC A58). 0 is how a server says nothing."""
    if not all(0.0 <= value < inf for value in values.values()):
        return None
    qps = values.get("rps_fractional", 0.0)
    utilization = values.get("application_utilization", 0.0) or values.get("cpu_utilization", 0.0)
    return LoadReport(qps, utilization, values.get("eps", 0.0), now) if qps or utilization else None


def _doubles(message: bytes) -> Iterator[tuple[str, float]]:
    """The doubles of a message that are known by name. Whatever else is in it is skipped."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        field, kind = tag >> 3, tag & 7
        if not field:
            raise ValueError("field 0")
        begin = at
        if kind == _VARINT:
            _, at = _varint(message, at)
        elif kind == _FIXED64:
            at += 8
        elif kind == _FIXED32:
            at += 4
        elif kind == _LENGTH:
            length, begin = _varint(message, at)
            at = begin + length
        else:
            raise ValueError(f"wire type {kind}")
        if at > end:
            raise ValueError("cut off")
        if kind == _FIXED64 and field in _FIELDS:
            yield _FIELDS[field], _DOUBLE.unpack_from(message, begin)[0]


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number that begins at a place, and where it ends."""
    number = shift = 0
    while True:
        byte = message[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than ten bytes")
