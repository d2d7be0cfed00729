"""The connectivity of a balanced channel: one state made of the states of its endpoints' channels."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterable

import grpc

from clientlb.grpc._later import Later
from clientlb.grpc._links import Link

State = grpc.ChannelConnectivity
Callback = Callable[[State], None]

# after gRPC's round_robin: the first of these that any endpoint is in
_IN_THIS_ORDER = (State.READY, State.CONNECTING, State.IDLE, State.TRANSIENT_FAILURE)

_BY_NUMBER = {state.value[0]: state for state in State}
_PERIOD = 0.25


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


def state_of(channel: grpc.Channel) -> State | None:
    """The connectivity of a sync channel, which is asked to connect. None if it is closed, or not gRPC's own.

    In public, gRPC tells it to subscribers only. Each channel with one costs a thread, which dies with a traceback on
    stderr when the channel is closed too soon.
    """
    try:
        return _BY_NUMBER.get(channel._channel.check_connectivity_state(True))  # type: ignore[attr-defined]
    except (AttributeError, ValueError):
        return None


class Watch:
    """Tells subscribers of a sync channel about its connectivity. It costs nothing while there are none."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: dict[Callback, State | None] = {}
        self._states: dict[grpc.Channel, State] = {}
        self._watchers: dict[grpc.Channel, Callback] = {}
        self._connect = False
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

    def subscribe(self, callback: Callback, channels: Iterable[grpc.Channel], *, connect: bool) -> None:
        """Tell `callback` the state now and at every change. `connect` opens connections to find out."""
        with self._lock:
            self._told[callback] = None
            self._connect = self._connect or connect
            idle = dict(self._watchers) if connect else {}
        for channel, watcher in idle.items():  # these were watched without being connected
            channel.unsubscribe(watcher)
            channel.subscribe(watcher, try_to_connect=True)
        self.watch(channels)
        self._tell()

    def unsubscribe(self, callback: Callback) -> None:
        """Tell it nothing more."""
        with self._lock:
            self._told.pop(callback, None)
            self._connect = self._connect and self.active
        if not self.active:
            self.watch_only(())

    def watch(self, channels: Iterable[grpc.Channel]) -> None:
        """Watch these channels as well."""
        for channel in channels:
            with self._lock:
                if channel in self._watchers:
                    continue
                watcher = self._watchers[channel] = functools.partial(self._changed, channel)
                self._states[channel] = State.IDLE
            channel.subscribe(watcher, try_to_connect=self._connect)

    def watch_only(self, channels: Iterable[grpc.Channel]) -> None:
        """Watch these channels and no others."""
        staying = set(channels)
        with self._lock:
            leaving = {channel: self._watchers.pop(channel) for channel in self._watchers.keys() - staying}
            for channel in leaving:
                del self._states[channel]
        for channel, watcher in leaving.items():
            channel.unsubscribe(watcher)
        self.watch(staying)
        self._tell()

    def close(self) -> None:
        """Tell everybody SHUTDOWN, and nothing more."""
        self._closed = True
        self.watch_only(())
        with self._lock:
            self._told.clear()

    def _changed(self, channel: grpc.Channel, state: State) -> None:
        with self._lock:
            if channel not in self._states:
                return
            self._states[channel] = state
        self._tell()

    def _tell(self) -> None:
        """Tell those who do not know yet: one thread at a time, so in order, and without the lock."""
        while True:
            with self._lock:
                state = State.SHUTDOWN if self._closed else aggregate(self._states.values())
                callbacks = [callback for callback, told in self._told.items() if told is not state]
                if self._telling or not callbacks:
                    return
                self._telling = True
                for callback in callbacks:
                    self._told[callback] = state
            try:
                for callback in callbacks:
                    callback(state)
            finally:
                with self._lock:
                    self._telling = False
