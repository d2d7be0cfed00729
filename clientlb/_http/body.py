"""Streams around bodies, that notice how they end.

A call is in flight until the body of its response is closed, and a body that breaks off is bad news about the endpoint.
The body of a request that cannot be sent twice remembers whether it was begun. Sync and async come as a pair; each
flavour mixes its own base class in, because its client insists on it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from types import AsyncGeneratorType
from typing import TYPE_CHECKING, Any

from clientlb._http.links import Link, Links
from clientlb.forks import never_free
from clientlb.outcome import Outcome
from clientlb.pick import Pick

if TYPE_CHECKING:
    from clientlb._http.flavour import Flavour

_log = logging.getLogger("clientlb.http")


class _ResponseBody:
    """The body of a response that came from an endpoint.

    Args:
        stream: The transport's.
        pick: Released when the body is closed, or earlier as a failure if the body breaks off.
        flavour: Translates an exception and gives the verdict on it.
        links: Where the link belongs to; it is given back when the body is closed.
        link: What the response came through.
    """

    _cut_short = False
    """A cancellation or an interrupt came while it was read or closed, so httpcore may not know of its end."""

    def __init__(
        self,
        stream: Any,
        pick: Pick,
        flavour: Flavour,
        links: Links[Any],
        link: Link[Any],
    ) -> None:
        self._stream = stream
        self._pick = pick
        self._flavour = flavour
        self._links = links
        self._link: Link[Any] | None = link
        self.limit: tuple[Callable[[], float], float] | None = None
        """A clock, and the moment by which the body has to be read."""

    def _check(self) -> None:
        """End a body that comes in time byte by byte, but not as a whole."""
        if self.limit is not None and self.limit[0]() >= self.limit[1]:
            raise self._flavour.module.ReadTimeout("the deadline of the call was over before its body ended")

    def _broke_off(self, error: Exception) -> Exception:
        """Report an exception to the endpoint's health; returns what the caller is to see of it."""
        translated = self._flavour.core_errors.translated(error)
        verdict = self._flavour.errors.of(translated)
        # a second attempt is out of question by now, but the endpoint did fail
        outcome = Outcome.FAILURE if verdict.outcome is Outcome.RETRYABLE else verdict.outcome
        if self._links.closed:  # by us, then, and not by the endpoint
            outcome = Outcome.IGNORED
        self._pick.release(outcome, f"{verdict.reason} in the body")
        return translated


class ResponseBody(_ResponseBody):
    """The sync one."""

    def __iter__(self) -> Iterator[bytes]:
        parts = iter(self._stream)
        try:
            for part in parts:
                if self.limit is not None:
                    self._check()
                yield part
        except GeneratorExit:
            if self._links.inherited:
                never_free(parts)  # its end would be the end of the parent's response
            raise
        except Exception as error:
            translated = self._broke_off(error)
            if translated is error:
                raise
            raise translated from error
        except BaseException:
            self._cut_short = True
            raise

    def close(self) -> None:
        """End the call. In a child that was forked meanwhile it is the parent's, which ends it."""
        if self._links.inherited:
            never_free(self._stream)
            return
        link, self._link = self._link, None
        try:
            self._stream.close()
        except BaseException:
            self._cut_short = True
            raise
        finally:
            self._pick.release()
            if link is not None:
                try:
                    if self._cut_short:
                        link.transport.clean_up(self._stream)
                finally:
                    if self._links.give_back(link):
                        close_retired(self._links)


class AsyncResponseBody(_ResponseBody):
    """The async one. It is its own iterator: an async generator would cost every response several microseconds."""

    _parts: AsyncIterator[bytes] | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        self._parts = aiter(self._stream)
        return self

    async def __anext__(self) -> bytes:
        if self._parts is None:
            raise StopAsyncIteration
        try:
            if self.limit is not None:
                self._check()
            return await anext(self._parts)
        except StopAsyncIteration:
            self._parts = None
            raise
        except Exception as error:
            translated = self._broke_off(error)
            if translated is error:
                raise
            raise translated from error
        except BaseException:
            self._cut_short = True
            raise

    async def aclose(self) -> None:
        """End the call. In a child that was forked meanwhile it is the parent's, which ends it."""
        if self._links.inherited:
            never_free((self._stream, self._parts))
            return
        link, self._link = self._link, None
        try:
            try:
                if isinstance(self._parts, AsyncGeneratorType):  # it was left half-way
                    await self._parts.aclose()
            finally:  # also when that is cancelled
                await self._stream.aclose()
        except BaseException:
            self._cut_short = True
            raise
        finally:
            self._pick.release()
            if link is not None:
                try:
                    if self._cut_short:
                        await link.transport.clean_up(self._stream)
                finally:
                    if self._links.give_back(link):
                        await aclose_retired(self._links)


class _OneShotBody:
    """The body of a request that can be read only once, unless it is a file. It remembers how far it came.

    With a transport of the user's, httpcore itself sends a request again that an HTTP/2 connection did not take. A file
    would be empty by then.

    Args:
        stream: The caller's.
        rewind: Makes it ready to be read again; None if that is impossible.
    """

    refusal: type[Exception]
    """The flavour's `RemoteProtocolError`."""

    def __init__(self, stream: Any, rewind: Callable[[], object] | None = None) -> None:
        self._stream = stream
        self.rewind = rewind
        self.begun = False
        self.refused = False
        """It was to be read a second time, within one attempt."""
        self.error: Exception | None = None
        """What the caller's own code raised while the body was read: no fault of the endpoint's."""

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        if self.begun and self.rewind is None:
            self.refused = True
            raise self.refusal("Server disconnected before it took the request, whose body cannot be read again")
        try:
            if self.begun and self.rewind is not None:
                self.rewind()
            self.begun = True
            yield
        except Exception as error:
            self.error = error
            raise


class OneShotBody(_OneShotBody):
    """The sync one."""

    def __iter__(self) -> Iterator[bytes]:
        with self._reading():
            yield from self._stream

    def close(self) -> None:
        """Close the caller's stream."""
        self._stream.close()


class AsyncOneShotBody(_OneShotBody):
    """The async one."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with self._reading():
            async for part in self._stream:
                yield part

    async def aclose(self) -> None:
        """Close the caller's stream."""
        await self._stream.aclose()


def close_retired(links: Links[Any]) -> None:
    """Close transports whose endpoints have left. That this may fail is nobody's concern."""
    for transport in links.retired():
        try:
            transport.close()
        except Exception:
            _log.debug("a transport could not be closed", exc_info=True)


async def aclose_retired(links: Links[Any]) -> None:
    """The same for async transports, in their event loop. A cancellation is raised after the last of them."""
    cancelled: BaseException | None = None
    for transport in links.retired():
        try:
            await transport.aclose()
        except Exception:
            _log.debug("a transport could not be closed", exc_info=True)
        except BaseException as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
