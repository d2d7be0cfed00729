"""Listens to the standard health service of gRPC servers by `Watch`, as gRFC A17 says; or asks it by `Check`.

grpcio lets nobody hear from a stream without a thread that waits for it, and its `aio` disturbs other event loops of
the process (grpc #25364). So each stream has a thread that hands on what it reads; all else is on the checker's loop.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

try:
    import grpc
except ImportError as _error:
    raise ImportError("this needs grpcio: pip install 'clientlb[grpc]'", name=_error.name) from _error

from clientlb.balancer import Balancer
from clientlb.check_options import GrpcCheck
from clientlb.endpoint import Endpoint
from clientlb.health.checkup import Finding
from clientlb.node import Node

_log = logging.getLogger("clientlb.checking")

_WATCH, _CHECK = "/grpc.health.v1.Health/Watch", "/grpc.health.v1.Health/Check"
_SERVING = 1
_STATUSES = {0: "UNKNOWN", _SERVING: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}
_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 330_000),  # servers of gRPC refuse pings that come more often than every 5 minutes
)
_NO_SERVICE = "%s: %s has no health service, so it passes for healthy"
_FIRST_PAUSE = 1.0
"""Seconds before a broken stream is opened anew; twice as many each time that it does not answer (gRPC's backoff)."""


async def listen(check: GrpcCheck, balancer: Balancer, node: Node, rng: random.Random) -> None:
    """Listen to an endpoint until this is cancelled, or until it turns out to have no health service."""
    channel = _channel(check, balancer.service, node.endpoint)
    method: Any = channel.unary_stream(_WATCH)
    silent = 0
    try:
        while True:
            began = balancer.clock()
            answered, ended = await _one_stream(check, balancer, node, method)
            if ended is not None and ended.code() is grpc.StatusCode.UNIMPLEMENTED:
                _log.warning(_NO_SERVICE, balancer.service, node.endpoint)
                balancer.checked(node, Finding(True, began, final=True))
                return
            silent = 0 if answered else silent + 1
            pause = min(check.interval, _FIRST_PAUSE * 2.0 ** min(silent, 30)) * rng.uniform(0.5, 1.0)
            if not answered:
                reason = f"no answer within {check.timeout:g} s" if ended is None else _words_of(ended)
                balancer.checked(node, Finding(False, began, reason, next_at=balancer.clock() + pause))
            await asyncio.sleep(pause)
    finally:
        channel.close()


async def _one_stream(check: GrpcCheck, balancer: Balancer, node: Node, method: Any) -> tuple[bool, Any]:
    """Hand on what one stream says. Returns whether it said anything, and the call, if that has ended."""
    stream = _Stream(method(_request(check.name)))
    answered = False
    try:
        while True:
            try:
                async with asyncio.timeout(None if answered else check.timeout):
                    heard = await stream.heard.get()
            except TimeoutError:
                return False, None
            if heard is None:
                return answered, stream.call
            answered = True
            status = _status_in(heard)
            balancer.checked(node, Finding(status == _SERVING, balancer.clock(), _said(status), final=True))
    finally:
        await stream.end()


class _Stream:
    """A running call, and the thread that reads from it."""

    def __init__(self, call: Any) -> None:
        self.heard: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.call = call
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._read, name="clientlb-check-stream", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for message in self.call:
                self._loop.call_soon_threadsafe(self.heard.put_nowait, message)
        except grpc.RpcError:
            pass  # the call says so, too; a watch should not end with OK either
        self._loop.call_soon_threadsafe(self.heard.put_nowait, None)
        self._loop.call_soon_threadsafe(self._ended.set)  # nothing is done after this, so the loop may be closed

    async def end(self) -> None:
        """Cancel the call and wait for the thread, also when this very task is being cancelled."""
        self.call.cancel()
        await self._ended.wait()
        self._thread.join()  # it has nothing left to do


@asynccontextmanager
async def questions(check: GrpcCheck, service: str, endpoint: Endpoint) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """A connection to an endpoint, over which its health may be asked for again and again."""
    loop = asyncio.get_running_loop()
    channel = _channel(check, service, endpoint)
    method: Any = channel.unary_unary(_CHECK)
    unimplemented = False

    async def ask_once() -> None:
        nonlocal unimplemented
        if unimplemented:
            return
        answered = asyncio.Event()
        call = method.future(_request(check.name), timeout=check.timeout)
        call.add_done_callback(lambda _: _call_soon(loop, answered.set))
        try:
            await answered.wait()
        finally:
            call.cancel()
        if call.code() is grpc.StatusCode.UNIMPLEMENTED:
            _log.warning(_NO_SERVICE, service, endpoint)
            unimplemented = True
        elif call.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise TimeoutError
        elif call.code() is not grpc.StatusCode.OK:
            raise ValueError(_words_of(call))
        elif (status := _status_in(call.result())) != _SERVING:
            raise ValueError(_said(status))

    try:
        yield ask_once
    finally:
        channel.close()


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    """Have a function called on the loop, from a thread of gRPC."""
    try:
        loop.call_soon_threadsafe(function)
    except RuntimeError:
        pass  # it was closed meanwhile, so nobody waits


def _said(status: int) -> str:
    return f"it says {_STATUSES.get(status, status)}"


def _words_of(ended: Any) -> str:
    details = " ".join((ended.details() or "").split())
    return f"{ended.code().name}{': ' if details else ''}{details[:200]}"


def _channel(check: GrpcCheck, service: str, endpoint: Endpoint) -> grpc.Channel:
    name = check.server_name or service
    options: list[tuple[str, Any]] = [*_OPTIONS, ("grpc.default_authority", name)]
    credentials = check.credentials
    if credentials is None and endpoint.secure:
        credentials = grpc.ssl_channel_credentials()
    target = dataclasses.replace(endpoint, port=check.port or endpoint.port).address
    if credentials is None:
        return grpc.insecure_channel(target, options)
    return grpc.secure_channel(target, credentials, [*options, ("grpc.ssl_target_name_override", name)])


def _request(name: str) -> bytes:
    """A `HealthCheckRequest`, whose field 1 is the name."""
    text = name.encode()
    if not text:
        return b""
    size, rest = bytearray(), len(text)
    while rest >= 0x80:
        size.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([0x0A, *size, rest]) + text


def _status_in(answer: bytes) -> int:
    """The status in a `HealthCheckResponse`, whose field 1 it is; 0 is not sent."""
    return answer[1] if len(answer) >= 2 and answer[0] == 0x08 else 0
