"""What is known of each watched service, and what of that has to be read again. No I/O, no clock of its own.

An event of ZooKeeper always means "read this again", never "this is what happened": a node deleted and made again
between two reads would otherwise look unchanged. So events only leave marks here, and one thread takes them off:

    event(path) ─► marks of the services at this path and above it ─► queue ─► take() ─► Errand, read by the watcher
    renew() ────► every service, entirely ─────────────────────────────┘   postpone(), remind() ◄┘ later again
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from clientlb.discovery._backoff import Backoff
from clientlb.discovery.decode import InstanceDecoder
from clientlb.discovery.feed import Feed
from clientlb.endpoint import Endpoint

_FIRST_REMINDER, _LAST_REMINDER = 1.0, 30.0  # seconds; ZooKeeper has no event for a change of ACLs


@dataclass(eq=False)
class View:
    """One watched service: where it is, what is known of it, and who is told.

    `known` and `epoch` belong to the thread that reads; the marks to the agenda.
    """

    path: str
    decoder: InstanceDecoder
    feed: Feed
    known: dict[str, Endpoint | None] = field(default_factory=dict)
    """Instances by name; None for one that must not get calls."""
    epoch: int = 0
    """The connection in which all of `known` was read; 0 is none."""
    backoff: Backoff = field(default_factory=Backoff)
    denied: set[str] = field(default_factory=set)
    """Instances that are there and may not be read."""
    reminders: Backoff = field(default_factory=lambda: Backoff(_FIRST_REMINDER, _LAST_REMINDER))
    reminded: bool = False
    """There is a reminder of those that were denied."""
    list_again: bool = True
    read_again: set[str] = field(default_factory=set)
    postponed: bool = False
    """It could not be read, and is read again when its pause is over, whatever happens meanwhile."""
    _ids_are_names: bool = True

    def learn(self, name: str, data: bytes) -> None:
        """Note what an instance says."""
        endpoint = self.decoder.decode(name, data)
        self.known[name] = endpoint
        self.denied.discard(name)
        if endpoint is not None and endpoint.id != name:
            self._ids_are_names = False

    def lose(self, names: Iterable[str]) -> None:
        """Note that instances are gone."""
        names = list(names)
        for name in names:
            self.known.pop(name, None)
            self.denied.discard(name)
        self.decoder.forget(names)

    def deny(self, names: Iterable[str]) -> None:
        """Note that instances are there and may not be read."""
        for name in names:
            self.known.pop(name, None)
            self.denied.add(name)
            self.decoder.leave_out(name, "its ACL does not let us read it")

    def deliver(self) -> None:
        """Tell who can take calls, in an order that changes as little as the list."""
        endpoints = [endpoint for endpoint in self.known.values() if endpoint is not None]
        self.feed.update(self.decoder.weighted(endpoints), distinct=self._ids_are_names)


@dataclass(frozen=True)
class Errand:
    """What has to be read of one service: its list, and these instances anyway."""

    view: View
    listing: bool
    names: frozenset[str]


class Agenda:
    """The watched services of one connection, and which of them have to be read. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._views: dict[str, list[View]] = defaultdict(list)  # by path
        self._queue: dict[View, None] = {}  # in the order of their marks: nobody waits for ever
        self._later: list[tuple[float, int, View, bool]] = []  # a heap; at the end whether it is a reminder
        self._numbers = itertools.count()

    def add(self, view: View) -> None:
        """Begin to watch a service: all of it has to be read."""
        with self._lock:
            self._views[view.path].append(view)
            self._queue[view] = None

    def remove(self, view: View) -> bool:
        """Forget a service; True if nobody else watches its path."""
        with self._lock:
            views = self._views.get(view.path, [])
            if view not in views:
                return False
            views.remove(view)
            self._queue.pop(view, None)
            self._later = [each for each in self._later if each[2] is not view]
            heapq.heapify(self._later)
            if not views:
                del self._views[view.path]
            return not views

    def watches(self, path: str) -> bool:
        """Whether somebody watches the service at this path."""
        with self._lock:
            return path in self._views

    def __iter__(self) -> Iterator[View]:
        with self._lock:
            return iter([view for views in self._views.values() for view in views])

    def event(self, path: str) -> bool:
        """Note that something happened to a node; True if that concerns somebody."""
        parent, _, name = path.rpartition("/")
        with self._lock:
            # `get`: a look must not add to the dictionary
            at, above = self._views.get(path, ()), self._views.get(parent, ())
            for view in at:
                view.list_again = True
            for view in above:
                view.read_again.add(name)
            for view in (*at, *above):
                if not view.postponed:
                    self._queue[view] = None
            return bool(at or above)

    def renew(self) -> None:
        """Note that everything has to be read: there is a new connection."""
        with self._lock:
            self._later.clear()
            for views in self._views.values():
                for view in views:
                    view.list_again, view.postponed, view.reminded = True, False, False
                    self._queue[view] = None

    def postpone(self, view: View, until: float) -> None:
        """Read all of a service later, for it could not be read now."""
        with self._lock:
            if view in self._views.get(view.path, ()):
                view.list_again = view.postponed = True
                self._queue.pop(view, None)
                heapq.heappush(self._later, (until, next(self._numbers), view, False))

    def remind(self, view: View, now: float) -> None:
        """Read those that were denied again after a pause. Until then the service is read as ever."""
        with self._lock:
            if not view.denied:
                view.reminders.succeeded()
            elif not view.reminded and view in self._views.get(view.path, ()):
                view.reminded = True
                heapq.heappush(self._later, (now + view.reminders.failed(), next(self._numbers), view, True))

    def due(self) -> float | None:
        """When the first of those that were postponed, or are reminded of, is to be read."""
        with self._lock:
            return self._later[0][0] if self._later else None

    def take(self, limit: int, now: float) -> list[Errand]:
        """Take what has to be read, of at most `limit` services, the longest marked first."""
        with self._lock:
            while self._later and self._later[0][0] <= now:
                _, _, view, is_reminder = heapq.heappop(self._later)
                if is_reminder:
                    view.reminded = False
                    view.read_again |= view.denied
                else:
                    view.postponed = False
                if not view.postponed:
                    self._queue[view] = None
            views = list(itertools.islice(self._queue, limit))
            return [self._errand(view) for view in views]

    def give_back(self, view: View) -> None:
        """Put a service on the agenda again that was taken and not read."""
        with self._lock:
            if view in self._views.get(view.path, ()):
                view.list_again = True
                self._queue[view] = None

    def _errand(self, view: View) -> Errand:
        del self._queue[view]
        errand = Errand(view, view.list_again, frozenset(view.read_again))
        view.list_again, view.read_again = False, set()
        return errand
