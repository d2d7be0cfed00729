"""The connectivity of a balanced channel: one state made of the states of its endpoints' channels."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable

import grpc

State = grpc.ChannelConnectivity
Callback = Callable[[State], None]

# after gRPC's round_robin: the first of these that any endpoint is in
_IN_THIS_ORDER = (State.READY, State.CONNECTING, State.IDLE, State.TRANSIENT_FAILURE)


def aggregate(states: Iterable[State]) -> State:
    """READY if a call could be sent at once to somebody, and so on; IDLE without any endpoint."""
    seen = frozenset(states)
    return next((state for state in _IN_THIS_ORDER if state in seen), State.IDLE)


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
