"""Exchange: what one aio call sends, however often and wherever to. The twin of `clientlb.grpc._exchange`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc

from clientlb.call import Attempt
from clientlb.grpc._errors import AioDeadlineExceededRpcError, AioNoEndpointsRpcError, AioThrottledRpcError
from clientlb.grpc._requests import AsyncRequests
from clientlb.grpc._sending import Sending
from clientlb.grpc.aio._status import status_of, trailers_of
from clientlb.orca import of_trailers
from clientlb.outcome import Verdict

if TYPE_CHECKING:
    from clientlb.grpc.aio._channel import LoopLinks
    from clientlb.grpc.aio._methods import Method


WRITTEN = object()
"""In place of a stream of requests: the caller writes them one by one."""


def stream_of(request: Any) -> Any:
    """A request, or a stream of requests, for one attempt."""
    if type(request) is AsyncRequests:
        return aiter(request)
    return None if request is WRITTEN else request


class Exchange(Sending):
    """The request of one aio call.

    Args:
        method: What is called.
        links: The channels of this event loop.
        since: When the call began, in seconds of the balancer's clock; None is now.
        request: One request, an `AsyncRequests`, or `WRITTEN`.
        timeout: Seconds for the whole call.
        metadata: The caller's.
        credentials: The caller's, as are the two that follow.
    """

    __slots__ = ("_compression", "_credentials", "_method", "_wait_for_ready", "links")

    not_sent_errors: tuple[type[Any], type[Any], type[Any]] = (
        AioNoEndpointsRpcError,
        AioDeadlineExceededRpcError,
        AioThrottledRpcError,
    )

    def __init__(
        self,
        method: Method,
        links: LoopLinks,
        since: float | None,
        request: Any,
        timeout: float | None,
        metadata: Any,
        credentials: grpc.CallCredentials | None,
        wait_for_ready: bool | None,
        compression: grpc.Compression | None,
    ) -> None:
        super().__init__(method, links.balancer, request, timeout, metadata, wait_for_ready, since)
        self.links: LoopLinks = links
        self._method = method
        self._credentials = credentials
        self._wait_for_ready = wait_for_ready
        self._compression = compression

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of the call."""
        return self.links.loop

    def start(self, attempt: Attempt) -> Any:
        """Send the request to the endpoint of an attempt; returns the call of `grpc.aio`."""
        return self._method.at(self.links, attempt.pick.node)(
            stream_of(self._request),
            timeout=self.seconds_of(attempt),
            metadata=self.metadata_of(attempt),
            credentials=self._credentials,
            wait_for_ready=self._wait_for_ready,
            compression=self._compression,
        )

    def verdict(self, attempt: Attempt, ended: Any) -> Verdict:
        """Say what the end of an attempt means."""
        status = status_of(ended)
        if status[0] is grpc.StatusCode.UNAVAILABLE:
            self.links.doubt(attempt.pick.node)
        return self.judge(attempt, *status)

    def hear(self, attempt: Attempt, ended: Any) -> None:
        """Note what the server of an attempt said about its load."""
        balancer = self.balancer
        balancer.note_load(attempt.pick.node, of_trailers(trailers_of(ended), balancer.clock()))

    @property
    def message(self) -> Any:
        """The one request; None for a stream of them."""
        return None if self._request is WRITTEN or isinstance(self._request, AsyncRequests) else self._request

    @property
    def replayable(self) -> bool:
        """Whether the request can be sent again. A stream whose messages were counted says so when it fails."""
        return self._request is not WRITTEN
