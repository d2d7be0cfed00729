"""One real channel per endpoint. It knows nothing of calls: sync and aio channels use it alike.

An endpoint's channel is opened by the first call that picks it, and stays. Connecting goes on in the background: while
it does, calls go to endpoints that are connected, if there are some. With the first channel of a service a few more are
opened, so that there is one, and with every call that is moved, one more.

When the endpoint has left the service its channel is closed as soon as its last call has ended, so no running call is
ever cancelled by a change of the list.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import grpc

from clientlb.balancer import Balancer
from clientlb.endpoint import Endpoint
from clientlb.errors import ClosedError
from clientlb.grpc._errors import ChannelClosedError
from clientlb.health.breaker import State
from clientlb.node import Node
from clientlb.outcome import Outcome
from clientlb.pick import Pick

_IGNORED = Outcome.IGNORED
_READY = grpc.ChannelConnectivity.READY
_IDLE = grpc.ChannelConnectivity.IDLE
_CONNECTING = grpc.ChannelConnectivity.CONNECTING

_WARM = 3
_MANY = 500
"""Endpoints from which on a call connects where it was picked to: looking for another one would cost more than that."""
PATIENCE = 0.25
"""Seconds that a call waits for a connection while others are there: Happy Eyeballs (RFC 8305) waits as long."""

Channel = TypeVar("Channel")


class Link(Generic[Channel]):
    """The channel to one endpoint.

    Attributes:
        channel: The channel.
        methods: What calls a method over it, by a weak reference to the balanced method; empty while the channel is not
            known to be connected. To be read, not changed.
        awaited: Somebody waits until it is connected again.
    """

    __slots__ = ("__weakref__", "_made", "awaited", "channel", "methods")

    def __init__(self, channel: Channel) -> None:
        self.channel: Channel = channel
        self._made: dict[weakref.ref[Any], Any] = {}
        self.methods: dict[weakref.ref[Any], Any] = {}
        self.awaited: bool = False

    def function(self, method: weakref.ref[Any], make: Callable[[], Any], *, connected: bool) -> Any:
        """What calls a method. It is kept as long as that method is in use."""
        function = self._made.get(method)
        if function is None:
            function = make()
            # replaced, not changed, since other threads add as well: what one loses to another is made again
            known = {other: function for other, function in self._made.items() if other() is not None}
            self._made = {**known, method: function}
        self.methods = self._made if connected else {}
        return function


class Links(dict[Node, Link[Channel]]):
    """The channels to the endpoints of one service, by the node that was picked. A missing one is opened.

    Args:
        balancer: Says who is still there.
        connect: Opens a channel.
        dispose: Closes a channel that has no calls.
        state_of: Gives the connectivity of a channel, which is asked to connect; None if it has none.

    Attributes:
        balancer: The same.
        leaving: An endpoint has left and its channel waits for its last call.
    """

    # CPython 3.11 is quick with the attributes of a subclass of dict only if they are slots
    __slots__ = ("__weakref__", "_closed", "_connect", "_dispose", "_lock", "_state_of", "balancer", "leaving")

    closed_error: type[ClosedError] = ChannelClosedError
    """What a call gets that comes too late."""

    def __init__(
        self,
        balancer: Balancer,
        connect: Callable[[Endpoint], Channel],
        dispose: Callable[[Channel], object],
        state_of: Callable[[Channel], grpc.ChannelConnectivity | None],
    ) -> None:
        self.leaving: bool = False
        self.balancer: Balancer = balancer
        self._connect = connect
        self._dispose = dispose
        self._state_of = state_of
        self._lock = threading.Lock()
        self._closed = False

    def __missing__(self, node: Node) -> Link[Channel]:
        """Open the channel to an endpoint.

        Raises:
            ChannelClosedError: After `take_all`.
        """
        with self._lock:
            if self._closed:
                raise self.closed_error("the channel was closed meanwhile")
            link = self.get(node)
            if link is None:
                first = not self
                link = self[node] = Link(self._connect(node.endpoint))
            else:
                first = False
        if first:
            self._warm([other for other in self.balancer.nodes if other is not node], _WARM)
        return link

    # ------------------------------------------------------------------ connecting in the background

    def _warm(self, nodes: Sequence[Node], count: int) -> None:
        """Connect to a few of these, for who is called may be one that cannot be connected to."""
        for node in self.balancer.rng.sample(nodes, min(count, len(nodes))):
            with contextlib.suppress(Exception):  # whoever calls that endpoint will see it
                self._state_of(self[node].channel)

    def is_connected(self, link: Link[Channel]) -> bool:
        """Whether a call would be sent at once. Starts to connect if it would not."""
        return bool(link.methods) or self._state_of(link.channel) in (_READY, None)

    def is_stuck(self, node: Node) -> bool:
        """Whether an endpoint is still not connected while another one is."""
        link = self.get(node)
        if link is None or self._state_of(link.channel) in (_READY, None):
            return False
        return any(other is not link and self.is_connected(other) for other in list(self.values()))

    def settle(self, pick: Pick, repeatable: bool) -> Pick:
        """Take another pick if this one's endpoint is still connecting and others are connected.

        An endpoint that cannot be connected to is left to the call, which fails at once and goes elsewhere: that is
        evidence. So is a probe.
        """
        node = pick.node
        try:
            link = self[node]
        except BaseException:
            pick.release(_IGNORED)
            raise
        if link.methods or len(self.balancer.nodes) > _MANY or node.breaker.state is not State.CLOSED:
            return pick
        if self._state_of(link.channel) not in (_IDLE, _CONNECTING):
            return pick
        connected = {other for other, link in list(self.items()) if self.is_connected(link)}
        nodes = self.balancer.nodes
        if not any(other in connected for other in nodes):
            return pick
        # Or those that are connected would share all calls: one that is moved takes the turn of who comes next.
        self._warm([other for other in nodes if other not in self], 1)
        another = self.balancer.try_pick([other for other in nodes if other not in connected], repeatable)
        if another is None or another.node not in connected:
            if another is not None:
                another.release(_IGNORED)
            return pick
        pick.release(_IGNORED)
        return another

    def doubt(self, node: Node) -> None:
        """A call has failed as if there were no connection: look at it again before the next one."""
        link = self.get(node)
        if link is not None:
            link.methods = {}

    # ------------------------------------------------------------------ who is there

    @property
    def channels(self) -> list[Channel]:
        """Every open channel."""
        with self._lock:
            return [link.channel for link in self.values()]

    @property
    def current(self) -> list[Channel]:
        """The open channels to endpoints that have not left."""
        nodes = frozenset(self.balancer.nodes)
        with self._lock:
            return [link.channel for node, link in self.items() if node in nodes]

    def of(self, endpoint: Endpoint) -> list[tuple[Node, Link[Channel]]]:
        """The open channels to one endpoint: two if it left, came back, and has calls of both times."""
        with self._lock:
            return [(node, link) for node, link in self.items() if node.endpoint.key == endpoint.key]

    def open_all(self) -> list[Channel]:
        """Open a channel to every endpoint that is known; returns them."""
        return [self[node].channel for node in self.balancer.nodes]

    def tidy(self) -> None:
        """Close the channels of endpoints that have left and have no calls any more."""
        # In this order: whoever is not in `nodes` gets no new call, so none in flight means none ever again.
        nodes = frozenset(self.balancer.nodes)
        with self._lock:
            leavers = [node for node in self if node not in nodes]
            idle = [self.pop(node) for node in leavers if node.in_flight == 0]
            self.leaving = len(idle) < len(leavers)
        for link in idle:
            self._dispose(link.channel)

    def take_all(self) -> list[Channel]:
        """Give all channels away, to be closed by the caller, and open no more."""
        with self._lock:
            self._closed = True
            channels = [link.channel for link in self.values()]
            self.clear()
            self.leaving = False
        return channels
