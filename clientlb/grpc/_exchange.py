"""Exchange: what one call sends, however often and wherever to. It makes and judges attempts; it decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from clientlb.balancer import Balancer
from clientlb.call import Attempt
from clientlb.grpc._errors import DeadlineExceededRpcError, NoEndpointsRpcError, StuckRpcError, ThrottledRpcError
from clientlb.grpc._links import PATIENCE
from clientlb.grpc._requests import Requests
from clientlb.grpc._sending import CUT_OFF, STILL_CONNECTING, Sending
from clientlb.orca import of_trailers
from clientlb.outcome import SUCCEEDED, Outcome, Verdict

if TYPE_CHECKING:
    from clientlb.grpc._channel import Channel
    from clientlb.grpc._methods import Method


class Exchange(Sending):
    """The request of one sync call.

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

    __slots__ = ("_arguments", "_attempt", "_form", "_method", "failed")

    not_sent_errors: tuple[type[Any], type[Any], type[Any]] = (
        NoEndpointsRpcError,
        DeadlineExceededRpcError,
        ThrottledRpcError,
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
        super().__init__(method, balancer, request, timeout, metadata, arguments[1], since)
        self.failed: Exception | None = None
        self._method = method
        self._form = form
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
        if isinstance(error, StuckRpcError):
            return error.verdict
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
        request = self._request
        function = self._method.at(attempt.pick.node)
        form = self._form
        unsure = form != "future" and self._method.single and not self.patient and not self.is_connected(attempt)
        if unsure or form is not None:
            function = getattr(function, "future" if unsure else str(form))
        made = function(
            iter(request) if type(request) is Requests else request,
            self.seconds_of(attempt),
            self.metadata_of(attempt),
            *self._arguments,
        )
        return self._response_of(made, attempt) if unsure else made

    def _response_of(self, future: Any, attempt: Attempt) -> Any:
        """Wait for the response of an endpoint that is still connecting, unless that takes too long."""
        try:
            while True:
                try:
                    response = future.result(PATIENCE)
                except grpc.FutureTimeoutError:
                    if self.is_stuck(attempt):
                        future.cancel()
                        raise StuckRpcError(self.stuck(attempt)) from None
                else:
                    return response if self._form is None else (response, future)
        except BaseException:
            future.cancel()
            raise

    def is_connected(self, attempt: Attempt) -> bool:
        """Whether the endpoint of an attempt is known to be connected."""
        link = self._channel.links.get(attempt.pick.node)
        return link is not None and bool(link.methods)

    def is_stuck(self, attempt: Attempt) -> bool:
        """Whether the endpoint of an attempt is still not connected while another one is."""
        return self._channel.links.is_stuck(attempt.pick.node)

    def stuck(self, attempt: Attempt) -> Verdict:
        """What it means that an attempt was cancelled because it was stuck: has it been sent all the same?"""
        return STILL_CONNECTING if self.is_stuck(attempt) else CUT_OFF

    def launch(self, attempt: Attempt) -> Launched:
        """Send the request to the endpoint of an attempt, beside another attempt perhaps."""
        form, self._form = self._form, "future"
        hear = partial(self._hear, attempt) if self.balancer.wants_reports else None
        try:
            return Launched(self.start(attempt), hear, with_call=form is not None)
        finally:
            self._form = form

    def classify_one(self, attempt: Attempt, result: object, error: Exception | None) -> Verdict:
        """`classify` for one of several attempts."""
        self._attempt = attempt
        return self.classify(result, error)

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
        if code is grpc.StatusCode.UNAVAILABLE:
            self._channel.links.doubt(attempt.pick.node)
        return self.judge(attempt, code, ended.details(), ended.trailing_metadata())

    @property
    def message(self) -> Any:
        """The one request; None for a stream of them."""
        return None if isinstance(self._request, Requests) else self._request

    # ------------------------------------------------------------------ for clientlb.grpc._future

    def pause(self, call: Any, resume: Callable[[], None], seconds: float, *, for_endpoints: bool) -> None:
        """Call `resume` after so many seconds, or as soon as there are endpoints."""
        self._channel.pause(call, resume, seconds, for_endpoints=for_endpoints)

    def after(self, seconds: float, function: Callable[[], None]) -> None:
        """Call a function after so many seconds."""
        self._channel.after(seconds, function)

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


class Launched:
    """An attempt that runs beside others: a future of gRPC's, whose result is what the caller wants.

    Args:
        future: gRPC's.
        hear: Is given the future when there is a response, for what it says of the server's load.
        with_call: The caller wants the call besides the response.
    """

    def __init__(self, future: Any, hear: Callable[[Any], None] | None, *, with_call: bool) -> None:
        self._future = future
        self._hear = hear
        self._with_call = with_call
        self.cancel: Callable[[], bool] = future.cancel
        self.add_done_callback: Callable[[Callable[[Any], None]], None] = future.add_done_callback

    def result(self) -> Any:
        """The response; waits for it."""
        response = self._future.result()
        if self._hear is not None:
            self._hear(self._future)
        return (response, self._future) if self._with_call else response
