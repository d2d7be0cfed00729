"""Request streams that can be sent a second time while only a few of their messages were taken.

A stream of requests is one-shot, but gRPC takes its first messages before it knows whether it can connect. So the first
few are kept, and a refused connection costs a streaming call as little as any other. When more were taken, the stream
belongs to the attempt that took them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Any

KEPT = 8


class _Replay:
    """The messages taken so far. Attempts take turns at it under a lock, the last one being the owner.

    An attempt that was given up may still wait for a message from the caller; what it gets is kept for its successor.
    """

    def __init__(self) -> None:
        self.kept: list[Any] = []
        self.owner = 0
        self.replayable = True
        self.exhausted = False

    def enter(self) -> int:
        """A new attempt takes over; returns its number."""
        self.owner += 1
        return self.owner

    def add(self, message: Any, attempt: int) -> None:
        """A message was taken from the caller."""
        if not self.replayable:
            return
        self.kept.append(message)
        if len(self.kept) > KEPT and attempt == self.owner:
            self.replayable = False
            self.kept = []


class Requests:
    """A stream of requests for the attempts of one call.

    Args:
        source: The caller's.
    """

    def __init__(self, source: Iterable[Any]) -> None:
        self._source = iter(source)
        self._lock = threading.Lock()
        self._replay = _Replay()

    @property
    def replayable(self) -> bool:
        """Another attempt would get the whole stream."""
        return self._replay.replayable

    def __iter__(self) -> Iterator[Any]:
        """The stream for one attempt."""
        return self._stream(self._replay.enter())

    def _stream(self, attempt: int) -> Iterator[Any]:
        replay = self._replay
        index = 0
        while True:
            with self._lock:
                if index < len(replay.kept):
                    message = replay.kept[index]
                elif replay.exhausted:
                    return
                else:
                    try:
                        message = next(self._source)
                    except StopIteration:
                        replay.exhausted = True
                        return
                    replay.add(message, attempt)
            index += 1
            yield message


class AsyncRequests:
    """The same for coroutines; the caller's stream may be asynchronous or not."""

    def __init__(self, source: AsyncIterable[Any] | Iterable[Any]) -> None:
        self._source = aiter(source) if isinstance(source, AsyncIterable) else _asynchronous(source)
        self._lock = asyncio.Lock()
        self._replay = _Replay()

    @property
    def replayable(self) -> bool:
        """Another attempt would get the whole stream."""
        return self._replay.replayable

    def __aiter__(self) -> AsyncIterator[Any]:
        """The stream for one attempt."""
        return self._stream(self._replay.enter())

    async def _stream(self, attempt: int) -> AsyncIterator[Any]:
        replay = self._replay
        index = 0
        while True:
            async with self._lock:
                if index < len(replay.kept):
                    message = replay.kept[index]
                elif replay.exhausted:
                    return
                else:
                    try:
                        message = await anext(self._source)
                    except StopAsyncIteration:
                        replay.exhausted = True
                        return
                    replay.add(message, attempt)
            index += 1
            yield message


async def _asynchronous(source: Iterable[Any]) -> AsyncIterator[Any]:
    for message in source:
        yield message
