"""Request streams that can be sent a second time as long as only their first message was taken.

A stream of requests is one-shot, but gRPC takes its first message before it knows whether it can connect. That message
is kept, so that a refused connection costs a streaming call as little as any other. With the second message taken, the
stream belongs to the attempt that took it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Any


class Requests:
    """A stream of requests for the attempts of one call.

    Args:
        source: The caller's.
    """

    def __init__(self, source: Iterable[Any]) -> None:
        self._source = iter(source)
        self._lock = threading.Lock()  # an abandoned attempt may still wait for the first message
        self._first: list[Any] = []
        self._taken = 0
        self._exhausted = False

    @property
    def replayable(self) -> bool:
        """Nothing but the first message was taken."""
        return self._taken <= 1

    def __iter__(self) -> Iterator[Any]:
        """The stream for one attempt."""
        with self._lock:
            if not self._first and not self._exhausted:
                for message in self._source:
                    self._first.append(message)
                    self._taken = 1
                    break
                else:
                    self._exhausted = True
        yield from self._first
        if not self._exhausted:
            self._first = []
            self._taken = 2
            yield from self._source


class AsyncRequests:
    """The same for coroutines; the caller's stream may be asynchronous or not."""

    def __init__(self, source: AsyncIterable[Any] | Iterable[Any]) -> None:
        self._source = aiter(source) if isinstance(source, AsyncIterable) else _asynchronous(source)
        self._lock = asyncio.Lock()
        self._first: list[Any] = []
        self._taken = 0
        self._exhausted = False

    @property
    def replayable(self) -> bool:
        """Nothing but the first message was taken."""
        return self._taken <= 1

    async def __aiter__(self) -> AsyncIterator[Any]:
        """The stream for one attempt."""
        async with self._lock:
            if not self._first and not self._exhausted:
                async for message in self._source:
                    self._first.append(message)
                    self._taken = 1
                    break
                else:
                    self._exhausted = True
        for message in self._first:
            yield message
        if not self._exhausted:
            self._first = []
            self._taken = 2
            async for message in self._source:
                yield message


async def _asynchronous(source: Iterable[Any]) -> AsyncIterator[Any]:
    for message in source:
        yield message
