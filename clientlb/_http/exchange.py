"""One logical request to a service, in the form that the loops of `clientlb.drive` want: send, classify, discard.

The base class has all that is decided, the two below it have the I/O.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import inf
from typing import Any, Generic, TypeVar

from clientlb._http.body import AsyncOneShotBody, OneShotBody, aclose_retired, close_retired
from clientlb._http.flavour import Flavour
from clientlb._http.links import Link, Links
from clientlb._http.message import AnyRequest, is_idempotent, is_replayable
from clientlb._http.timeouts import Interrupt, Timeouts
from clientlb._http.verdict import of_status
from clientlb.balancer import Balancer
from clientlb.call import Attempt, Steps, asked, call, deadline_of
from clientlb.crew import Crew, Errand
from clientlb.deadlines import write_header
from clientlb.options import CallOptions
from clientlb.outcome import SUCCEEDED, Outcome, Verdict

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


class _Exchange(ABC, Generic[AnyRequest]):
    """What sync and async share.

    Args:
        flavour: Of the client.
        balancer: Of the service.
        links: The transports to its endpoints.
        request: The caller's, which is never changed.
    """

    __slots__ = ("_balancer", "_body", "_deadline", "_flavour", "_links", "_request", "_retry", "hedged", "steps")

    def __init__(self, flavour: Flavour, balancer: Balancer, links: Links[Any], request: AnyRequest) -> None:
        given = request.extensions.get("clientlb")
        options = None if given is None else CallOptions.of(given)
        retry = balancer.options.retry if options is None else options.retry_options(balancer.options.retry)
        self._flavour = flavour
        self._balancer = balancer
        self._links = links
        self._request = request
        self._retry = retry
        replayable = is_replayable(request.stream, flavour.byte_stream)
        self._body: OneShotBody | AsyncOneShotBody | None = None if replayable else self._one_shot()
        seconds, timeout = balancer.options.deadline, balancer.options.attempt_timeout
        if options is not None:
            seconds, timeout = options.times(seconds, timeout)
        self._deadline = deadline_of(balancer, seconds)
        idempotent = is_idempotent(request, options, retry)
        self.hedged: bool = retry.hedge is not None and idempotent and replayable
        self.steps: Steps = call(
            balancer,
            idempotent=idempotent,
            replayable=replayable,
            retry=retry,
            deadline=self._deadline,
            attempt_timeout=timeout,
            request=None if options is None else asked(options.key, options.where),
        )

    @abstractmethod
    def _one_shot(self) -> OneShotBody | AsyncOneShotBody | None:
        """Wrap the body of the request; None if it is of the wrong kind, which the inner transport will say."""

    def _address(self, attempt: Attempt) -> tuple[Link[Any], bytes, Mapping[str, Any]]:
        """The transport of an attempt, taken, the scheme to the endpoint, and what of the request differs there."""
        request = self._request
        endpoint = attempt.pick.node.endpoint
        scheme, secure, wanted = _SCHEMES[request.url.scheme]
        changes = _NOTHING if self._body is None else {"stream": self._body}
        server_name: str | None = None
        if wanted or endpoint.secure:
            scheme = secure
            server_name = request.extensions.get("sni_hostname") or request.url.raw_host.decode("ascii")
            changes = {**changes, "extensions": {**request.extensions, "sni_hostname": server_name}}
        if attempt.expires is not None:
            changes = self._limited(attempt, changes)
        return self._links.take(self._balancer, endpoint, server_name), scheme, changes

    def _limited(self, attempt: Attempt, changes: Mapping[str, Any]) -> Mapping[str, Any]:
        """Let an attempt end in time, and tell the server, if that is wanted."""
        request, clock = self._request, self._balancer.clock
        assert attempt.expires is not None
        extensions = changes.get("extensions", request.extensions)
        timeouts = Timeouts(extensions.get("timeout") or {}, clock, attempt.expires)
        changes = {**changes, "extensions": {**extensions, "timeout": timeouts}}
        name = self._balancer.options.deadline_header
        if name is not None:
            headers = request.headers.copy()  # type: ignore[attr-defined]  # they are httpx's
            headers[name] = write_header(name, attempt.expires - clock())
            changes["headers"] = headers
        return changes

    def _headed(self, body: Any, changes: Mapping[str, Any]) -> None:
        """The head of the response is here: from now on only the deadline of the whole call counts."""
        deadline = self._deadline
        changes["extensions"]["timeout"].expires = inf if deadline is None else deadline
        if deadline is not None:
            body.limit = self._balancer.clock, deadline

    def classify(self, response: Any, error: Exception | None) -> Verdict:
        """Say what a response or an error means for the endpoint and for another attempt."""
        if error is None:
            status, retryable = response.status_code, self._retry.statuses
            if status < 400 and status not in retryable:
                return SUCCEEDED
            return of_status(status, response.headers, retryable, time.time(), untouched=self._untouched)
        if self._body is not None and self._body.error is error:
            return Verdict(Outcome.IGNORED, f"{type(error).__name__} in the request body")
        return self._flavour.errors.of(error, untouched=self._untouched)

    def classify_one(self, attempt: Attempt, response: Any, error: Exception | None) -> Verdict:
        """The same for one of several attempts at once."""
        return self.classify(response, error)

    @property
    def _untouched(self) -> bool:
        return self._body is not None and not self._body.begun


class Exchange(_Exchange[AnyRequest]):
    """The sync one."""

    __slots__ = ()

    def _one_shot(self) -> OneShotBody | None:
        stream = self._request.stream
        return self._flavour.one_shot_body(stream) if isinstance(stream, self._flavour.sync_stream) else None

    def send(self, attempt: Attempt) -> Any:
        """Make one attempt."""
        link, scheme, changes = self._address(attempt)
        try:
            response = link.transport.send(self._request, scheme, changes)
        except BaseException:
            if self._links.give_back(link):
                close_retired(self._links)
            raise
        response.extensions["clientlb"] = attempt.trace
        response.stream = self._flavour.response_body(response.stream, attempt.pick, self._flavour, self._links, link)
        if attempt.expires is not None:
            self._headed(response.stream, changes)
        return response

    def launch(self, crew: Crew, attempt: Attempt) -> Errand:
        """Make one attempt on a thread of its own."""
        interrupt = Interrupt(lambda: self.send(attempt))
        return crew.send(interrupt.run, interrupt.cut)

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

    async def send(self, attempt: Attempt) -> Any:
        """Make one attempt."""
        link, scheme, changes = self._address(attempt)
        try:
            response = await link.transport.send(self._request, scheme, changes)
        except BaseException:
            if self._links.give_back(link):
                await aclose_retired(self._links)
            raise
        response.extensions["clientlb"] = attempt.trace
        response.stream = self._flavour.async_response_body(
            response.stream, attempt.pick, self._flavour, self._links, link
        )
        if attempt.expires is not None:
            self._headed(response.stream, changes)
        return response

    async def discard(self, response: Any) -> None:
        """Dispose of a response that is retried away."""
        try:
            await response.stream.aclose()
        except Exception:
            _log.debug("a response that is not wanted could not be closed", exc_info=True)
