"""The connectivity of a balanced channel: one state made of the states of its endpoints' channels."""

from __future__ import annotations

import functools
import logging
import threading
import weakref
from collections.abc import Callable, Iterable

import grpc

from clientlb.grpc._later import Later
from clientlb.grpc._links import Link, Links

State = grpc.ChannelConnectivity
Callback = Callable[[State], None]

_log = logging.getLogger("clientlb.grpc")

# after gRPC's round_robin: the first of these that any endpoint is in
_IN_THIS_ORDER = (State.READY, State.CONNECTING, State.IDLE, State.TRANSIENT_FAILURE)

_BY_NUMBER = {state.value[0]: state for state in State}
_PERIOD = 0.25
_SOON, _SELDOM = 0.01, 0.1
"""Seconds between two looks for subscribers: after a change, and after many looks without one."""


def aggregate(states: Iterable[State]) -> State:
    """READY if a call could be sent at once to somebody, and so on; IDLE without any endpoint."""
    seen = frozenset(states)
    return next((state for state in _IN_THIS_ORDER if state in seen), State.IDLE)


def await_connection(link: Link[grpc.Channel], later: Later, connected: Callable[[], object]) -> None:
    """Call `connected` once a channel that cannot connect has connected. gRPC goes on trying by itself.

    A channel that is connected has other troubles, and nothing is called.
    """
    if link.awaited:
        return
    link.awaited = True
    reference = weakref.ref(link)

    def look(failing: bool) -> None:
        link = reference()
        if link is None:
            return
        state = state_of(link.channel)
        if state in (State.IDLE, State.CONNECTING, State.TRANSIENT_FAILURE):
            later.run(_PERIOD, functools.partial(look, failing or state is State.TRANSIENT_FAILURE))
            return
        link.awaited = False
        if failing and state is State.READY:
            connected()

    look(False)


def state_of(channel: grpc.Channel, connect: bool = True) -> State | None:
    """The connectivity of a sync channel, which is asked to connect. None if it is closed, or not gRPC's own.

    In public, gRPC tells it to subscribers only. Each channel with one costs a thread, which dies with a traceback on
    stderr when the channel is closed too soon.
    """
    try:
        return _BY_NUMBER.get(channel._channel.check_connectivity_state(connect))  # type: ignore[attr-defined]
    except (AttributeError, ValueError):
        return None


class Watch:
    """Tells subscribers of a sync channel about its connectivity. It costs nothing while there are none.

    One thread looks at all channels: see `state_of` why it does not subscribe to them.
    """

    def __init__(self, links: Links[grpc.Channel]) -> None:
        self._links = weakref.ref(links)  # a channel that nobody holds is not kept by its subscribers
        self._later = Later()
        self._lock = threading.Lock()
        self._told: dict[Callback, State | None] = {}
        self._connect = False
        self._round = 0
        self._telling = False
        self._closed = False

    @property
    def active(self) -> bool:
        """Somebody has subscribed."""
        return bool(self._told)

    @property
    def connecting(self) -> bool:
        """Somebody wants connections to be opened."""
        return self._connect

    def subscribe(self, callback: Callback, *, connect: bool) -> None:
        """Tell `callback` the state now and at every change. `connect` opens connections to find out."""
        with self._lock:
            self._told[callback] = None
            self._connect = self._connect or connect
        self._tell()
        self.look()

    def unsubscribe(self, callback: Callback) -> None:
        """Tell it nothing more."""
        with self._lock:
            self._told.pop(callback, None)
            self._connect = self._connect and self.active

    def look(self) -> None:
        """Look at the channels now, on the thread that does it: something may have changed."""
        with self._lock:
            self._round += 1
            look = functools.partial(self._look, self._round, _SOON)
        self._later.run(0.0, look)

    def close(self) -> None:
        """Tell everybody SHUTDOWN, and nothing more."""
        self._closed = True
        self._tell()
        self._later.close()
        with self._lock:
            self._told.clear()

    def _look(self, round: int, pause: float) -> None:
        """Tell what is new, and look again: at once while something happens, seldom while nothing does."""
        if self._tell():
            pause = _SOON
        with self._lock:
            over = self._closed or not self._told or self._links() is None
            if over or round != self._round:
                return
        self._later.run(pause, functools.partial(self._look, round, min(2 * pause, _SELDOM)))

    def _tell(self) -> bool:
        """Tell those who do not know yet: one thread at a time, so in order, and without the lock."""
        news = False
        while True:
            with self._lock:
                state = State.SHUTDOWN if self._closed else self._state()
                callbacks = [callback for callback, told in self._told.items() if told is not state]
                if self._telling or not callbacks:
                    return news
                self._telling = news = True
                for callback in callbacks:
                    self._told[callback] = state
            try:
                for callback in callbacks:
                    try:
                        callback(state)
                    except Exception:
                        _log.exception("a subscriber to the connectivity of a gRPC channel failed")
            finally:
                with self._lock:
                    self._telling = False

    def _state(self) -> State:
        links = self._links()
        states = [state_of(channel, self._connect) for channel in links.current] if links is not None else []
        return aggregate(state for state in states if state is not None)
