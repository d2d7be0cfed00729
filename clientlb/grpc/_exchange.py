"""Exchange: what one call sends, however often and wherever to. It makes and judges attempts; it decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc

from clientlb.balancer import Balancer
from clientlb.call import FOREVER, Attempt
from clientlb.errors import NoEndpointsError
from clientlb.grpc._errors import NoEndpointsRpcError, code_without_endpoints
from clientlb.grpc._requests import Requests
from clientlb.grpc._verdict import metadata_of_attempt, verdict
from clientlb.orca import of_trailers
from clientlb.outcome import SUCCEEDED, Outcome, Verdict

if TYPE_CHECKING:
    from clientlb.grpc._channel import Channel
    from clientlb.grpc._methods import Method

_RETRYABLE = Outcome.RETRYABLE


class Exchange:
    """The request of one call with everything that the caller has said about it.

    Args:
        method: What is called.
        form: How: `"with_call"` or `"future"`; None for the plain call.
        balancer: Of the service.
        request: One request, or a `Requests`.
        timeout: Seconds for the whole call.
        metadata: The caller's.
        arguments: credentials, wait_for_ready and compression, for gRPC.
        since: When the call began, in seconds of the balancer's clock; None is now.

    Attributes:
        failed: The error of the first attempt, if that was made before.
    """

    __slots__ = (
        "_arguments",
        "_attempt",
        "_form",
        "_method",
        "_request",
        "balancer",
        "deadline",
        "failed",
        "metadata",
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
        since: float | None = None,
    ) -> None:
        self.balancer = balancer
        self.timeout = timeout
        self.deadline = None if timeout is None else (balancer.clock() if since is None else since) + timeout
        self.metadata = metadata
        self.failed: Exception | None = None
        self._method = method
        self._form = form
        self._request = request
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
        if self.failed is not None:
            failed, self.failed = self.failed, None
            raise failed
        pick = attempt.pick
        deadline = self.deadline
        request = self._request
        function = self._method.at(pick.node)
        if self._form is not None:
            function = getattr(function, self._form)
        return function(
            iter(request) if type(request) is Requests else request,
            None if deadline is None else max(0.0, deadline - pick.started),  # which is now: no need to read the clock
            self.metadata if attempt.number == 1 else metadata_of_attempt(self.metadata, attempt.number),
            *self._arguments,
        )

    def start_and_hear(self, attempt: Attempt) -> Any:
        """The same for a policy that wants to know what the server says of its load: a plain call does not tell."""
        form, self._form = self._form, "with_call"
        try:
            answer = self.start(attempt)
        finally:
            self._form = form
        self._hear(attempt, answer[1])
        return answer[0] if form is None else answer

    def _hear(self, attempt: Attempt, ended: Any) -> None:
        balancer = self.balancer
        balancer.note_load(attempt.pick.node, of_trailers(ended.trailing_metadata(), balancer.clock()))

    def verdict(self, attempt: Attempt, ended: Any) -> Verdict:
        """Say what the end of an attempt means; `ended` has its status."""
        if self.balancer.wants_reports:
            self._hear(attempt, ended)
        code = ended.code()
        if code is grpc.StatusCode.OK:
            return SUCCEEDED
        codes = self.balancer.options.retry.codes
        found = verdict(code, ended.details(), ended.trailing_metadata(), attempt.pick.endpoint, codes)
        if found.outcome is _RETRYABLE and isinstance(self._request, Requests) and not self._request.replayable:
            return Verdict(Outcome.FAILURE, f"{found.reason}, in the midst of the request stream")
        return found

    def time_remaining(self) -> float | None:
        """Seconds until the deadline of the whole call, not below 0; None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - self.balancer.clock())

    @property
    def message(self) -> Any:
        """The one request; None for a stream of them."""
        return None if isinstance(self._request, Requests) else self._request

    @property
    def patient(self) -> bool:
        """Whether the call waits for endpoints until its deadline."""
        return bool(self._arguments[1])

    def no_endpoints(self, error: NoEndpointsError) -> NoEndpointsRpcError:
        """The same error as one of gRPC's."""
        patience = FOREVER if self.patient else self.balancer.options.wait_for_endpoints
        made = NoEndpointsRpcError(code_without_endpoints(self.timeout, patience), str(error))
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
