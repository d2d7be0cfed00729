"""Exchange: what one aio call sends, however often and wherever to. The twin of `clientlb.grpc._exchange`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc

from clientlb.balancer import Balancer
from clientlb.call import Attempt
from clientlb.deadlines import shortest
from clientlb.errors import NotSentError
from clientlb.grpc._errors import AioDeadlineExceededRpcError, AioNoEndpointsRpcError, AioThrottledRpcError, of_kind
from clientlb.grpc._requests import AsyncRequests
from clientlb.grpc._verdict import metadata_of_attempt, verdict
from clientlb.grpc.aio._status import status_of
from clientlb.outcome import SUCCEEDED, Outcome, Verdict

if TYPE_CHECKING:
    from clientlb.grpc.aio._channel import LoopLinks
    from clientlb.grpc.aio._methods import Method

_RETRYABLE = Outcome.RETRYABLE
_NOT_SENT = (AioNoEndpointsRpcError, AioDeadlineExceededRpcError, AioThrottledRpcError)


class Exchange:
    """The request of one call with everything that the caller has said about it.

    Args:
        method: What is called.
        balancer: Of the service.
        links: The channels of this event loop.
        request: One request, an `AsyncRequests`, or None when the caller writes requests one by one.
        timeout: Seconds for the whole call.
        metadata: The caller's.
        credentials: The caller's, as are the two that follow.
    """

    __slots__ = (
        "_compression",
        "_credentials",
        "_metadata",
        "_method",
        "_request",
        "_wait_for_ready",
        "attempt_timeout",
        "balancer",
        "deadline",
        "links",
        "timeout",
    )

    def __init__(
        self,
        method: Method,
        balancer: Balancer,
        links: LoopLinks,
        request: Any,
        timeout: float | None,
        metadata: Any,
        credentials: grpc.CallCredentials | None,
        wait_for_ready: bool | None,
        compression: grpc.Compression | None,
    ) -> None:
        self.balancer: Balancer = balancer
        self.links: LoopLinks = links
        options = balancer.options
        if method.single and timeout is None:
            timeout = options.deadline
        self.timeout: float | None = shortest(timeout)
        self.attempt_timeout: float | None = options.attempt_timeout if method.single else None
        timeout = self.timeout
        self.deadline: float | None = None if timeout is None else balancer.clock() + timeout
        self._method = method
        self._request = request
        self._metadata = metadata
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
        expires = attempt.expires
        request = self._request
        return self._method.at(self.links, pick.node)(
            aiter(request) if type(request) is AsyncRequests else request,
            timeout=None if expires is None else max(0.0, expires - pick.started),  # which is now, as in the twin
            metadata=self._metadata if attempt.number == 1 else metadata_of_attempt(self._metadata, attempt.number),
            credentials=self._credentials,
            wait_for_ready=self._wait_for_ready,
            compression=self._compression,
        )

    def verdict(self, attempt: Attempt, ended: Any) -> Verdict:
        """Say what the end of an attempt means."""
        code, details, trailing_metadata = status_of(ended)
        if code is grpc.StatusCode.OK:
            return SUCCEEDED
        if code is grpc.StatusCode.DEADLINE_EXCEEDED and attempt.expires != self.deadline:
            return Verdict(_RETRYABLE, "attempt timeout")
        codes = self.balancer.options.retry.codes
        found = verdict(code, details, trailing_metadata, attempt.pick.endpoint, codes)
        if found.outcome is _RETRYABLE and isinstance(self._request, AsyncRequests) and not self._request.replayable:
            return Verdict(Outcome.FAILURE, f"{found.reason}, in the midst of the request stream")
        return found

    def time_remaining(self) -> float | None:
        """Seconds until the deadline of the whole call, not below 0; None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - self.balancer.clock())

    def not_sent(self, error: NotSentError) -> Exception:
        """The same error as one of gRPC's."""
        kind, code = of_kind(error, _NOT_SENT, self.timeout, self.balancer.options.wait_for_endpoints)
        made = kind(code, details=str(error))
        made.__cause__ = error
        return made
