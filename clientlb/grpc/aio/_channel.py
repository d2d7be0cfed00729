"""Channel: a `grpc.aio.Channel` for a service instead of a server. Stubs use it like any other.

It owns one real channel per endpoint and event loop, opened by the first call that goes there. Who gets a call is the
balancer's affair, what happens to a call is in `_call`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any

import grpc
import grpc.aio

from clientlb.aio import cancelled
from clientlb.balancer import Balancer
from clientlb.endpoint import Endpoint
from clientlb.errors import ClosedError, ConfigurationError
from clientlb.grpc._base import KeyOf, ServiceChannel, WhereOf
from clientlb.grpc._connectivity import State, aggregate
from clientlb.grpc._errors import AioChannelClosedError
from clientlb.grpc._links import Link, Links
from clientlb.grpc._target import ChannelOptions
from clientlb.grpc.aio._methods import StreamStream, StreamUnary, UnaryStream, UnaryUnary
from clientlb.node import Node
from clientlb.options import CallKey, Where
from clientlb.services import Services


class LoopLinks(Links[grpc.aio.Channel]):
    """The channels of one event loop, with what else belongs to that loop.

    Args:
        loop: The event loop.
        balancer: Says who is still there.
        connect: Opens a channel.
        intercepted: The channels have interceptors.

    Attributes:
        intercepted: The same.
        paused: Calls that run no attempt at the moment.
        fresh: Calls for one response that began in this turn of the event loop.
        running: Calls that go on by themselves; of streams, what is to be done at the end of their attempts.
    """

    __slots__ = ("_awaiting", "_tasks", "changed", "fresh", "intercepted", "loop", "paused", "running")

    closed_error: type[ClosedError] = AioChannelClosedError

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        balancer: Balancer,
        connect: Callable[[Endpoint], grpc.aio.Channel],
        *,
        intercepted: bool,
    ) -> None:
        super().__init__(balancer, connect, lambda channel: self.spawn(channel.close()), _state_of)
        self.loop: asyncio.AbstractEventLoop = loop
        self.paused: set[Any] = set()
        self.intercepted: bool = intercepted
        self.fresh: list[Any] = []
        self.running: set[Any] = set()
        self.changed: asyncio.Event = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._awaiting: set[asyncio.Task[None]] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something that goes on whether or not somebody awaits it."""
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def look_at_fresh(self) -> None:
        """A turn later: calls that nobody awaits have to be listened to."""
        fresh = self.fresh[:]
        self.fresh.clear()
        for call in fresh:
            call.listen_unless_awaited()

    def looking(self, serializer: Callable[[Any], bytes] | None) -> Callable[[Any], bytes]:
        """A serializer that looks at fresh calls as well.

        grpc.aio takes the request of a call on the next turn of the event loop, in a task of its own. An interceptor
        may answer instead, and a task factory may run that task at once: then `call_soon` has to do it.
        """
        fresh = self.fresh

        def serialize(request: Any) -> Any:
            if fresh:
                self.look_at_fresh()
            return request if serializer is None else serializer(request)

        return serialize

    def abandon(self) -> None:
        """The event loop is closed, so nobody will hear of the end of what runs."""
        for call in [*self.fresh, *self.running]:
            call.abandon()
        self.fresh.clear()
        self.running.clear()
        self.take_all()

    def endpoints_changed(self) -> None:
        """Discovery has delivered another list. Called on the loop."""
        self.tidy()
        self.news()

    def news(self) -> None:
        """Wake who waits for a change of the connectivity."""
        self.changed.set()
        self.changed = asyncio.Event()

    def await_connection(self, endpoint: Endpoint) -> None:
        """Once the channel to an endpoint that cannot be connected to is connected, say so. Called on the loop."""
        for node, link in self.of(endpoint):
            if not link.awaited:
                link.awaited = True
                task = self.spawn(self._await_connection(node, link))
                self._awaiting.add(task)
                task.add_done_callback(self._awaiting.discard)

    async def _await_connection(self, node: Node, link: Link[grpc.aio.Channel]) -> None:
        failing = False
        with contextlib.suppress(Exception):  # it was closed meanwhile
            while (state := link.channel.get_state(True)) not in (State.READY, State.SHUTDOWN):
                failing = failing or state is State.TRANSIENT_FAILURE
                await link.channel.wait_for_state_change(state)
            if failing and state is State.READY:  # one that was connected all the time has other troubles
                self.balancer.reachable(node)
        link.awaited = False

    async def close(self, grace: float | None) -> None:
        """Close every channel, after `grace` seconds for the calls that go on or wait."""
        for task in self._awaiting:
            task.cancel()
        if grace is not None and grace > 0 and self.paused:
            grace = await self._end_of_paused(grace)
        for call in list(self.paused):
            call.cancel()
        await asyncio.gather(*(channel.close(grace) for channel in self.take_all()))
        self.news()
        others = self._tasks - {asyncio.current_task()}
        if others:
            await asyncio.wait(others)

    async def _end_of_paused(self, grace: float) -> float:
        """Wait until the calls that run no attempt just now have ended; returns how much of `grace` is left."""
        over_at = self.loop.time() + grace
        ends = [asyncio.ensure_future(_end_of(call)) for call in self.paused]
        _, late = await asyncio.wait(ends, timeout=grace)
        if late:
            await cancelled(late)
        return max(0.0, over_at - self.loop.time())


class Channel(ServiceChannel, grpc.aio.Channel):
    """A balanced channel; `channel` makes it and says what its arguments are."""

    def __init__(
        self,
        service: str,
        services: Services,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        options: ChannelOptions | None = None,
        compression: grpc.Compression | None = None,
        interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
        idempotent: bool | Collection[str] = False,
        key: CallKey | KeyOf | None = None,
        where: Where | WhereOf | None = None,
    ) -> None:
        self._interceptors = list(interceptors)
        for each in self._interceptors:
            if not isinstance(each, grpc.aio.ClientInterceptor):
                raise ConfigurationError(
                    f"service {service!r}: interceptors has {each!r}; give client interceptors of grpc.aio"
                )
        super().__init__(service, services, credentials, options, compression, idempotent, key, where)

    def begin(self) -> None:
        """Make everything that does not survive a fork."""
        self._lock = threading.Lock()
        self._last_used: LoopLinks | None = None
        self._by_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopLinks] = weakref.WeakKeyDictionary()

    def inherited(self) -> Any:
        """In a forked child: what belongs to the parent."""
        return list(self._by_loop.items())

    def closed_error(self) -> ClosedError:
        """What a call gets after `close`."""
        return AioChannelClosedError("Channel is closed.")

    def links(self) -> LoopLinks:
        """The channels of the running event loop."""
        loop = asyncio.get_running_loop()
        links = self._last_used
        if links is not None and links.loop is loop:
            return links
        with self._lock:
            links = self._by_loop.get(loop)
            if links is None:
                closed = [self._by_loop.pop(other) for other in list(self._by_loop) if other.is_closed()]
                links = self._by_loop[loop] = LoopLinks(
                    loop, self._balancer, self._connect, intercepted=bool(self._interceptors)
                )
            else:
                closed = []
            self._last_used = links
        for other in closed:
            other.abandon()
        return links

    def _connect(self, endpoint: Endpoint) -> grpc.aio.Channel:
        target, credentials, options = self.arguments(endpoint)
        if credentials is None:
            return grpc.aio.insecure_channel(target, options, self._compression, self._interceptors)
        return grpc.aio.secure_channel(target, credentials, options, self._compression, self._interceptors)

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

    # ------------------------------------------------------------------ connectivity

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """The connectivity of the service: READY means that one of its endpoints at least is connected.

        A connection is known of an endpoint only after the first call to it; `try_to_connect` connects to all of them.
        """
        if self._closed:
            return State.SHUTDOWN
        links = self.links()
        channels = links.open_all() if try_to_connect else links.current
        return aggregate(channel.get_state(try_to_connect) for channel in channels)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Wait until the connectivity differs from `last_observed_state`."""
        await self._wait_while(lambda state: state is last_observed_state)

    async def channel_ready(self) -> None:
        """Wait until a call could be sent at once. Connects to every endpoint, also to those that come meanwhile.

        Raises:
            ClosedError: The channel is closed.
        """
        await self._wait_while(lambda state: state not in (State.READY, State.SHUTDOWN), connect=True)
        if self._closed:
            raise self.closed_error()

    async def _wait_while(self, goes_on: Callable[[State], bool], *, connect: bool = False) -> None:
        while not self._closed:
            links = self.links()
            # each state is read once: a change between two looks would be waited for in vain
            states = {
                channel: channel.get_state(connect) for channel in (links.open_all() if connect else links.current)
            }
            if not goes_on(aggregate(states.values())):
                return
            changes: list[Coroutine[Any, Any, Any]] = [links.changed.wait()]
            changes += [channel.wait_for_state_change(state) for channel, state in states.items()]
            tasks = [asyncio.ensure_future(change) for change in changes]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    # ------------------------------------------------------------------ life

    async def close(self, grace: float | None = None) -> None:
        """Close every connection. Idempotent. The `Services` stay open.

        Args:
            grace: Seconds for which calls may go on, those that wait for endpoints among them; then, or at once when
                None, they end as cancelled.
        """
        if not self.stop_listening():
            return
        here = asyncio.get_running_loop()
        with self._lock:
            everywhere = list(self._by_loop.values())
        for links in everywhere:
            if links.loop is not here:
                _on_loop(links, lambda links=links: links.spawn(links.close(grace)))  # type: ignore[misc]
        for links in everywhere:
            if links.loop is here:
                await links.close(grace)

    async def __aenter__(self) -> Channel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def endpoints_changed(self) -> None:
        """Discovery has delivered another list."""
        with self._lock:
            everywhere = list(self._by_loop.values())
        for links in everywhere:
            _on_loop(links, links.endpoints_changed)

    def ejected(self, endpoint: Endpoint) -> None:
        """An endpoint has failed too often. If that is because it cannot be connected to, wait for the connection."""
        with self._lock:
            everywhere = list(self._by_loop.values())
        for links in everywhere:
            _on_loop(links, functools.partial(links.await_connection, endpoint))


async def _end_of(call: grpc.aio.Call) -> None:
    with contextlib.suppress(Exception):  # whoever made the call will see it
        await call.code()


def _state_of(channel: grpc.aio.Channel) -> State | None:
    """The connectivity of a channel, which is asked to connect; None if it is closed."""
    try:
        return channel.get_state(True)
    except grpc.aio.UsageError:
        return None


def _on_loop(links: LoopLinks, function: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # a closed loop has taken its calls with it
        links.loop.call_soon_threadsafe(function)
