"""What a call over HTTP/2 owes to the others on its connection when it is cut short: httpcore pays nothing of it.

- The server is told, and stops. httpcore says nothing, so the server goes on; h2 counts the stream as open, and refuses
  to open any more after a hundred (encode/httpcore, issue 1022).
- What had come for it is acknowledged. Otherwise the server counts it against what it may send to everybody.
- What was about to be written is written. Frames that get lost make headers of later calls unreadable, for both sides
  compress them by what they have seen before; and they may have been the frames of another call.
- Who waits while another call connects goes on waiting, or goes to another connection if that did not succeed. httpcore
  takes the connection for a failed one as soon as any of them is cancelled, and forgets it, in use or not.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any

_CANCEL = 8
"""The HTTP/2 error code for a stream that is not needed any longer (RFC 9113, 7)."""
_SECONDS = 5.0
"""How long the server may take to take note of that. It is 13 bytes: it takes longer if it does not read at all."""
_REQUEST: Any = SimpleNamespace(extensions={"timeout": {"write": _SECONDS}})


class _Opened:
    """A connection of httpcore's that may turn out to speak HTTP/2; the base class is httpcore's."""

    _theirs: type
    _ours: type
    _opened: Any = None

    @property
    def _connection(self) -> Any:
        return self._opened

    @_connection.setter
    def _connection(self, connection: Any) -> None:
        if type(connection) is self._theirs:
            connection.__class__ = self._ours
        self._opened = connection


class _AsyncOpened(_Opened):
    _connecting = False
    _connect_failed: bool
    _unavailable: type[Exception]

    async def handle_async_request(self, request: Any) -> Any:
        """As that of httpcore."""
        try:
            return await super().handle_async_request(request)  # type: ignore[misc]
        except BaseException:
            if self._connecting:  # another call does, and only this one has failed
                self._connect_failed = False
            elif isinstance(self._opened, _AsyncMultiplexed):
                await self._opened.close_if_unfinished(request)
            raise

    async def _connect(self, request: Any) -> Any:
        if self._connect_failed:  # the pool has forgotten this connection
            raise self._unavailable
        self._connecting = True
        try:
            return await super()._connect(request)  # type: ignore[misc]
        finally:
            self._connecting = False


class _Multiplexed:
    """A connection that speaks HTTP/2; the base class is httpcore's."""

    _h2_state: Any
    _events: dict[int, list[Any]]
    _write_exception: Exception | None
    _connection_error: bool
    _failed: type[Exception]
    _unwritten: tuple[type[Exception], ...]
    _unavailable: type[Exception]
    _writing = False
    is_idle: Callable[[], bool]
    is_closed: Callable[[], bool]

    def _reset(self, stream: int) -> bool:
        """Give up a stream that has not ended; True if there is something to be written."""
        from h2.exceptions import ProtocolError

        state = self._h2_state
        found = state.streams.get(stream)
        if found is None or found.closed:
            return False
        try:
            for event in self._events.get(stream, ()):
                if length := getattr(event, "flow_controlled_length", 0):
                    state.acknowledge_received_data(length, stream)
            state.reset_stream(stream, _CANCEL)
        except ProtocolError:  # the connection is over
            return False
        return True

    def has_expired(self) -> bool:
        """As that of httpcore; one that is broken takes no place once no call reads from it."""
        return (self._connection_error and self.is_idle()) or super().has_expired()  # type: ignore[misc]

    def _was_torn(self, error: BaseException) -> None:
        """Some of what was to be written may be lost, so nothing must be written after it."""
        self._write_exception = error if isinstance(error, Exception) else self._failed("a write was cut short")
        self._connection_error = True


class _SyncMultiplexed(_Multiplexed):
    def _response_closed(self, stream_id: int) -> None:
        reset = self._reset(stream_id)
        super()._response_closed(stream_id)  # type: ignore[misc]
        if reset:
            try:
                self._write_outgoing_data(_REQUEST)
            except self._unwritten:
                pass  # it is noted

    def _write_outgoing_data(self, request: Any) -> None:
        timeout = request.extensions.get("timeout", {}).get("write")
        with self._write_lock:  # type: ignore[attr-defined]
            if self._write_exception is not None:
                raise self._write_exception
            try:
                while data := self._h2_state.data_to_send():
                    self._network_stream.write(data, timeout)  # type: ignore[attr-defined]
            except BaseException as error:
                self._was_torn(error)
                raise


class _AsyncMultiplexed(_Multiplexed):
    _first: int | None = None

    async def _response_closed(self, stream_id: int) -> None:
        reset = self._reset(stream_id)
        await super()._response_closed(stream_id)  # type: ignore[misc]
        if reset and not self._writing:  # else it is written by whoever does
            try:
                await self._write_outgoing_data(_REQUEST)
            except self._unwritten:
                pass  # it is noted

    async def _send_connection_init(self, request: Any) -> None:
        if self.is_closed():  # by a call that was cancelled here
            raise self._unavailable
        self._first = id(request)
        await super()._send_connection_init(request)  # type: ignore[misc]

    async def close_if_unfinished(self, request: Any) -> None:
        """After the request was cut short: it may have left its first steps on the connection undone.

        httpcore takes away all but one of the streams at once, waits for each, and does not begin that anew.
        """
        if self._first == id(request) and self._h2_state.highest_outbound_stream_id == 0:
            self._sent_connection_init = False  # whoever waits for that goes to another connection
            await self.aclose()  # type: ignore[attr-defined]

    async def _write_outgoing_data(self, request: Any) -> None:
        timeout = request.extensions.get("timeout", {}).get("write")
        # what nobody waits for longer than that may as well be waited for by who is cancelled
        with nullcontext() if timeout is None else _shield():
            async with self._write_lock:  # type: ignore[attr-defined]
                if self._write_exception is not None:
                    raise self._write_exception
                self._writing = True
                try:
                    while data := self._h2_state.data_to_send():
                        await self._network_stream.write(data, timeout)  # type: ignore[attr-defined]
                except BaseException as error:
                    self._was_torn(error)
                    raise
                finally:
                    self._writing = False


def _shield() -> AbstractContextManager[object]:
    import anyio  # httpx needs it as well

    return anyio.CancelScope(shield=True)


def sync_base(core: ModuleType) -> Any:
    """The base class of the connections in a pool for a sync client that may speak HTTP/2.

    Args:
        core: `httpcore` or `httpcore2`.
    """
    return _base(core, "", _Opened, _SyncMultiplexed)


def async_base(core: ModuleType) -> Any:
    """The same for an async client."""
    return _base(core, "Async", _AsyncOpened, _AsyncMultiplexed)


def _base(core: ModuleType, prefix: str, opened: type, multiplexed: type) -> Any:
    theirs = getattr(core, f"{prefix}HTTP2Connection")
    errors = {
        "_failed": core.WriteError,
        "_unwritten": (core.WriteError, core.WriteTimeout),
        "_unavailable": core.ConnectionNotAvailable,
    }
    ours = type(theirs.__name__, (multiplexed, theirs), errors)
    base = getattr(core, f"{prefix}HTTPConnection")
    return type(base.__name__, (opened, base), {"_theirs": theirs, "_ours": ours, **errors})
