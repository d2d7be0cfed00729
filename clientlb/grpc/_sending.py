"""What the exchanges of sync and aio calls have in common: the time that is left, and what an attempt's end means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from clientlb.balancer import Balancer
from clientlb.call import FOREVER, Attempt
from clientlb.errors import NotSentError
from clientlb.grpc._errors import of_kind
from clientlb.grpc._requests import AsyncRequests, Requests
from clientlb.grpc._verdict import metadata_of_attempt, verdict
from clientlb.outcome import SUCCEEDED, Cause, Outcome, Verdict

if TYPE_CHECKING:
    from clientlb.grpc._method import BalancedMethod

_RETRYABLE = Outcome.RETRYABLE
_OK = grpc.StatusCode.OK
_DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED
_SOON = 0.02
"""Seconds before the end of an attempt from which on its deadline has ended it: gRPC counts in whole milliseconds."""
LATE = "no response within attempt_timeout"
STILL_CONNECTING = Verdict(_RETRYABLE, "still connecting", sent=False, cause=Cause.CONNECT)
CUT_OFF = Verdict(_RETRYABLE, "cancelled in the moment when it was connected")
TIMED_OUT = Verdict(_RETRYABLE, "attempt timeout")


class Sending:
    """The request of one call with everything that the caller has said about it.

    Args:
        method: What is called.
        balancer: Of the service.
        request: One request, or a stream of them.
        timeout: Seconds for the whole call.
        metadata: The caller's.
        wait_for_ready: The caller's.
        since: When the call began, in seconds of the balancer's clock; None is now.

    Attributes:
        timeout: Seconds for the whole call.
        deadline: When it has to be over, in seconds of the balancer's clock.
        patient: The call waits for endpoints until its deadline.
    """

    __slots__ = ("_request", "_single", "attempt_timeout", "balancer", "deadline", "metadata", "patient", "timeout")

    not_sent_errors: tuple[type[Any], type[Any], type[Any]]
    """For a call that found no endpoint, one that had no time, and one that was refused."""

    def __init__(
        self,
        method: BalancedMethod,
        balancer: Balancer,
        request: Any,
        timeout: float | None,
        metadata: Any,
        wait_for_ready: bool | None,
        since: float | None,
    ) -> None:
        self.balancer: Balancer = balancer
        self.timeout: float | None = timeout
        self.deadline: float | None = None
        if timeout is not None:
            self.deadline = (balancer.clock() if since is None else since) + timeout
        self.attempt_timeout: float | None = method.attempt_timeout
        self.metadata: Any = metadata
        self.patient: bool = bool(wait_for_ready)
        self._single = method.single
        self._request = request

    def seconds_of(self, attempt: Attempt) -> float | None:
        """What gRPC is told of the time of an attempt. That of a stream to its first message is our own affair."""
        expires = attempt.expires if self._single else self.deadline
        return None if expires is None else max(0.0, expires - attempt.pick.started)  # it is picked just now

    def metadata_of(self, attempt: Attempt) -> Any:
        """The caller's metadata, and how many attempts there were before."""
        return self.metadata if attempt.number == 1 else metadata_of_attempt(self.metadata, attempt.number)

    @property
    def seconds_to_first_message(self) -> float | None:
        """How long an attempt may keep its caller waiting for the first of a stream of responses."""
        return None if self._single else self.attempt_timeout

    def judge(self, attempt: Attempt, code: grpc.StatusCode, details: str | None, trailing_metadata: Any) -> Verdict:
        """Say what the status of an attempt means."""
        if code is _OK:
            return SUCCEEDED
        if code is _DEADLINE_EXCEEDED and self._is_timed_out(attempt):
            return TIMED_OUT
        found = verdict(code, details, trailing_metadata, attempt.pick.endpoint, self.balancer.options.retry.codes)
        taken = isinstance(self._request, (Requests, AsyncRequests)) and not self._request.replayable
        if taken and found.outcome is _RETRYABLE:
            return Verdict(Outcome.FAILURE, f"{found.reason}, in the midst of the request stream")
        return found

    def _is_timed_out(self, attempt: Attempt) -> bool:
        """Whether it was we who said that an attempt has taken too long, and not for the deadline of the call."""
        expires = attempt.expires
        if not self._single or expires is None or expires == self.deadline:
            return False
        return self.balancer.clock() >= expires - _SOON

    def time_remaining(self) -> float | None:
        """Seconds until the deadline of the whole call, not below 0; None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - self.balancer.clock())

    def not_sent(self, error: NotSentError) -> Exception:
        """The same error as one of gRPC's."""
        patience = FOREVER if self.patient else self.balancer.options.wait_for_endpoints
        kind, code = of_kind(error, self.not_sent_errors, self.timeout, patience)
        made: Exception = kind(code, details=str(error))
        made.__cause__ = error
        return made
