"""A signal that ends the program waits until the servers in it have left their registries.

The handler runs in the main thread between any two instructions, so it takes no lock and only wakes a thread. That one
leaves, while the main thread goes on serving, and then sends the signal again: now it reaches whoever had it before.
A second signal from outside goes straight through: whoever sends two is in a hurry.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Iterable
from types import FrameType
from typing import Protocol

from clientlb.errors import ConfigurationError

logger: logging.Logger = logging.getLogger("clientlb.registration")


class Leaver(Protocol):
    """Something that leaves before the program ends."""

    def leave(self) -> None:
        """Leave; may take up to `longest_leave` seconds."""

    @property
    def longest_leave(self) -> float:
        """Seconds after which nobody waits for `leave`."""

    @property
    def ends_program(self) -> bool:
        """It has left, and with it the program ends by itself: nothing must kill it."""


def checked_signals(signals: Iterable[int]) -> tuple[signal.Signals, ...]:
    """Return the signals.

    Raises:
        ConfigurationError: One of them does not exist, or no program can catch it.
    """
    try:
        checked = tuple(signal.Signals(number) for number in signals)
    except (TypeError, ValueError):
        raise ConfigurationError(f"signals is {signals!r}; give such as (signal.SIGTERM, signal.SIGINT)") from None
    if uncatchable := {signal.SIGKILL, signal.SIGSTOP}.intersection(checked):
        raise ConfigurationError(f"signals has {uncatchable.pop().name}, which no program can catch")
    return checked


def hold(leaver: Leaver, signals: Iterable[signal.Signals]) -> None:
    """Let these signals wait for the leaver, where that is possible: in the main thread, before Python's own handlers.

    A handler of asyncio's `add_signal_handler` cannot be held back: such a program leaves by itself, with `aleave()`.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in signals:
        hook = _hooks.get(number)
        if hook is not None:
            hook.step_aside_if_idle()  # else every registration that another thread ends leaves a handler to the next
        previous = signal.getsignal(number)
        if previous is None or getattr(previous, "__name__", "") == "_sighandler_noop":
            logger.debug("%s is handled by somebody who cannot be made to wait", number.name)
            continue
        if previous is signal.SIG_IGN:
            continue  # whoever ignores it does not leave because of it
        if hook is None or not hook.is_installed:
            hook = _hooks[number] = _Hook(number)
        hook.leavers.append(leaver)


def release(leaver: Leaver) -> None:
    """Nothing waits for the leaver any more. The last one puts the handler back that was there before."""
    for hook in list(_hooks.values()):
        hook.release(leaver)


class _Hook:
    def __init__(self, number: signal.Signals) -> None:
        self.leavers: list[Leaver] = []
        self._number = number
        self._pid = os.getpid()
        self._told: queue.SimpleQueue[bool] = queue.SimpleQueue()  # the one queue that a signal handler may use
        self._is_told = False
        threading.Thread(target=self._run, name=f"clientlb-{number.name}", daemon=True).start()
        self._handler = self._handle  # one object, to be known again
        self._previous = signal.signal(number, self._handler)

    @property
    def is_installed(self) -> bool:
        return bool(self.leavers) and os.getpid() == self._pid and signal.getsignal(self._number) is self._handler

    def release(self, leaver: Leaver) -> None:
        if os.getpid() != self._pid:
            return
        if leaver in self.leavers:
            self.leavers.remove(leaver)
            if not self.leavers:
                self._told.put(False)
        if threading.current_thread() is threading.main_thread():
            self.step_aside_if_idle()

    def step_aside_if_idle(self) -> None:
        """Put the handler back that was there before, unless somebody has put in another one. In the main thread only;
        until then ours hands everything on."""
        if not self.leavers and signal.getsignal(self._number) is self._handler:
            signal.signal(self._number, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._is_told or not self.leavers or os.getpid() != self._pid:
            self._hand_on(number, frame)
        else:
            self._is_told = True
            self._told.put(True)

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        self.step_aside_if_idle()
        if callable(self._previous):
            self._previous(number, frame)
        elif self._previous is signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def _run(self) -> None:
        if not self._told.get():
            return
        leavers = list(self.leavers)
        logger.info("%s: leaving before it is obeyed", self._number.name)
        threads = [threading.Thread(target=leaver.leave, name="clientlb-leave", daemon=True) for leaver in leavers]
        deadline = time.monotonic() + max((leaver.longest_leave for leaver in leavers), default=0.0)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        would_kill = self._previous in (signal.SIG_DFL, signal.default_int_handler)
        in_time = not any(thread.is_alive() for thread in threads)
        if would_kill and in_time and leavers and all(leaver.ends_program for leaver in leavers):
            return
        # to the main thread itself: sent to the process, it would not wake a main thread that waits for a socket
        signal.pthread_kill(threading.main_thread().ident or 0, self._number)


_hooks: dict[signal.Signals, _Hook] = {}
