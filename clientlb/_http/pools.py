"""httpcore's connection pools, which lose no place and no connection when a call is cut short.

A call is cancelled while it waits, and httpcore waits at points where nothing of it would clean up: it has been given
a connection and has not begun to connect; the connection is there and not marked as in use; the end of a response is
being noted. What is left is a connection that no call uses and that counts as busy for ever, and after a hundred of
them the endpoint is dead for the client. (encode/httpcore, issues 830 and 1093.) A call that is given a connection just
when it has waited for too long leaves one as well, in threads too.

One rule finds them all: a connection in use belongs to a request of the pool. So whoever is cut short takes back its
request, and closes what is neither idle nor anybody's.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any


class _Pool:
    """What sync and async share; the base class is httpcore's."""

    _connections: list[Any]
    _requests: list[Any]
    _optional_thread_lock: Any

    def _left_behind(self, request: Any) -> list[Any]:
        """Take back a request; returns what has to be closed."""
        with self._optional_thread_lock:
            self._requests[:] = [each for each in self._requests if each.request is not request]
            owned = {id(each.connection) for each in self._requests}
            orphans = [
                connection
                for connection in self._connections
                if id(connection) not in owned and not connection.is_idle() and not connection.is_closed()
            ]
            if not orphans:
                return orphans
            for connection in orphans:
                self._connections.remove(connection)
            surplus: list[Any] = self._assign_requests_to_connections()  # type: ignore[attr-defined]
        return orphans + surplus


class _SyncPool(_Pool):
    def clean_up(self, request: Any) -> None:
        """After the request was cut short: close the connections that nobody uses."""
        self._close_connections(self._left_behind(request))

    def _close_connections(self, closing: list[Any]) -> None:
        """As that of httpcore; an interrupt leaves none of them open."""
        first: BaseException | None = None
        for connection in closing:
            try:
                connection.close()
            except BaseException as error:
                first = first or error
        if first is not None:
            raise first


class _AsyncPool(_Pool):
    async def clean_up(self, request: Any) -> None:
        """After the request was cut short: close the connections that nobody uses."""
        await self._close_connections(self._left_behind(request))

    async def _close_connections(self, closing: list[Any]) -> None:
        """As that of httpcore; a cancellation leaves none of them open, though its shield does not stop asyncio's."""
        first: BaseException | None = None
        for connection in closing:
            try:
                await super()._close_connections([connection])  # type: ignore[misc]
            except BaseException as error:
                first = first or error
        if first is not None:
            raise first


@cache
def sync_pool(core: ModuleType) -> Any:
    """The class of the pools of a sync client.

    Args:
        core: `httpcore` or `httpcore2`.
    """
    return type("Pool", (_SyncPool, core.ConnectionPool), {})


@cache
def async_pool(core: ModuleType) -> Any:
    """The same for an async client."""
    return type("Pool", (_AsyncPool, core.AsyncConnectionPool), {})
