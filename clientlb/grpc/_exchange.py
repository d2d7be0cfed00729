"""Exchange: what one call sends, however often and wherever to. It makes and judges attempts; it decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc

from clientlb.balancer import Balancer
from clientlb.call import Attempt
from clientlb.deadlines import shortest
from clientlb.errors import NotSentError
from clientlb.grpc._errors import DeadlineExceededRpcError, NoEndpointsRpcError, ThrottledRpcError, of_kind
from clientlb.grpc._requests import Requests
from clientlb.grpc._verdict import metadata_of_attempt, verdict
from clientlb.outcome import SUCCEEDED, Outcome, Verdict

if TYPE_CHECKING:
    from clientlb.grpc._channel import Channel
    from clientlb.grpc._methods import Method

_RETRYABLE = Outcome.RETRYABLE
_NOT_SENT = (NoEndpointsRpcError, DeadlineExceededRpcError, ThrottledRpcError)


class Exchange:
    """The request of one call with everything that the caller has said about it.

    Args:
        method: What is called.
        form: How: `"with_call"` or `"future"`; None for the plain call.
        balancer: Of the service.
        request: One request, or a `Requests`.
        timeout: Seconds for the whole call.
        arguments: metadata, credentials, wait_for_ready and compression, for gRPC.
    """

    __slots__ = (
        "_arguments",
        "_attempt",
        "_form",
        "_metadata",
        "_method",
        "_request",
        "attempt_timeout",
        "balancer",
        "deadline",
        "timeout",
    )

    def __init__(
        self,
        method: Method,
        form: str | None,
        balancer: Balancer,
        request: Any,
        timeout: float | None,
        metadata: Any,
        *arguments: Any,
    ) -> None:
        self.balancer = balancer
        options = balancer.options
        if method.single and timeout is None:
            timeout = options.deadline
        self.timeout = timeout = shortest(timeout)
        self.attempt_timeout = options.attempt_timeout if method.single else None
        self.deadline = None if timeout is None else balancer.clock() + timeout
        self._method = method
        self._form = form
        self._request = request
        self._metadata = metadata
        self._arguments = arguments
        self._attempt: Attempt | None = None

    @property
    def _channel(self) -> Channel:
        return self._method.channel

    # ------------------------------------------------------------------ for clientlb.drive

    def classify(self, result: object, error: Exception | None) -> Verdict:
        """Say what a result or an error means."""
        if error is None:
            return SUCCEEDED
        assert self._attempt is not None
        if not isinstance(error, grpc.RpcError):
            return Verdict(Outcome.IGNORED, type(error).__name__)
        return self.verdict(self._attempt, error)

    # ------------------------------------------------------------------ attempts

    def start(self, attempt: Attempt) -> Any:
        """Send the request to the endpoint of an attempt."""
        self._attempt = attempt
        pick = attempt.pick
        expires = attempt.expires
        request = self._request
        function = self._method.at(pick.node)
        if self._form is not None:
            function = getattr(function, self._form)
        return function(
            iter(request) if type(request) is Requests else request,
            None if expires is None else max(0.0, expires - pick.started),  # which is now: no need to read the clock
            self._metadata if attempt.number == 1 else metadata_of_attempt(self._metadata, attempt.number),
            *self._arguments,
        )

    def launch(self, attempt: Attempt) -> Any:
        """Send the request, beside another attempt perhaps; returns a future of what the caller wants."""
        form, self._form = self._form, "future"
        try:
            future = self.start(attempt)
        finally:
            self._form = form
        return future if form is None else _WithCall(future)

    def classify_one(self, attempt: Attempt, result: object, error: Exception | None) -> Verdict:
        """`classify` for one of several attempts."""
        if error is None:
            return SUCCEEDED
        if not isinstance(error, grpc.RpcError):
            return Verdict(Outcome.IGNORED, type(error).__name__)
        return self.verdict(attempt, error)

    def verdict(self, attempt: Attempt, ended: Any) -> Verdict:
        """Say what the end of an attempt means; `ended` has its status."""
        code = ended.code()
        if code is grpc.StatusCode.OK:
            return SUCCEEDED
        if code is grpc.StatusCode.DEADLINE_EXCEEDED and attempt.expires != self.deadline:
            return Verdict(_RETRYABLE, "attempt timeout")
        codes = self.balancer.options.retry.codes
        found = verdict(code, ended.details(), ended.trailing_metadata(), attempt.pick.endpoint, codes)
        if found.outcome is _RETRYABLE and isinstance(self._request, Requests) and not self._request.replayable:
            return Verdict(Outcome.FAILURE, f"{found.reason}, in the midst of the request stream")
        return found

    def time_remaining(self) -> float | None:
        """Seconds until the deadline of the whole call, not below 0; None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - self.balancer.clock())

    def not_sent(self, error: NotSentError) -> Exception:
        """The same error as one of gRPC's."""
        kind, code = of_kind(error, _NOT_SENT, self.timeout, self.balancer.options.wait_for_endpoints)
        made = kind(code, str(error))
        made.__cause__ = error
        return made

    # ------------------------------------------------------------------ for clientlb.grpc._future

    def pause(self, call: Any, resume: Callable[[], None], seconds: float, *, for_endpoints: bool) -> None:
        """Call `resume` after so many seconds, or as soon as there are endpoints."""
        self._channel.pause(call, resume, seconds, for_endpoints=for_endpoints)

    def resumed(self, call: Any) -> None:
        """The pause is over."""
        self._channel.forget_pause(call)

    def keep(self, call: Any) -> None:
        """Keep a call alive that somebody wants to be called back by."""
        self._channel.keep(call)

    def ended(self, call: Any) -> None:
        """The call is over."""
        self._channel.forget(call)
        self.tidy()

    def tidy(self) -> None:
        """Close the channels of endpoints that have left, if this was the last call to one."""
        self._channel.tidy()


class _WithCall:
    """A future of gRPC's whose result is what `with_call` returns."""

    def __init__(self, future: Any) -> None:
        self._future = future
        self.cancel = future.cancel
        self.add_done_callback = future.add_done_callback

    def result(self) -> tuple[Any, Any]:
        """The response and its call."""
        return self._future.result(), self._future
