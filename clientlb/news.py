"""News: the side of discovery. What a registry delivers passes the guard and changes the roster.

The guard (`clientlb.guard`) holds back what looks like the echo of an outage. What is new in a list is found before the
lock is taken, so a list of thousands keeps no call waiting.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from math import inf

from clientlb import events
from clientlb.arrival import Arrival
from clientlb.endpoint import Endpoint
from clientlb.guard import Guard, Held, Key, Verdict
from clientlb.node import Node
from clientlb.options import GuardOptions
from clientlb.outbox import Outbox
from clientlb.roster import Roster


class News:
    """What the registry of one service said so far, and what is made of it.

    Args:
        service: Its name.
        options: Of the guard.
        roster: Whom it changes.
        outbox: Takes the events.
        clock: The balancer's.
        keep: Called without the lock when the list that the registry stands for has changed or was confirmed for the
            first time.

    Attributes:
        arrival: Those who wait for the first list.
        updated_at: When discovery last delivered a list, in seconds of the clock.
        failing_since: When discovery began to fail, if it fails now.
        last_error: What discovery last complained about, if it fails now.
        cached_since: Since when a list of an earlier time is used, while it is.
    """

    __slots__ = (
        "_cached_true_at",
        "_clock",
        "_closed",
        "_first_list",
        "_guard",
        "_keep",
        "_one_at_a_time",
        "_options",
        "_outbox",
        "_roster",
        "_service",
        "_spare",
        "_spare_wanted",
        "_to_keep",
        "arrival",
        "cached_since",
        "failing_since",
        "last_error",
        "updated_at",
    )

    def __init__(
        self,
        service: str,
        options: GuardOptions,
        roster: Roster,
        outbox: Outbox,
        clock: Callable[[], float],
        keep: Callable[[], None],
    ) -> None:
        self._service = service
        self._options = options
        self._guard = Guard(options)
        self._roster = roster
        self._outbox = outbox
        self._clock = clock
        self._keep = keep
        self._closed = False
        self._first_list = True
        self._spare: tuple[tuple[Endpoint, ...], float] | None = None
        self._spare_wanted = False
        self._to_keep = False
        self._cached_true_at = 0.0
        self.arrival: Arrival = Arrival(self._want_spare)
        self.updated_at: float | None = None
        self.failing_since: float | None = None
        self.last_error: Exception | None = None
        self.cached_since: float | None = None
        # one piece of news at a time; picks go on meanwhile. Taken before the lock
        self._one_at_a_time = threading.RLock()

    # ------------------------------------------------------------------ what discovery says

    def update(self, listed: tuple[Endpoint, ...]) -> None:
        """Take over the complete list of endpoints, as far as the guard believes it."""
        with self._one_at_a_time:
            if not listed and self.updated_at is None:
                self._use_spare()  # an empty first list is judged like any other one: by what was there before
            self._take(listed)
        self.tell()

    def _take(self, listed: tuple[Endpoint, ...]) -> None:
        difference = self._guard.compare(listed)
        roster = self._roster
        with roster.changing():
            if self._closed:
                return
            now = self._clock()
            version = None if self.updated_at is None else roster.version
            self._first_list = version is None
            self._registry_answered(now)
            self.updated_at = now
            self._spare = None
            failing = {node.endpoint.key for node in {*roster.ejected, *roster.unreachable}}
            self._obey(self._guard.take(difference, now, failing), now)
            self._drop_hopeless()
            roster.set_due()
            self._to_keep = self._to_keep or roster.version != version

    def error(self, error: Exception) -> None:
        """Note that the registry could not be read. The last good list stays in use."""
        with self._one_at_a_time:
            with self._roster.changing():
                if self._closed:
                    return
                self.last_error = error
                self._guard.error()
                self._roster.set_due()
                if self.failing_since is None:
                    self.failing_since = self._clock()
                    self._outbox.note(events.DiscoveryFailed(self._service, error, len(self._roster.nodes)))
            if self.updated_at is None:
                self._use_spare()
        self.tell()

    def offer(self, offered: tuple[Endpoint, ...], age: float) -> None:
        """Take a list of an earlier time, to be used if the registry delivers none."""
        with self._one_at_a_time:
            if self._roster.nodes:
                return
            self._spare = (offered, self._clock() - age)
            named_nobody = self.updated_at is not None
            if named_nobody or self._spare_wanted or self.failing_since is not None:
                self._use_spare()
            if named_nobody:
                self._take(())
        self.tell()

    def _use_spare(self) -> None:
        """Use the list that was offered, now or as soon as there is one."""
        with self._roster.changing():
            self._spare_wanted = True
            if self._spare is None or self._closed or self._roster.nodes:
                return
            (endpoints, true_at), self._spare = self._spare, None
            now = self.cached_since = self._clock()
            self._cached_true_at = true_at
            self._obey(self._guard.restore(endpoints), now)
            self._outbox.note(events.SnapshotUsed(self._service, len(self._roster.nodes), now - true_at))

    def _want_spare(self) -> None:
        with self._one_at_a_time:
            if self.updated_at is None:
                self._use_spare()
        self.tell()

    def _registry_answered(self, now: float) -> None:
        silent = [since for since in (self.failing_since, self.cached_since) if since is not None]
        if silent:
            self.failing_since = self.last_error = self.cached_since = None
            self._outbox.note(events.DiscoveryRecovered(self._service, now - min(silent)))

    # ------------------------------------------------------------------ what is made of it

    def _obey(self, verdict: Verdict, now: float) -> None:
        """Publish what the guard decided."""
        if verdict.described:
            self._roster.describe(verdict.described, now)
        self._change(verdict.added, verdict.removed, now)
        if verdict.returned:
            self._outbox.note(events.HeldReturned(self._service, tuple(verdict.returned)))
        if verdict.held and verdict.reason is not None:
            seconds = self._guard.until(self._guard.limbo[verdict.held[0].key]) - now
            held, size = tuple(verdict.held), len(self._roster.nodes)
            self._outbox.note(events.RemovalHeld(self._service, held, size, verdict.reason.value, seconds))

    def _change(self, added: Collection[Endpoint], removed: Collection[Key], now: float = 0.0) -> None:
        if added or removed:
            self._roster.change(added, removed, now, first=self._first_list)
            self.arrival.note(bool(self._roster.nodes))

    def unreachable(self, node: Node) -> None:
        """No connection to an endpoint could be made: if it is in limbo, it leaves.

        If it is not, that is remembered until a call succeeds there: picks avoid it from now on, so that no other call
        may tell when the registry drops it.
        """
        with self._roster.changing():
            if self._roster.by_key.get(node.endpoint.key) is node:  # else it left meanwhile
                self._roster.unreachable.add(node)
            self._drop_hopeless()
        self.tell()

    def heed_health(self) -> None:
        """The state of a breaker has changed, under the lock: whoever is in limbo and ejected leaves."""
        if self._guard.limbo and not self._roster.in_pieces:
            with self._roster.changing():
                self._drop_hopeless()

    def _drop_hopeless(self) -> None:
        """Let go of those in limbo who are ejected or unreachable: two witnesses.

        Not while nobody else is healthy, for it may be our own network; nor while the registry names nobody at all,
        for then it is no witness.
        """
        limbo, unreachable = self._guard.limbo, self._roster.unreachable
        if not limbo or not self._guard.named or all(node in unreachable for node in self._roster.ready):
            return
        suspects = {*self._roster.ejected, *unreachable}
        hopeless = [node.endpoint.key for node in suspects if node.endpoint.key in limbo]
        self._guard.drop(hopeless)
        self._let_go(hopeless)

    @property
    def due(self) -> float:
        """When `believe_overdue` has something to do; inf while nothing will."""
        return self._guard.due

    def believe_overdue(self, now: float) -> None:
        """Let go of those who were held for long enough. No timer does that: whoever picks or looks does."""
        with self._roster.changing():
            if not self._closed:
                self._let_go(self._guard.release(now))

    def catch_up(self) -> None:
        """Do what has fallen due, for somebody who looks without picking."""
        if self._guard.due == inf:
            return
        self.believe_overdue(self._clock())
        self.tell()

    def _let_go(self, keys: Collection[Key]) -> None:
        self._change((), keys)
        self._to_keep = self._to_keep or bool(keys)

    def tell(self) -> None:
        """What is left to do after a change, without the lock."""
        self.arrival.wake()
        self._outbox.deliver()
        if self._to_keep:
            self._to_keep = False
            self._keep()

    # ------------------------------------------------------------------ insight and life

    def held(self) -> tuple[tuple[Held, float], ...]:
        """Those in limbo with the reason, and when each is let go in seconds of the clock; inf during an outage."""
        with self._roster.lock:
            return tuple((held, self._guard.until(held)) for held in self._guard.limbo.values())

    @property
    def age(self) -> float | None:
        """Seconds since the registry was last known to be in agreement with this list; see `Balancer.age`."""
        with self._roster.lock:
            if self.cached_since is not None:
                return self._clock() - self._cached_true_at
            if self.updated_at is None:
                return None
            return 0.0 if self.failing_since is None else self._clock() - self.failing_since

    @property
    def registry_state(self) -> str:
        """`"waiting"`, `"cached"`, `"ok"` or `"failing"`; see `Balancer.registry_state`."""
        if self.cached_since is not None:
            return "cached"
        if self.failing_since is not None:
            return "failing"
        return "waiting" if self.updated_at is None else "ok"

    def close(self) -> None:
        """Take no more news, and let nobody wait for it."""
        with self._roster.changing():
            self._closed = True
            self._guard = Guard(self._options)
            self._roster.clear()
        self.arrival.note(True)
        self.arrival.wake()

    def after_fork(self) -> None:
        """In a forked child: locks and those who wait belong to the parent."""
        self._one_at_a_time = threading.RLock()
        self.arrival.after_fork()
        self.arrival.note(bool(self._roster.nodes))
