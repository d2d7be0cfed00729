"""What several users in one process have in common, made for the first of them and closed with the last.

A forked child has none of its parent's threads and must not touch its sockets: it forgets what there was, and whoever
needs it makes it anew.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar


class Closable(Protocol):
    """What can be shared. `close` returns at once."""

    def close(self) -> None:
        """Release it."""


V = TypeVar("V", bound=Closable)


class Loan(Generic[V]):
    """One user's share of a common thing, until `give_back`."""

    def __init__(self, value: V, give_back: Callable[[], None]) -> None:
        self.value = value
        self._pid = os.getpid()
        self._give_back: Callable[[], None] | None = give_back

    @property
    def valid(self) -> bool:
        """Whether it can be used: not given back, and not inherited from a parent process."""
        return self._give_back is not None and self._pid == os.getpid()

    def give_back(self) -> None:
        """End the use. Idempotent; in a forked child it touches nothing."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None and self._pid == os.getpid():
            give_back()


class Shared(Generic[V]):
    """The common things of one kind, by what their users must agree on."""

    def __init__(self) -> None:
        self._watches_forks = False
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._things: dict[Hashable, V] = {}
        self._users: dict[Hashable, int] = {}

    def borrow(self, key: Hashable, make: Callable[[], V]) -> Loan[V]:
        """Return the thing of this key, made with `make` if there is none. Whatever `make` raises is passed on."""
        with self._lock:
            if not self._watches_forks:
                os.register_at_fork(after_in_child=self._forget)
                self._watches_forks = True
            if key not in self._things:
                self._things[key] = make()
                self._users[key] = 0
            self._users[key] += 1
            return Loan(self._things[key], lambda: self._return(key))

    def _return(self, key: Hashable) -> None:
        with self._lock:
            self._users[key] -= 1
            if self._users[key]:
                return
            del self._users[key]
            thing = self._things.pop(key)
        thing.close()
