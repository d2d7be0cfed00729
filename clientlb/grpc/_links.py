"""One real channel per endpoint. It knows nothing of calls: sync and aio channels use it alike.

An endpoint's channel is opened by its first call and stays. When the endpoint has left the service its channel is
closed as soon as its last call has ended, so no running call is ever cancelled by a change of the list.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from clientlb.balancer import Balancer
from clientlb.endpoint import Endpoint
from clientlb.errors import ClosedError
from clientlb.node import Node

Channel = TypeVar("Channel")


class Link(Generic[Channel]):
    """The channel to one endpoint.

    Attributes:
        channel: The channel.
        methods: What calls a method over it, by a weak reference to the balanced method. To be read, not changed.
        awaited: Somebody waits until it is connected again.
    """

    __slots__ = ("__weakref__", "awaited", "channel", "methods")

    def __init__(self, channel: Channel) -> None:
        self.channel: Channel = channel
        self.methods: dict[weakref.ref[Any], Any] = {}
        self.awaited: bool = False

    def add(self, method: weakref.ref[Any], function: Any) -> None:
        """Keep what calls a method, as long as that method is in use."""
        # replaced, not changed, since other threads add as well: what one loses to another is made again
        known = {other: function for other, function in self.methods.items() if other() is not None}
        self.methods = {**known, method: function}


class Links(dict[Node, Link[Channel]]):
    """The channels to the endpoints of one service, by the node that was picked. A missing one is opened.

    Args:
        balancer: Says who is still there.
        connect: Opens a channel.
        dispose: Closes a channel that has no calls.

    Attributes:
        balancer: The same.
        leaving: An endpoint has left and its channel waits for its last call.
    """

    def __init__(
        self, balancer: Balancer, connect: Callable[[Endpoint], Channel], dispose: Callable[[Channel], object]
    ) -> None:
        self.leaving: bool = False
        self.balancer: Balancer = balancer
        self._connect = connect
        self._dispose = dispose
        self._lock = threading.Lock()
        self._closed = False

    def __missing__(self, node: Node) -> Link[Channel]:
        """Open the channel to an endpoint.

        Raises:
            ClosedError: After `take_all`.
        """
        with self._lock:
            if self._closed:
                raise ClosedError("the channel was closed meanwhile")
            link = self.get(node)
            if link is None:
                link = self[node] = Link(self._connect(node.endpoint))
            return link

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
