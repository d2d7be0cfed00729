"""Channel: a `grpc.Channel` for a service instead of a server. Stubs and interceptors use it like any other.

It owns one real channel per endpoint, opened by the first call that picks it. Who gets a call is the balancer's
affair, what happens to a call is in `_methods` (blocking) and `_future` (everything else).
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

import grpc

from clientlb.arrival import SPARE_AFTER
from clientlb.call import FOREVER
from clientlb.endpoint import Endpoint
from clientlb.errors import ClosedError
from clientlb.grpc._base import KeyOf, ServiceChannel, WhereOf
from clientlb.grpc._connectivity import Callback, Watch, await_connection, state_of
from clientlb.grpc._errors import ChannelClosedError
from clientlb.grpc._later import Later
from clientlb.grpc._links import Links
from clientlb.grpc._methods import StreamStream, StreamUnary, UnaryStream, UnaryUnary
from clientlb.grpc._target import ChannelOptions
from clientlb.options import CallKey, Where
from clientlb.services import Services

_GLANCE = 0.5
"""Seconds after which a call that waits for endpoints looks whether its channel or `Services` were closed."""


class Channel(ServiceChannel, grpc.Channel):
    """A balanced channel; `channel` makes it and says what its arguments are."""

    def __init__(
        self,
        service: str,
        services: Services,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        options: ChannelOptions | None = None,
        compression: grpc.Compression | None = None,
        idempotent: bool | Collection[str] = False,
        key: CallKey | KeyOf | None = None,
        where: Where | WhereOf | None = None,
    ) -> None:
        super().__init__(service, services, credentials, options, compression, idempotent, key, where)

    def begin(self) -> None:
        """Make everything that does not survive a fork."""
        self._later = Later()
        self._retired: deque[grpc.Channel] = deque()
        self.links: Links[grpc.Channel] = Links(self._balancer, self._connect, self._retire, state_of)
        self._watch = Watch(self.links)
        self._lock = threading.Lock()
        self._paused: dict[Any, Callable[[], None] | None] = {}
        self._kept: set[Any] = set()

    def inherited(self) -> Any:
        """In a forked child: what belongs to the parent."""
        return self.links, self._watch, self._kept, self._paused, self._retired

    def closed_error(self) -> ClosedError:
        """What a call gets after `close`."""
        return ChannelClosedError("Cannot invoke RPC on closed channel!")

    def _connect(self, endpoint: Endpoint) -> grpc.Channel:
        target, credentials, options = self.arguments(endpoint)
        if credentials is None:
            return grpc.insecure_channel(target, options, self._compression)
        return grpc.secure_channel(target, credentials, options, self._compression)

    def _retire(self, channel: grpc.Channel) -> None:
        # closing waits for events of calls that just ended, so it must not happen on the thread of events
        self._retired.append(channel)
        self._later.run(0.0, self._close_retired)

    def _close_retired(self) -> None:
        with contextlib.suppress(IndexError):  # another thread was faster
            while self._retired:
                self._retired.popleft().close()

    # ------------------------------------------------------------------ methods

    def unary_unary(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,
    ) -> UnaryUnary:
        """Make what calls a method with one request and one response."""
        return UnaryUnary(self, "unary_unary", method, request_serializer, response_deserializer, _registered_method)

    def unary_stream(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,
    ) -> UnaryStream:
        """Make what calls a method with one request and a stream of responses."""
        return UnaryStream(self, "unary_stream", method, request_serializer, response_deserializer, _registered_method)

    def stream_unary(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,
    ) -> StreamUnary:
        """Make what calls a method with a stream of requests and one response."""
        return StreamUnary(self, "stream_unary", method, request_serializer, response_deserializer, _registered_method)

    def stream_stream(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,
    ) -> StreamStream:
        """Make what calls a method with streams both ways."""
        return StreamStream(
            self, "stream_stream", method, request_serializer, response_deserializer, _registered_method
        )

    # ------------------------------------------------------------------ calls that wait

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def wait(self, timeout: float) -> bool:
        """Block until there are endpoints, at most `timeout` seconds. `close` ends that soon."""
        clock = self._balancer.clock
        until = clock() + timeout
        while not self._closed and (left := until - clock()) > 0:
            if self._balancer.wait(min(left, _GLANCE)):
                return True
        return False

    # ------------------------------------------------------------------ calls that go on by themselves

    def pause(self, call: Any, resume: Callable[[], None], seconds: float, *, for_endpoints: bool) -> None:
        """Call `resume` after so many seconds, or as soon as there are endpoints."""
        with self._lock:
            self._paused[call] = resume if for_endpoints else None
        if self._closed:
            call.cancel()
            return
        if seconds < FOREVER:
            self._later.run(seconds, resume)
        if for_endpoints:
            if self._balancer.nodes:  # they came meanwhile
                resume()
            else:
                self._later.run(SPARE_AFTER, functools.partial(self._glance, call))

    def _glance(self, call: Any) -> None:
        """A list of an earlier time has to do by now. And nobody tells when the `Services` are closed."""
        with self._lock:
            resume = self._paused.get(call)
        if resume is None:
            return
        if self._balancer.wait(0.0):
            resume()
        else:
            self._later.run(_GLANCE, functools.partial(self._glance, call))

    def after(self, seconds: float, function: Callable[[], None]) -> None:
        """Call a function after so many seconds."""
        self._later.run(seconds, function)

    def forget_pause(self, call: Any) -> None:
        """The pause of a call is over."""
        with self._lock:
            self._paused.pop(call, None)

    def keep(self, call: Any) -> None:
        """Keep a call alive until it ends."""
        with self._lock:
            self._kept.add(call)

    def forget(self, call: Any) -> None:
        """A call has ended."""
        with self._lock:
            self._kept.discard(call)
            self._paused.pop(call, None)

    def tidy(self) -> None:
        """Called at the end of every call: was it the last one of an endpoint that has left?"""
        if self.links.leaving:
            self.links.tidy()

    def endpoints_changed(self) -> None:
        """Discovery has delivered another list."""
        with self._lock:
            waiting = [resume for resume in self._paused.values() if resume is not None]
        for resume in waiting:
            self._later.run(0.0, resume)  # not here: this is the thread of the registry
        if self._watch.active:
            if self._watch.connecting:
                self.links.open_all()
            self._watch.look()
        self.links.tidy()

    # ------------------------------------------------------------------ connectivity

    def ejected(self, endpoint: Endpoint) -> None:
        """An endpoint has failed too often. If that is because it cannot be connected to, wait for the connection."""
        for node, link in self.links.of(endpoint):
            await_connection(link, self._later, functools.partial(self._balancer.reachable, node))

    def subscribe(self, callback: Callback, try_to_connect: bool | None = False) -> None:
        """Tell `callback` the connectivity of the service, now and at every change.

        READY means that one of its endpoints at least is connected. A connection is known of an endpoint only after the
        first call to it; `try_to_connect` connects to all of them.
        """
        if try_to_connect:
            self.links.open_all()
        self._watch.subscribe(callback, connect=bool(try_to_connect))

    def unsubscribe(self, callback: Callback) -> None:
        """Tell it nothing more."""
        self._watch.unsubscribe(callback)

    # ------------------------------------------------------------------ life

    def close(self) -> None:
        """Close every connection; running calls end as CANCELLED. Idempotent. The `Services` stay open."""
        if not self.stop_listening():
            return
        with self._lock:
            paused = list(self._paused)
        for call in paused:
            call.cancel()
        self._later.close()
        self._watch.close()
        for channel in self.links.take_all():
            channel.close()
        self._close_retired()

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
