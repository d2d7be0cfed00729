"""One logical request to a service: its first attempt, and what the loops of `clientlb.drive` need for the others.

The base class has all that is decided, the two below it have the I/O.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterator, Mapping
from functools import partial
from math import inf
from typing import Any, Generic, TypeVar

from clientlb._http.body import AsyncOneShotBody, OneShotBody, aclose_retired, close_retired
from clientlb._http.flavour import Flavour
from clientlb._http.links import Link, Links
from clientlb._http.message import AnyRequest, is_idempotent, is_replayable, rewinding
from clientlb._http.timeouts import Interrupt, Timeouts
from clientlb._http.verdict import of_status
from clientlb.balancer import Balancer
from clientlb.call import UNLIMITED, Attempt, Limits, Steps, asked, call, succeed
from clientlb.crew import Crew, Errand
from clientlb.deadlines import inherited, read_header, write_header
from clientlb.drive import drive, drive_async
from clientlb.errors import ClosedError, ConfigurationError, NotSentError, of_service
from clientlb.hedging import drive_hedged, drive_hedged_async
from clientlb.options import CallOptions
from clientlb.orca import of_headers
from clientlb.outcome import SUCCEEDED, Outcome, Verdict
from clientlb.pick import Pick
from clientlb.trace import Trace

_log = logging.getLogger("clientlb.http")

AnyLinks = TypeVar("AnyLinks", bound=Links[Any])

# scheme of the caller's URL -> scheme to the endpoint without TLS, with TLS; whether the URL itself asks for TLS
_SCHEMES = {
    "http": (b"http", b"https", False),
    "https": (b"http", b"https", True),
    "ws": (b"ws", b"wss", False),
    "wss": (b"ws", b"wss", True),
}
SCHEMES = frozenset(_SCHEMES)
_NOTHING: Mapping[str, Any] = {}
_GLANCE = 0.5
"""Seconds after which a call that waits for endpoints looks whether its client was closed."""
_IGNORED = Outcome.IGNORED


def _call_options(given: Any, service: str) -> CallOptions:
    try:
        return CallOptions.of(given)
    except ConfigurationError as error:
        raise of_service(service, error) from None


class _Exchange(ABC, Generic[AnyRequest]):
    """What sync and async share.

    Args:
        flavour: Of the client.
        balancer: Of the service.
        links: The transports to its endpoints.
        request: The caller's, which is never changed.
    """

    __slots__ = (
        "_balancer",
        "_body",
        "_flavour",
        "_idempotent",
        "_limits",
        "_links",
        "_options",
        "_replayable",
        "_request",
        "_retry",
        "_short",
        "_stale",
    )

    def __init__(self, flavour: Flavour, balancer: Balancer, links: Links[Any], request: AnyRequest) -> None:
        given = request.extensions.get("clientlb")
        options = None if given is None else _call_options(given, balancer.service)
        retry = balancer.options.retry if options is None else options.retry_options(balancer.options.retry)
        self._flavour = flavour
        self._balancer = balancer
        self._links = links
        self._request = request
        self._retry = retry
        self._stale: BaseException | None = None
        self._options = options
        if options is None and balancer.plain and not inherited():
            self._short: bool = True
            self._limits: Limits = UNLIMITED
        else:
            # what needs more than one attempt at once, a refusal or a choice of endpoints takes the long way
            asks = options is not None and (options.key is not None or options.where is not None)
            self._short = not asks and retry.hedge is None and balancer.retrying.throttle is None
            self._limits = Limits.of(balancer, options)
        # most requests are told by one look
        self._idempotent = (options is None and request.method in retry.methods) or is_idempotent(
            request, options, retry
        )
        self._replayable = type(request.stream) is flavour.byte_stream or is_replayable(
            request.stream, flavour.byte_stream
        )
        self._body: OneShotBody | AsyncOneShotBody | None = None
        if not self._replayable:
            self._body = body = self._one_shot()
            self._replayable = body is not None and body.rewind is not None

    @property
    def _hedged(self) -> bool:
        # several attempts at once cannot read one file
        return (
            self._retry.hedge is not None
            and self._idempotent
            and type(self._request.stream) is self._flavour.byte_stream
        )

    def _steps(self, begun: Attempt | None) -> Steps:
        options, balancer = self._options, self._balancer
        return call(
            balancer,
            idempotent=self._idempotent,
            replayable=self._replayable,
            retry=self._retry,
            deadline=self._limits.deadline,
            attempt_timeout=self._limits.attempt_timeout,
            begun=begun,
            request=None if options is None else asked(balancer.service, options.key, options.where),
        )

    def _glances(self, timeout: float) -> Iterator[float]:
        """How long to wait at once, and again, so that a client that is closed is noticed."""
        clock = self._balancer.clock
        until = clock() + timeout
        while (left := until - clock()) > 0:
            yield min(left, _GLANCE)
            if self._links.closed:
                raise ClosedError("the client was closed while the call waited for endpoints")

    def _succeeded(self, response: Any) -> bool:
        status: int = response.status_code
        return status < 400 and status not in self._retry.statuses

    @abstractmethod
    def _one_shot(self) -> OneShotBody | AsyncOneShotBody | None:
        """Wrap the body of the request; None if it is of the wrong kind, which the inner transport will say."""

    def _address(
        self, pick: Pick, expires: float | None, interrupt: Interrupt | None
    ) -> tuple[Link[Any], bytes, Mapping[str, Any]]:
        """The transport of an attempt, taken, the scheme to the endpoint, and what of the request differs there."""
        request = self._request
        endpoint = pick.node.endpoint
        scheme, secure, wanted = _SCHEMES[request.url.scheme]
        changes = _NOTHING if self._body is None else {"stream": self._body}
        server_name: str | None = None
        if wanted or endpoint.secure:
            scheme = secure
            server_name = request.extensions.get("sni_hostname") or request.url.raw_host.decode("ascii")
            changes = {**changes, "extensions": {**request.extensions, "sni_hostname": server_name}}
        if expires is not None or interrupt is not None:
            changes = self._limited(expires, interrupt, changes)
        link = self._links.take(self._balancer, endpoint, server_name)
        if interrupt is not None:
            interrupt.aborted = link.transport.aborted
        return link, scheme, changes

    def _limited(
        self, expires: float | None, interrupt: Interrupt | None, changes: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Let an attempt end in time, and tell the server, if that is wanted."""
        request, clock = self._request, self._balancer.clock
        extensions = changes.get("extensions", request.extensions)
        timeouts = Timeouts(extensions.get("timeout") or {}, clock, inf if expires is None else expires, interrupt)
        changes = {**changes, "extensions": {**extensions, "timeout": timeouts}}
        name = self._balancer.options.deadline_header
        if name is not None and expires is not None:
            headers = request.headers.copy()
            seconds = expires - clock()
            said = read_header(name, headers.get(name))
            if said is None or said > seconds:  # one that was passed on, most likely; who says less means it
                headers[name] = write_header(name, seconds)
            changes["headers"] = headers
        return changes

    def _headed(self, body: Any, changes: Mapping[str, Any]) -> None:
        """The head of the response is here: from now on only the deadline of the whole call counts."""
        deadline = self._limits.deadline
        timeouts: Timeouts = changes["extensions"]["timeout"]
        timeouts.interrupt = None
        timeouts.expires = inf if deadline is None else deadline
        if deadline is not None:
            body.limit = self._balancer.clock, deadline

    def classify(self, response: Any, error: Exception | None) -> Verdict:
        """Say what a response or an error means for the endpoint and for another attempt."""
        if error is None:
            if self._succeeded(response):
                return SUCCEEDED
            status, retryable = response.status_code, self._retry.statuses
            return of_status(status, response.headers, retryable, time.time(), untouched=self._untouched)
        if self._body is not None and self._body.error is error:
            return Verdict(Outcome.IGNORED, f"{type(error).__name__} in the request body")
        if self._links.closed:
            return Verdict(Outcome.IGNORED, f"{type(error).__name__} after the client was closed")
        return self._flavour.errors.of(error, untouched=self._untouched, stale=error is self._stale)

    def _failed(self, error: BaseException, pick: Pick, *, kept: bool) -> None:
        """No evidence, if a kept connection broke: it may have been closed for having been idle, in the same moment.

        Nor if the server had said goodbye on it.
        """
        errors, body = self._flavour.errors, self._body
        ended = errors.said_goodbye(error) or ((kept or (body is not None and body.refused)) and errors.hung_up(error))
        if ended and (body is None or body.error is not error):
            self._stale = error
            pick.observe(_IGNORED)  # what the call reports will be the second, which does not count

    def classify_one(self, attempt: Attempt, response: Any, error: Exception | None) -> Verdict:
        """The same for one of several attempts at once."""
        return self.classify(response, error)

    @property
    def _untouched(self) -> bool:
        return self._body is not None and not self._body.begun


class _Made:
    """A first attempt that was made without a loop, and what came of it: the loop takes it over from there."""

    __slots__ = ("_error", "_response", "attempt")

    def __init__(self, attempt: Attempt, response: Any, error: Exception | None) -> None:
        self.attempt: Attempt = attempt
        self._response = response
        self._error = error

    def again(self) -> Any:
        """What came of it."""
        error, self._error = self._error, None  # kept, it would refer to itself through its traceback
        if error is not None:
            raise error
        return self._response


class Exchange(_Exchange[AnyRequest]):
    """The sync one."""

    __slots__ = ()

    def _one_shot(self) -> OneShotBody | None:
        stream = self._request.stream
        if not isinstance(stream, self._flavour.sync_stream):
            return None
        return self._flavour.one_shot_body(stream, rewinding(stream, self._flavour.chunks))

    def call(self, crew: Crew) -> Any:
        """Make the call; returns the response of the attempt that stands.

        Args:
            crew: Makes the attempts of a call that is hedged.
        """
        balancer = self._balancer
        pick = balancer.try_pick((), self._idempotent and self._replayable) if self._short else None
        if pick is None:
            steps = self._steps(None)
            if self._hedged and not crew.full:
                return drive_hedged(steps, self, partial(self.launch, crew), self.classify_one, self.discard)
            return drive(steps, self, self.send, self.classify, self.discard)
        trace = Trace(balancer.service, pick)
        limits, expires = self._limits, None
        if limits is not UNLIMITED:
            expires = limits.expiry(pick.started)
            if limits.over(pick.started):
                return self._go_on(_Made(Attempt(pick, 1, trace), None, None))
        try:
            response = self._send(pick, trace, expires)
        except Exception as error:
            made = _Made(Attempt(pick, 1, trace), None, error)
        except BaseException:
            pick.release(_IGNORED)
            raise
        else:
            status = response.status_code
            if status < 400 and status not in self._retry.statuses:
                succeed(balancer, pick, trace)
                return response
            made = _Made(Attempt(pick, 1, trace), response, None)
        return self._go_on(made)

    def _go_on(self, made: _Made) -> Any:
        def send(attempt: Attempt) -> Any:
            return made.again() if attempt is made.attempt else self.send(attempt)

        return drive(self._steps(made.attempt), self, send, self.classify, self.discard)

    def wait(self, timeout: float) -> bool:
        """Block until there are endpoints, at most `timeout` seconds.

        Raises:
            ClosedError: The client was closed.
        """
        return any(self._balancer.wait(seconds) for seconds in self._glances(timeout))

    def send(self, attempt: Attempt) -> Any:
        """Make one attempt."""
        return self._send(attempt.pick, attempt.trace, attempt.expires)

    def _send(self, pick: Pick, trace: Trace, expires: float | None, interrupt: Interrupt | None = None) -> Any:
        link, scheme, changes = self._address(pick, expires, interrupt)
        dialler = link.transport.dialler
        latest = dialler.latest
        try:
            response = link.transport.send(self._request, scheme, changes)
        except BaseException as error:
            self._failed(error, pick, kept=latest is dialler.latest)
            if self._links.give_back(link):
                close_retired(self._links)
            raise
        response.extensions["clientlb"] = trace
        balancer = self._balancer
        if balancer.wants_reports:
            balancer.note_load(pick.node, of_headers(response.headers, balancer.clock()))
        response.stream = self._flavour.response_body(response.stream, pick, self._flavour, self._links, link)
        if expires is not None or interrupt is not None:
            self._headed(response.stream, changes)
        return response

    def launch(self, crew: Crew, attempt: Attempt) -> Errand:
        """Make one attempt on a thread of its own."""
        interrupt = Interrupt()
        send = partial(self._send, attempt.pick, attempt.trace, attempt.expires, interrupt)
        return crew.send(send, interrupt.cut)

    def discard(self, response: Any) -> None:
        """Dispose of a response that is retried away."""
        try:
            response.stream.close()
        except Exception:
            _log.debug("a response that is not wanted could not be closed", exc_info=True)


class AsyncExchange(_Exchange[AnyRequest]):
    """The async one."""

    __slots__ = ()

    def _one_shot(self) -> AsyncOneShotBody | None:
        stream = self._request.stream
        return self._flavour.async_one_shot_body(stream) if isinstance(stream, self._flavour.async_stream) else None

    async def call(self) -> Any:
        """Make the call; returns the response of the attempt that stands."""
        balancer = self._balancer
        pick = balancer.try_pick((), self._idempotent and self._replayable) if self._short else None
        if pick is None:
            steps = self._steps(None)
            if self._hedged:
                hedged = drive_hedged_async(steps, self, self.send, self.classify_one, self.discard)
                return await self._settled(hedged)
            return await self._settled(drive_async(steps, self, self.send, self.classify, self.discard))
        trace = Trace(balancer.service, pick)
        limits, expires = self._limits, None
        if limits is not UNLIMITED:
            expires = limits.expiry(pick.started)
            if limits.over(pick.started):
                return await self._go_on(_Made(Attempt(pick, 1, trace), None, None))
        try:
            response = await self._send(pick, trace, expires)
        except Exception as error:
            made = _Made(Attempt(pick, 1, trace), None, error)
        except BaseException:
            pick.release(_IGNORED)
            raise
        else:
            status = response.status_code
            if status < 400 and status not in self._retry.statuses:
                succeed(balancer, pick, trace)
                if response.is_closed:  # made with its body: nobody will close its stream
                    await response.stream.aclose()
                return response
            made = _Made(Attempt(pick, 1, trace), response, None)
        return await self._go_on(made)

    async def _go_on(self, made: _Made) -> Any:
        async def send(attempt: Attempt) -> Any:
            return made.again() if attempt is made.attempt else await self.send(attempt)

        steps = self._steps(made.attempt)
        return await self._settled(drive_async(steps, self, send, self.classify, self.discard))

    async def wait_async(self, timeout: float) -> bool:
        """Wait until there are endpoints, at most `timeout` seconds.

        Raises:
            ClosedError: The client was closed.
        """
        for seconds in self._glances(timeout):
            if await self._balancer.wait_async(seconds):
                return True
        return False

    async def _settled(self, driven: Coroutine[Any, Any, Any]) -> Any:
        """What the long way comes to."""
        try:
            response = await driven
        except NotSentError as error:
            raise self._flavour.not_sent_error(error, self._request) from None
        if response.is_closed:
            await response.stream.aclose()
        return response

    async def send(self, attempt: Attempt) -> Any:
        """Make one attempt."""
        return await self._send(attempt.pick, attempt.trace, attempt.expires)

    async def _send(self, pick: Pick, trace: Trace, expires: float | None) -> Any:
        link, scheme, changes = self._address(pick, expires, None)
        dialler = link.transport.dialler
        latest = dialler.latest
        try:
            response = await link.transport.send(self._request, scheme, changes)
        except BaseException as error:
            self._failed(error, pick, kept=latest is dialler.latest)
            if self._links.give_back(link):
                await aclose_retired(self._links)
            raise
        response.extensions["clientlb"] = trace
        balancer = self._balancer
        if balancer.wants_reports:
            balancer.note_load(pick.node, of_headers(response.headers, balancer.clock()))
        response.stream = self._flavour.async_response_body(response.stream, pick, self._flavour, self._links, link)
        if expires is not None:
            self._headed(response.stream, changes)
        return response

    async def discard(self, response: Any) -> None:
        """Dispose of a response that is retried away."""
        try:
            await response.stream.aclose()
        except Exception:
            _log.debug("a response that is not wanted could not be closed", exc_info=True)
