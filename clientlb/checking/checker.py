"""The thread on which all checks of a `Services` run: an event loop of its own, with one task per endpoint.

It starts with the first service whose options have a check, and ends with `close`. What belongs to one process is a
`_Runner`; a forked child leaves the parent's alone and begins another one at its first use of a service.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import random
import selectors
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from clientlb.balancer import Balancer
from clientlb.check_options import Check, GrpcCheck
from clientlb.checking.net import Asked, ask, close_inherited, words_of
from clientlb.forks import never_free
from clientlb.health.checkup import Finding, first_delay, next_delay
from clientlb.node import Node

_log = logging.getLogger("clientlb.checking")

_AT_ONCE = 128
"""Checks that may be under way together, over all services."""
_LOOKUPS = 4
"""Host names that may be looked up together; addresses need no looking up."""


class Checker:
    """Checks the endpoints of balancers that have a check among their options. Thread-safe."""

    def __init__(self) -> None:
        self._closed = False
        self._runner: _Runner | None = None
        self._renew()

    def watch(self, balancer: Balancer) -> None:
        """Begin to check the endpoints of a balancer. Does nothing if it has no check, or is checked already.

        Raises:
            ImportError: The check needs a package that is not installed.
        """
        check = balancer.options.health.check
        if check is None:
            return
        if isinstance(check, GrpcCheck):
            importlib.import_module("clientlb.checking.grpc")  # fails here, where the user can see it
        with self._lock:
            if self._closed:
                return
            self._balancers[balancer.service] = balancer
            if self._runner is None:
                self._runner = _Runner()
            self._runner.soon(self._runner.follow, balancer, check)

    def changed(self, service: str) -> None:
        """Note that the endpoints of a service are others than before."""
        balancer = self._balancers.get(service)
        if balancer is not None:
            self.watch(balancer)

    def close(self) -> None:
        """Check nobody any more: end the thread and close the connections. Idempotent."""
        with self._lock:
            self._closed = True
            self._balancers.clear()
            runner, self._runner = self._runner, None
        if runner is not None:
            runner.end()

    def after_fork(self) -> None:
        """In a forked child: there is no thread. Whoever is used again is checked again: `watch`."""
        if self._runner is not None:
            self._runner.forsake()
        self._renew()

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._balancers: dict[str, Balancer] = {}
        self._runner = None


class _Runner:
    """The thread of one process, its loop and its tasks. All methods but those of its outside run on that thread."""

    def __init__(self) -> None:
        self._rng = random.Random()
        self._selector = selectors.DefaultSelector()
        self._loop = asyncio.SelectorEventLoop(self._selector)
        self._loop.set_default_executor(ThreadPoolExecutor(_LOOKUPS, "clientlb-check-lookup"))
        self._tasks: dict[str, dict[Node, asyncio.Task[None]]] = {}
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._asked = Asked()
        self._thread = threading.Thread(target=self._run, name="clientlb-checks", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------ its outside

    def soon(self, work: Callable[..., object], *arguments: Any) -> None:
        """Have something done on the thread."""
        self._loop.call_soon_threadsafe(work, *arguments)

    def end(self) -> None:
        """End the thread, with all that it has open."""
        self.soon(self._loop.stop)
        if self._thread is not threading.current_thread():
            self._thread.join()

    def forsake(self) -> None:
        """In a forked child: close our copies of what belongs to the parent, and never touch the rest."""
        never_free(self)
        close_inherited(self._asked)
        self._selector.close()

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(_cancel_all())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()  # waits for no host name that is being looked up

    def follow(self, balancer: Balancer, check: Check) -> None:
        """Check whoever is there now, and nobody else."""
        tasks = self._tasks.setdefault(balancer.service, {})
        nodes = balancer.nodes
        present = frozenset(nodes)
        for node in [node for node in tasks if node not in present]:
            tasks.pop(node).cancel()
        joiners = [node for node in nodes if node not in tasks]
        for node in joiners:
            delay = first_delay(len(joiners), check, self._rng)
            tasks[node] = self._loop.create_task(self._look_after(balancer, check, node, delay))

    async def _look_after(self, balancer: Balancer, check: Check, node: Node, delay: float) -> None:
        await asyncio.sleep(delay)
        try:
            if isinstance(check, GrpcCheck):
                await self._look_after_grpc(balancer, check, node)
            else:
                await self._check(
                    balancer, check, node, lambda: ask(check, balancer.service, node.endpoint, self._asked)
                )
        except Exception:
            _log.exception("service %r: %s is not checked any more", balancer.service, node.endpoint)

    async def _look_after_grpc(self, balancer: Balancer, check: GrpcCheck, node: Node) -> None:
        from clientlb.checking.grpc import listen, questions

        if check.watch:
            await listen(check, balancer, node, self._rng)
        else:
            async with questions(check, balancer.service, node.endpoint) as ask_once:
                await self._check(balancer, check, node, ask_once)

    async def _check(
        self, balancer: Balancer, check: Check, node: Node, ask_once: Callable[[], Awaitable[None]]
    ) -> None:
        """Check an endpoint again and again."""
        checks = 0
        due = balancer.clock()
        while True:
            async with self._room:
                began = balancer.clock()
                reason = await _why_not(ask_once, check)
            checks += 1
            due = max(due + next_delay(checks, check, self._rng), balancer.clock())
            balancer.checked(node, Finding(reason is None, began, reason or "", next_at=due))
            await asyncio.sleep(due - balancer.clock())


async def _why_not(ask_once: Callable[[], Awaitable[None]], check: Check) -> str | None:
    """Check an endpoint once. Returns why it failed, or None."""
    try:
        await ask_once()
    except Exception as error:
        return words_of(error, check)
    return None


async def _cancel_all() -> None:
    """End every task; those that are about to end are not disturbed."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        if not task.cancelling():
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
