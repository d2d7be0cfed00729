"""Channel: a `grpc.Channel` for a service instead of a server. Stubs and interceptors use it like any other.

It owns one real channel per endpoint, opened by the first call that goes there. Who gets a call is the balancer's affair,
what happens to a call is in `_methods` (blocking) and `_future` (everything else).
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Collection
from typing import Any

import grpc

from clientlb import events
from clientlb.balancer import Balancer
from clientlb.endpoint import Endpoint
from clientlb.grpc._connectivity import Callback, Watch
from clientlb.grpc._errors import ChannelClosedError
from clientlb.grpc._later import Later
from clientlb.grpc._links import Links
from clientlb.grpc._methods import StreamStream, StreamUnary, UnaryStream, UnaryUnary
from clientlb.grpc._target import ChannelOptions, credentials_of, options_of, target_of
from clientlb.grpc._verdict import Idempotence
from clientlb.services import Services


class Channel(grpc.Channel):
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
    ) -> None:
        self.service = service
        self.idempotence = Idempotence(idempotent)
        self._services = services
        self._credentials = credentials
        self._options = options
        self._compression = compression
        self._closed = False
        self._balancer = services[service]
        self._begin()
        self._hook = _hook(self, services)
        services.add_hook(self._hook)
        _survive_forks(self)

    def _begin(self) -> None:
        """Make everything that does not survive a fork."""
        self.links: Links[grpc.Channel] = Links(self._balancer, self._connect, lambda channel: channel.close())
        self._watch = Watch()
        self._later = Later()
        self._lock = threading.Lock()
        self._paused: dict[Any, Callable[[], None] | None] = {}
        self._kept: set[Any] = set()

    def balancer(self) -> Balancer:
        """Whoever picks the endpoint of the next call.

        Raises:
            ClosedError: This channel or its `Services` is closed.
        """
        if self._closed:
            raise ChannelClosedError("Cannot invoke RPC on closed channel!")
        return self._services[self.service]

    def _connect(self, endpoint: Endpoint) -> grpc.Channel:
        credentials = credentials_of(endpoint, self._credentials)
        options = options_of(self.service, self._options, secure=credentials is not None)
        target = target_of(endpoint)
        if credentials is None:
            made = grpc.insecure_channel(target, options, self._compression)
        else:
            made = grpc.secure_channel(target, credentials, options, self._compression)
        if self._watch.active:
            self._watch.watch([made])
        return made

    # ------------------------------------------------------------------ methods

    def unary_unary(  # type: ignore[override]
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,
    ) -> UnaryUnary:
        """Make what calls a method with one request and one response."""
        return UnaryUnary(
            self, "unary_unary", method, request_serializer, response_deserializer, _registered_method
        )

    def unary_stream(  # type: ignore[override]
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,
    ) -> UnaryStream:
        """Make what calls a method with one request and a stream of responses."""
        return UnaryStream(
            self, "unary_stream", method, request_serializer, response_deserializer, _registered_method
        )

    def stream_unary(  # type: ignore[override]
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,
    ) -> StreamUnary:
        """Make what calls a method with a stream of requests and one response."""
        return StreamUnary(
            self, "stream_unary", method, request_serializer, response_deserializer, _registered_method
        )

    def stream_stream(  # type: ignore[override]
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

    # ------------------------------------------------------------------ calls that go on by themselves

    def pause(self, call: Any, resume: Callable[[], None], seconds: float, *, for_endpoints: bool) -> None:
        """Call `resume` after so many seconds, or as soon as there are endpoints."""
        with self._lock:
            self._paused[call] = resume if for_endpoints else None
        self._later.run(seconds, resume)
        if self._closed:
            call.cancel()
        elif for_endpoints and self._balancer.nodes:  # they came meanwhile
            resume()

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
            self._watch.watch_only(self.links.current)
        self.links.tidy()

    # ------------------------------------------------------------------ connectivity

    def subscribe(self, callback: Callback, try_to_connect: bool | None = False) -> None:
        """Tell `callback` the connectivity of the service, now and at every change.

        READY means that one of its endpoints at least is connected. A connection is known of an endpoint only after the
        first call to it; `try_to_connect` connects to all of them, at the price of a thread each.
        """
        channels = self.links.open_all() if try_to_connect else self.links.current
        self._watch.subscribe(callback, channels, connect=bool(try_to_connect))

    def unsubscribe(self, callback: Callback) -> None:
        """Tell it nothing more."""
        self._watch.unsubscribe(callback)

    # ------------------------------------------------------------------ life

    def close(self) -> None:
        """Close every connection; running calls end as CANCELLED. Idempotent. The `Services` stay open."""
        if self._closed:
            return
        self._closed = True
        self._services.remove_hook(self._hook)
        with self._lock:
            paused = list(self._paused)
        for call in paused:
            call.cancel()
        self._later.close()
        self._watch.close()
        for channel in self.links.take_all():
            channel.close()

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<clientlb.grpc.Channel {self.service!r}{' closed' if self._closed else ''}>"

    def after_fork(self) -> None:
        """In a forked child: the parent's channels are of no use here, and must not be closed here either."""
        _inherited.append((self.links, self._kept, self._paused))
        self._begin()


def _hook(channel: Channel, services: Services) -> events.EventHook:
    """Tell a channel about changes, as long as somebody else holds it."""
    reference = weakref.ref(channel)
    service = channel.service

    def hook(event: events.Event) -> None:
        if type(event) is events.EndpointsChanged and event.service == service:
            found = reference()
            if found is None:
                services.remove_hook(hook)
            else:
                found.endpoints_changed()

    return hook


_alive: weakref.WeakSet[Channel] = weakref.WeakSet()
_inherited: list[Any] = []
_fork_hook_set = False


def _survive_forks(channel: Channel) -> None:
    global _fork_hook_set
    _alive.add(channel)
    if not _fork_hook_set:
        _fork_hook_set = True
        os.register_at_fork(after_in_child=_renew_all)


def _renew_all() -> None:
    for channel in list(_alive):
        channel.after_fork()
