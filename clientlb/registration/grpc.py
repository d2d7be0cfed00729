"""Registration for gRPC servers, `grpc.Server` and `grpc.aio.Server`, with the standard health service.

The health service (`grpc.health.v1.Health`) is added if the package `grpcio-health-checking` is there: the extra
`grpc-health`. It says NOT_SERVING from the moment the server begins to leave.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any

from clientlb.registration import register
from clientlb.registration.base import Registrar, Registration

if TYPE_CHECKING:
    import grpc
    import grpc.aio

__all__ = ["Serving"]

_EVERYTHING = ""  # the name of the whole server in the health service


class Serving:
    """Starts a gRPC server, keeps it registered, and lets it leave without losing a call.

        port = server.add_insecure_port("[::]:8080")
        with Serving(server, "orders", port=port, to="consul://127.0.0.1:8500"):
            server.wait_for_termination()

    For a `grpc.aio.Server` it is `async with` and `await`. The end of the block, or SIGTERM, makes the server leave the
    registry, go on serving for the propagation time, take no more calls, and finish those under way; then
    `wait_for_termination` returns.

    Args:
        server: The server, with its ports and services, not yet started.
        service: The name under which clients find it.
        port: The port on which it listens.
        to: The registry, as for `register`.
        health: Add the health service: True demands it, False leaves it out (default: if its package is installed).
        drain_timeout: The longest that calls under way may take to end, in seconds (default 20).
        **options: What else `clientlb.registration.register` takes.

    Raises:
        ImportError: `health` is True and `grpcio-health-checking` is not installed.
    """

    def __init__(
        self,
        server: grpc.Server | grpc.aio.Server,
        service: str,
        *,
        port: int,
        to: str | Registrar,
        health: bool | None = None,
        drain_timeout: float = 20.0,
        **options: Any,
    ) -> None:
        self._server: Any = server
        self._is_async = inspect.iscoroutinefunction(server.start)
        self._drain_timeout = drain_timeout
        self._health = None if health is False else _add_health(server, self._is_async, demanded=health is True)
        self._arguments = {"service": service, "port": port, "to": to, **options}

    def __enter__(self) -> Registration:
        """Start the server and announce it."""
        if self._is_async:
            raise TypeError("a grpc.aio.Server is served with `async with`")
        self._server.start()
        try:
            if self._health is not None:
                self._health.set(_EVERYTHING, _serving())
            self._registration = self._register(
                on_leave=self._health.enter_graceful_shutdown if self._health is not None else None,
                stop=lambda: self._server.stop(self._drain_timeout).wait(),
            )
        except BaseException:
            self._server.stop(None)
            raise
        return self._registration

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._registration.leave()
        self._registration.close()  # after a signal, another thread has left: only this one can put handlers back

    async def __aenter__(self) -> Registration:
        """Start the server and announce it."""
        if not self._is_async:
            raise TypeError("a grpc.Server is served with `with`")
        await self._server.start()
        loop = asyncio.get_running_loop()

        def from_thread(work: Callable[[], Coroutine[Any, Any, Any]], timeout: float) -> Callable[[], object]:
            return lambda: asyncio.run_coroutine_threadsafe(work(), loop).result(timeout)

        async def stop() -> None:
            await self._server.stop(self._drain_timeout)

        async def turn_unready() -> None:
            if self._health is not None:
                await self._health.enter_graceful_shutdown()

        try:
            if self._health is not None:
                await self._health.set(_EVERYTHING, _serving())
            self._registration = self._register(
                on_leave=from_thread(turn_unready, 1.0), stop=from_thread(stop, self._drain_timeout + 1.0)
            )
        except BaseException:
            await self._server.stop(None)
            raise
        return self._registration

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._registration.aleave()

    def _register(self, on_leave: Callable[[], object] | None, stop: Callable[[], object]) -> Registration:
        # calls under way are not counted: the server's own stop() waits for them
        arguments: dict[str, Any] = {**self._arguments, "drain_timeout": self._drain_timeout}
        return register(**arguments, on_leave=on_leave, stop=stop)


def _add_health(server: Any, is_async: bool, *, demanded: bool) -> Any:
    """Add the health service; returns its servicer, or None if there is none."""
    try:
        from grpc_health.v1 import health, health_pb2_grpc
    except ImportError:
        if demanded:
            raise ImportError("the health service needs a package: pip install clientlb[grpc-health]") from None
        return None
    servicer: Any = health.aio.HealthServicer() if is_async else health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    return servicer


def _serving() -> Any:
    from grpc_health.v1 import health_pb2

    return health_pb2.HealthCheckResponse.SERVING
