"""Who is told, in a forked child, that it is one: whatever has locks, threads or connections of its parent.

One hook for the process, set at the first use: nothing happens at import.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

Owner = TypeVar("Owner")
_log = logging.getLogger("clientlb")


_alive: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()
_hook_set = False
_never_freed: list[Any] = []


def survive_forks(owner: Owner, after_fork: Callable[[Owner], None]) -> None:
    """Call `after_fork(owner)` in every child that is forked while the owner exists, before the child's code goes on.

    It makes anew what does not survive a fork, without I/O and without the parent's locks.
    """
    global _hook_set
    _alive[owner] = after_fork
    if not _hook_set:
        _hook_set = True
        os.register_at_fork(after_in_child=_renew_all)


def never_free(inherited: Any) -> None:
    """Keep what belongs to the parent: freed in a child, it would close things, and perhaps wait for a lock."""
    _never_freed.append(inherited)


def _renew_all() -> None:
    if "grpc" in sys.modules:
        # what the parent has left to the garbage collector stays: freed here, channels of grpc.aio wait for ever for a
        # thread that only the parent has
        gc.freeze()
    for owner, after_fork in list(_alive.items()):
        try:
            after_fork(owner)
        except Exception:
            _log.exception("%r does not work in this forked child", owner)
