"""Exchange: what one aio call sends, however often and wherever to. The twin of `clientlb.grpc._exchange`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc

from clientlb.balancer import Balancer
from clientlb.call import FOREVER, Attempt
from clientlb.errors import NoEndpointsError
from clientlb.grpc._errors import AioNoEndpointsRpcError, code_without_endpoints
from clientlb.grpc._requests import AsyncRequests
from clientlb.grpc._verdict import metadata_of_attempt, verdict
from clientlb.grpc.aio._status import status_of, trailers_of
from clientlb.orca import of_trailers
from clientlb.outcome import SUCCEEDED, Outcome, Verdict

if TYPE_CHECKING:
    from clientlb.grpc.aio._channel import LoopLinks
    from clientlb.grpc.aio._methods import Method

_RETRYABLE = Outcome.RETRYABLE


WRITTEN = object()
"""In place of a stream of requests: the caller writes them one by one."""


def stream_of(request: Any) -> Any:
    """A request, or a stream of requests, for one attempt."""
    if type(request) is AsyncRequests:
        return aiter(request)
    return None if request is WRITTEN else request


class Exchange:
    """The request of one call with everything that the caller has said about it.

    Args:
        method: What is called.
        links: The channels of this event loop.
        since: When the call began, in seconds of the balancer's clock; None is now.
        request: One request, an `AsyncRequests`, or `WRITTEN`.
        timeout: Seconds for the whole call.
        metadata: The caller's.
        credentials: The caller's, as are the two that follow.
    """

    __slots__ = (
        "_compression",
        "_credentials",
        "_method",
        "_request",
        "_wait_for_ready",
        "balancer",
        "deadline",
        "links",
        "metadata",
        "timeout",
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
        self.balancer: Balancer = links.balancer
        self.links: LoopLinks = links
        self.timeout: float | None = timeout
        self.deadline: float | None = None
        if timeout is not None:
            self.deadline = (self.balancer.clock() if since is None else since) + timeout
        self.metadata: Any = metadata
        self._method = method
        self._request = request
        self._credentials = credentials
        self._wait_for_ready = wait_for_ready
        self._compression = compression

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of the call."""
        return self.links.loop

    def start(self, attempt: Attempt) -> Any:
        """Send the request to the endpoint of an attempt; returns the call of `grpc.aio`."""
        pick = attempt.pick
        deadline = self.deadline
        return self._method.at(self.links, pick.node)(
            stream_of(self._request),
            timeout=None if deadline is None else max(0.0, deadline - pick.started),  # which is now, as in the twin
            metadata=self.metadata if attempt.number == 1 else metadata_of_attempt(self.metadata, attempt.number),
            credentials=self._credentials,
            wait_for_ready=self._wait_for_ready,
            compression=self._compression,
        )

    def verdict(self, attempt: Attempt, ended: Any) -> Verdict:
        """Say what the end of an attempt means."""
        code, details, trailing_metadata = status_of(ended)
        if code is grpc.StatusCode.OK:
            return SUCCEEDED
        codes = self.balancer.options.retry.codes
        found = verdict(code, details, trailing_metadata, attempt.pick.endpoint, codes)
        if found.outcome is _RETRYABLE and isinstance(self._request, AsyncRequests) and not self._request.replayable:
            return Verdict(Outcome.FAILURE, f"{found.reason}, in the midst of the request stream")
        return found

    def hear(self, attempt: Attempt, ended: Any) -> None:
        """Note what the server of an attempt said about its load."""
        balancer = self.balancer
        balancer.note_load(attempt.pick.node, of_trailers(trailers_of(ended), balancer.clock()))

    def time_remaining(self) -> float | None:
        """Seconds until the deadline of the whole call, not below 0; None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - self.balancer.clock())

    @property
    def message(self) -> Any:
        """The one request; None for a stream of them."""
        return None if self._request is WRITTEN or isinstance(self._request, AsyncRequests) else self._request

    @property
    def replayable(self) -> bool:
        """Whether the request can be sent again. A stream whose messages were counted says so when it fails."""
        return self._request is not WRITTEN

    @property
    def patient(self) -> bool:
        """Whether the call waits for endpoints until its deadline."""
        return bool(self._wait_for_ready)

    def no_endpoints(self, error: NoEndpointsError) -> AioNoEndpointsRpcError:
        """The same error as one of gRPC's."""
        patience = FOREVER if self.patient else self.balancer.options.wait_for_endpoints
        made = AioNoEndpointsRpcError(code_without_endpoints(self.timeout, patience), details=str(error))
        made.__cause__ = error
        return made
