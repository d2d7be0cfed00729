"""What differs between asyncio and trio, in one place: sleeping, timeouts, tasks, threads, and many loops at once.

trio is never imported here. Whoever runs it has imported it, and an anyio program runs one of the two.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Hashable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from math import inf
from typing import Any, Protocol, TypeVar

Result = TypeVar("Result")
Covariant = TypeVar("Covariant", covariant=True)


async def sleep(seconds: float) -> None:
    """Sleep, in asyncio and in trio."""
    trio = _trio_of_this_task()
    await (asyncio.sleep(seconds) if trio is None else trio.sleep(seconds))


def timeout(seconds: float) -> AbstractAsyncContextManager[object]:
    """A block that ends in a `TimeoutError` when it takes longer."""
    trio = _trio_of_this_task()
    return asyncio.timeout(seconds) if trio is None else _trio_timeout(trio, seconds)


def start(function: Callable[[], Coroutine[Any, Any, Result]]) -> Task[Result]:
    """Start a task beside this one. Whoever starts it waits for its end, or cancels it: see `cancelled`."""
    trio = _trio_of_this_task()
    return asyncio.ensure_future(function()) if trio is None else _TrioTask(trio, function)


async def first_of(tasks: Iterable[Task[Result]], timeout: float | None) -> Task[Result] | None:
    """Wait until one of these tasks has ended; None when none has within `timeout` seconds."""
    trio = _trio_of_this_task()
    ended: Iterable[Any]
    if trio is None:
        ended, _ = await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)  # type: ignore[type-var]
    else:
        ended = await _first_of_trio(trio, tasks, timeout)
    return next(iter(ended), None)


async def cancelled(
    tasks: Collection[Task[Result]], discard: Callable[[Result], Awaitable[object]] | None = None
) -> None:
    """Cancel tasks and wait until they have ended.

    Args:
        tasks: From `start`.
        discard: Disposes of the result of a task that was faster than that.
    """
    for task in tasks:
        task.cancel()
    trio = _trio_of_this_task()
    with nullcontext() if trio is None else trio.CancelScope(shield=True):
        if trio is None:
            await asyncio.wait(tasks)  # type: ignore[type-var]
        for task in tasks:
            if isinstance(task, _TrioTask):
                await task.ended.wait()
            succeeded = _result_of(task)  # else asyncio complains that nobody looked at its error
            if discard is not None and succeeded is not None:
                await discard(*succeeded)


async def to_thread(function: Callable[[], Result]) -> Result:
    """Run a function in a thread, so that the event loop goes on meanwhile."""
    trio = _trio_of_this_task()
    if trio is None:
        return await asyncio.to_thread(function)
    result: Result = await trio.to_thread.run_sync(function)
    return result


def in_trio() -> bool:
    """Whether this is a task of trio."""
    return _trio_of_this_task() is not None


def running_loop() -> Hashable:
    """What tells the event loop of this task from all others: asyncio's loop, or the token of a run of trio.

    Raises:
        RuntimeError: No event loop runs here.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        trio = _trio_of_this_task()  # asked last: it takes a microsecond
        if trio is None:
            raise
        token: Hashable = trio.lowlevel.current_trio_token()
        return token


def is_over(loop: Any) -> bool:
    """Whether an event loop that `running_loop` named will never run again."""
    if isinstance(loop, asyncio.AbstractEventLoop):
        return loop.is_closed()
    return not _run_soon(loop, _nothing)


def run_in(loop: Any, function: Callable[..., Awaitable[object]], *arguments: object) -> None:
    """Let another event loop run a coroutine function, if it runs at all. Nobody waits for the end."""
    if not isinstance(loop, asyncio.AbstractEventLoop):
        _run_soon(loop, sys.modules["trio"].lowlevel.spawn_system_task, function, *arguments)
    elif loop.is_running():
        asyncio.run_coroutine_threadsafe(_awaited(function, *arguments), loop)


class Task(Protocol[Covariant]):
    """What is used of `asyncio.Task`."""

    def result(self) -> Covariant:
        """What it returned; raises what it raised. Only after it has ended."""
        ...

    def cancel(self) -> object:
        """Let it end soon."""
        ...


class _TrioTask:
    """The same in trio. It is a task of the run, not of a nursery: whoever starts it waits for it in any case."""

    def __init__(self, trio: Any, function: Callable[[], Awaitable[Any]]) -> None:
        self._trio = trio
        self._function = function
        self._scope = trio.CancelScope()
        self.ended = trio.Event()
        self.woken = self.ended
        self.outcome: Any = None
        self.error: BaseException | None = None
        trio.lowlevel.spawn_system_task(self._run, context=contextvars.copy_context())

    async def _run(self) -> None:
        try:
            with self._scope:
                self.outcome = await self._function()
            if self._scope.cancelled_caught:
                self.error = asyncio.CancelledError()
        except BaseException as error:
            self.error = error
            if isinstance(error, self._trio.Cancelled):  # the run itself ends
                raise
        finally:
            self.ended.set()
            self.woken.set()

    def result(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.outcome

    def cancel(self) -> None:
        self._scope.cancel()


async def _first_of_trio(trio: Any, tasks: Iterable[Any], timeout: float | None) -> list[Any]:
    woken = trio.Event()
    for task in tasks:
        task.woken = woken
    if not any(task.ended.is_set() for task in tasks):
        with trio.move_on_after(inf if timeout is None else timeout):
            await woken.wait()
    return [task for task in tasks if task.ended.is_set()]


def _result_of(task: Task[Result]) -> tuple[Result] | None:
    try:
        return (task.result(),)
    except BaseException:
        return None


@asynccontextmanager
async def _trio_timeout(trio: Any, seconds: float) -> AsyncIterator[None]:
    with trio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise TimeoutError


class AsyncWaiters:
    """Coroutines that wait for a condition; `wake` may be called from any thread."""

    __slots__ = ("_lock", "_wakers")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wakers: set[Callable[[], None]] = set()

    async def wait(self, condition: Callable[[], bool], timeout: float) -> None:
        """Wait until `wake` is called, at most `timeout` seconds; return at once if the condition already holds."""
        trio = _trio_of_this_task()
        wait, waker = _one_wait() if trio is None else _one_trio_wait(trio)
        with self._lock:
            self._wakers.add(waker)
        try:
            if not condition():  # asked again: it may have come true before the waker was added
                await wait(timeout)
        finally:
            with self._lock:
                self._wakers.discard(waker)

    def wake(self) -> None:
        """Wake everybody who waits."""
        with self._lock:
            wakers, self._wakers = self._wakers, set()
        for waker in wakers:
            waker()


_Wait = tuple[Callable[[float], Awaitable[object]], Callable[[], None]]


def _one_wait() -> _Wait:
    """How a task of asyncio waits, and how any thread wakes it."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    async def wait(timeout: float) -> None:
        await asyncio.wait([future], timeout=timeout)

    def wake() -> None:
        try:
            loop.call_soon_threadsafe(_finish, future)
        except RuntimeError:
            pass  # its loop was closed meanwhile, so nobody waits any more

    return wait, wake


def _one_trio_wait(trio: Any) -> _Wait:
    """The same for a task of trio."""
    token = trio.lowlevel.current_trio_token()
    event = trio.Event()

    async def wait(timeout: float) -> None:
        with trio.move_on_after(timeout):
            await event.wait()

    def wake() -> None:
        _run_soon(token, event.set)

    return wait, wake


def _run_soon(token: Any, function: Callable[..., object], *arguments: object) -> bool:
    """Call a function in a run of trio; False if that is over."""
    try:
        token.run_sync_soon(function, *arguments)
    except sys.modules["trio"].RunFinishedError:
        return False
    return True


def _trio_of_this_task() -> Any:
    """The module trio if this task is one of trio's, else None."""
    trio: Any = sys.modules.get("trio")
    return trio if trio is not None and trio.lowlevel.in_trio_task() else None


async def _awaited(function: Callable[..., Awaitable[object]], *arguments: object) -> None:
    await function(*arguments)


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _nothing() -> None:
    pass
