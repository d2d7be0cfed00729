"""A hedged call of the aio channel: one request, one response, several attempts at once. A task drives them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from clientlb.call import Attempt, Steps
from clientlb.errors import NotSentError
from clientlb.grpc.aio._status import LOCALLY_CANCELLED, Told
from clientlb.hedging import drive_hedged_async, not_made
from clientlb.outcome import SUCCEEDED, Outcome, Verdict

if TYPE_CHECKING:
    from clientlb.grpc.aio._exchange import Exchange


class HedgedCall(grpc.aio.UnaryUnaryCall):  # type: ignore[type-arg]
    """A call with one request and one response. When it is dropped it runs to its end all the same.

    Args:
        exchange: What is to be sent, and where.
        steps: From `clientlb.call`.
    """

    def __init__(self, exchange: Exchange, steps: Steps) -> None:
        self._exchange = exchange
        self._running: dict[Attempt, Any] = {}
        self._inner: Any = None  # the call of the attempt that stands, or of the last one that failed
        self._task: asyncio.Task[Any] = exchange.links.spawn(self._run(steps))
        self._task.add_done_callback(_retrieve)
        exchange.links.paused.add(self)  # while no attempt runs it is ours to be cancelled, not gRPC's

    async def _run(self, steps: Steps) -> Any:
        exchange = self._exchange
        try:
            response, self._inner = await drive_hedged_async(steps, exchange.balancer, self._send, self._judge)
        except NotSentError as error:
            raise exchange.not_sent(error) from error
        finally:
            exchange.links.paused.discard(self)
            if exchange.links.leaving:
                exchange.links.tidy()
        return response

    async def _send(self, attempt: Attempt) -> Any:
        paused = self._exchange.links.paused
        paused.discard(self)
        inner = self._running[attempt] = self._exchange.start(attempt)
        try:
            return await inner, inner
        finally:
            if not any(not other.done() for other in self._running.values()):
                paused.add(self)

    def _judge(self, attempt: Attempt, result: Any, error: Exception | None) -> Verdict:
        inner = self._running.pop(attempt, None)
        if error is not None:
            self._inner = inner
        if inner is not None and self._exchange.balancer.wants_reports:
            self._exchange.hear(attempt, inner)
        if error is None:
            return SUCCEEDED
        if inner is None:
            return not_made(error)
        if not isinstance(error, grpc.RpcError):
            return Verdict(Outcome.IGNORED, type(error).__name__)
        return self._exchange.verdict(attempt, inner)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._task.__await__()

    async def _last(self) -> Any:
        """What has the status of the call; waits for the end."""
        await asyncio.wait([self._task])
        if self._task.cancelled():
            return Told(LOCALLY_CANCELLED)
        error = self._task.exception()
        if error is None or (isinstance(error, grpc.RpcError) and not isinstance(error, NotSentError)):
            return self._inner
        if isinstance(error, grpc.aio.AioRpcError):
            return Told(error)
        raise error

    async def code(self) -> grpc.StatusCode:
        """The status code; waits for the end of the call."""
        return await (await self._last()).code()  # type: ignore[no-any-return]

    async def details(self) -> str:
        """The details of the status; waits for the end of the call."""
        return await (await self._last()).details()  # type: ignore[no-any-return]

    async def debug_error_string(self) -> str:
        """gRPC's own words about the status; waits for the end of the call."""
        return await (await self._last()).debug_error_string()  # type: ignore[no-any-return]

    async def initial_metadata(self) -> Any:
        """What the server sent first; waits for the end of the call, for before that nobody knows which server."""
        return await (await self._last()).initial_metadata()

    async def trailing_metadata(self) -> Any:
        """What the server sent last; waits for the end of the call."""
        return await (await self._last()).trailing_metadata()

    async def wait_for_connection(self) -> None:
        """Wait until the call has ended well.

        Raises:
            grpc.aio.AioRpcError: It has failed.
        """
        await asyncio.shield(self._task)

    def cancelled(self) -> bool:
        """Whether the call was cancelled."""
        return self._task.cancelled()

    def done(self) -> bool:
        """Whether the call has ended."""
        return self._task.done()

    def time_remaining(self) -> float | None:
        """Seconds until the deadline of the whole call; None without one."""
        return self._exchange.time_remaining()

    def cancel(self) -> bool:
        """Cancel the call with all its attempts. Returns False when it has ended already."""
        return self._task.cancel()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call `callback(self)` at the end of the call."""
        self._task.add_done_callback(lambda _: callback(self))


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Keep asyncio from complaining of a call that has failed and that nobody awaits; gRPC does not complain either."""
    if not task.cancelled():
        task.exception()
