"""Journal: records the picks of one balancer.

It binds some methods of the balancer anew, so that every pick takes the careful way, where it can be seen as a whole,
and every report passes by here. What is recorded is bounded: the last picks, the last lists. What goes to a file is
handed to a thread of its own (`clientlb.journal.writer`); no call waits for a disk.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import islice
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from clientlb.health.breaker import State
from clientlb.journal.entry import MOST_CANDIDATES, Candidate, Entry, Listed, Recording
from clientlb.journal.gaze import Gaze
from clientlb.journal.writer import JournalWriter
from clientlb.node import Node
from clientlb.options import JournalOptions
from clientlb.outcome import Cause, Outcome
from clientlb.pick import Pick, TriedNodes
from clientlb.policy import Choose, ChooseFor, Policy, ReckoningPolicy, Request

if TYPE_CHECKING:
    from clientlb.balancer import Balancer

_LISTS = 64
_RUNNING = 10_000
"""Running picks that are written when the journal is closed, at most: by-hand picks may never be released."""
_NO_REQUEST = Request()


class Record:
    """A pick while it runs, and after. `entry` makes a value of it."""

    __slots__ = (
        "_considered",
        "_endpoint",
        "_keyed",
        "_started",
        "_tried",
        "_where",
        "_why",
        "attempt",
        "call",
        "cause",
        "client",
        "held",
        "latency",
        "number",
        "outcome",
        "reason",
        "repeatable",
    )

    def __init__(
        self,
        client: str,
        number: int,
        pick: Pick,
        considered: _Considered,
        exclude: Collection[Node],
        repeatable: bool,
        request: Request,
    ) -> None:
        self.client: str = client
        self.number: int = number
        self.repeatable: bool = repeatable
        self.outcome: Outcome | None = None
        self.reason: str = ""
        self.cause: Cause = Cause.APPLICATION
        self.latency: float | None = None
        self.held: float | None = None
        first: Record | None = getattr(exclude.first, "record", None) if isinstance(exclude, TriedNodes) else None
        self.call: int = number if first is None else first.number
        self.attempt: int = (exclude.attempts if isinstance(exclude, TriedNodes) else len(exclude)) + 1
        self._endpoint = pick.node.endpoint
        self._started = pick.started
        self._considered = considered
        self._tried = tuple(node.endpoint.address for node in exclude)
        self._keyed = request.key is not None
        self._where = tuple(sorted(request.where))
        breaker = pick.node.breaker
        self._why = "policy" if breaker.state is State.CLOSED else "probe" if breaker.probe is pick else "panic"

    def entry(self, epoch: float) -> Entry:
        """What is known by now.

        Args:
            epoch: When the clock of the balancer was at 0, in seconds since the epoch.
        """
        endpoint = self._endpoint
        candidates, compared, available = self._considered
        return Entry(
            number=self.number,
            call=self.call,
            attempt=self.attempt,
            at=epoch + self._started,
            endpoint=endpoint.address,
            id=endpoint.id,
            why=self._why,
            excluded=self._tried,
            keyed=self._keyed,
            where=self._where,
            repeatable=self.repeatable,
            available=available,
            candidates=candidates,
            compared=compared,
            outcome=None if self.outcome is None else self.outcome.value,
            reason=self.reason,
            cause=self.cause.value,
            latency=self.latency,
            held=self.held,
        )


class _Considered(NamedTuple):
    """What a policy looked at for its last choice."""

    candidates: tuple[Candidate, ...]
    compared: int
    available: int


class Journal:
    """Records the picks of a balancer, and binds those methods of it that have to be seen.

    Args:
        balancer: Whose picks.
        options: How much is kept, and where.
        wall: Seconds since the epoch.
    """

    def __init__(self, balancer: Balancer, options: JournalOptions, wall: Callable[[], float] = time.time) -> None:
        self.options: JournalOptions = options
        self.service: str = balancer.service
        policy = balancer.options.policy
        self.policy: str = policy if isinstance(policy, str) else getattr(policy, "__name__", repr(policy))
        self._balancer = balancer
        self._clock = balancer.clock
        self._epoch = wall() - balancer.clock()
        self._gaze = Gaze()
        self._writer: JournalWriter | None = None
        self._number = 0
        self._start_anew()
        self._report, self._leave, self._supersede = balancer.report, balancer.leave, balancer.supersede
        self._pick_with_care, self._try_pick_for = balancer._pick_with_care, balancer.try_pick_for
        balancer._roster.node_type = self._gaze.node_type
        for name, method in (
            ("try_pick", self._recorded_try_pick),
            ("try_pick_for", self._recorded_try_pick_for),
            ("_pick_with_care", self._recorded_pick),
            ("report", self._recorded_report),
            ("leave", self._recorded_leave),
            ("supersede", self._recorded_supersede),
        ):
            setattr(balancer, name, method)

    def _start_anew(self) -> None:
        self.client: str = f"{os.getpid()}-{uuid4().hex[:8]}"
        self._records: deque[Record] = deque(maxlen=self.options.picks)
        self._lists: deque[tuple[float, tuple[Node, ...]]] = deque(maxlen=_LISTS)
        self._running: dict[int, Record] = {}
        self._version: int | None = None
        self._considered = _Considered((), 0, 0)
        if self.options.path is not None:
            head = {"client": self.client, "service": self.service, "policy": self.policy}
            self._writer = JournalWriter(self.options.path, self.options.max_bytes, head)

    # ------------------------------------------------------------------ what the balancer does by way of here

    def watch(self, policy: Policy, choose: Choose, choose_for: ChooseFor) -> tuple[Choose, ChooseFor]:
        """See to what a policy looks at: both its methods, to be used in the place of those."""
        reckoning = policy if isinstance(policy, ReckoningPolicy) else None

        def watched(choosing: Callable[..., Node]) -> Callable[..., Node]:
            def choose(*arguments: Any) -> Node:
                with self._gaze.choosing():
                    chosen = choosing(*arguments)
                nodes, now = arguments[-3], arguments[-2]
                self._considered = _considered(chosen, self._gaze.seen, nodes, now, reckoning)
                return chosen

            return choose

        return watched(choose), watched(choose_for)

    def _recorded_try_pick(self, exclude: Collection[Node] = (), repeatable: bool = True) -> Pick | None:
        return self._recorded_try_pick_for(None, exclude, repeatable)

    def _recorded_try_pick_for(
        self, request: Request | None, exclude: Collection[Node] = (), repeatable: bool = True
    ) -> Pick | None:
        pick = self._try_pick_for(request, exclude, repeatable)
        if self._writer is not None:
            self._writer.start()  # not when a pick ends: that may happen in the garbage collector, anywhere
        return pick

    def _recorded_pick(
        self, exclude: Collection[Node], repeatable: bool, now: float, request: Request | None = None
    ) -> Pick | None:
        """Make a pick, under the lock, and record it."""
        pick = self._pick_with_care(exclude, repeatable, now, request)
        if pick is not None:
            self._number += 1
            record = Record(
                self.client, self._number, pick, self._considered, exclude, repeatable, request or _NO_REQUEST
            )
            pick.record = record
            self._records.append(record)
            self._note_list(now)
            if self._writer is not None:
                self._running[record.number] = record
                if len(self._running) > _RUNNING:
                    del self._running[next(iter(self._running))]
        return pick

    def _note_list(self, now: float) -> None:
        version = self._balancer._roster.version
        if version == self._version:
            return
        self._version = version
        nodes = self._balancer._roster.nodes
        self._lists.append((now, nodes))
        if self._writer is not None:
            self._writer.put(lambda: Listed(self._epoch + now, tuple(node.endpoint for node in nodes)))

    def _recorded_report(
        self,
        pick: Pick,
        outcome: Outcome,
        reason: str,
        leaving: int,
        now: float | None = None,
        cause: Cause = Cause.APPLICATION,
    ) -> None:
        if now is None:
            now = self._clock()
        with self._gaze.averted():
            self._report(pick, outcome, reason, leaving, now, cause)
        record = pick.record
        record.outcome = outcome
        record.reason = reason
        record.cause = cause
        if record.latency is None:
            record.latency = now - pick.started
        if leaving:
            self._ended(record, now - pick.started)

    def _recorded_leave(self, pick: Pick) -> None:
        with self._gaze.averted():
            self._leave(pick)
        self._ended(pick.record, self._clock() - pick.started)

    def _recorded_supersede(self, pick: Pick, now: float) -> None:
        with self._gaze.averted():
            self._supersede(pick, now)
        record = pick.record
        record.outcome, record.reason = Outcome.IGNORED, "superseded"
        record.latency = now - pick.started
        self._ended(record, record.latency)

    def _ended(self, record: Record, held: float) -> None:
        record.held = held
        if self._writer is not None and record.client == self.client:  # else it is one of before a fork
            self._running.pop(record.number, None)
            self._writer.put(lambda: record.entry(self._epoch))

    # ------------------------------------------------------------------ what can be asked

    def entries(self, last: int | None = None) -> tuple[Entry, ...]:
        """The picks in memory, those that still run among them, the oldest first.

        Args:
            last: Only so many of the newest; None (default) is all.
        """
        records = list(self._records.copy())  # of one moment: others go on recording
        if last is not None:
            records = records[max(0, len(records) - last) :]
        return tuple(record.entry(self._epoch) for record in records)

    def recording(self) -> Recording:
        """All that is in memory, for `clientlb.replay`."""
        lists = [Listed(self._epoch + at, tuple(node.endpoint for node in nodes)) for at, nodes in self._lists.copy()]
        return Recording(self.service, self.client, self.policy, tuple(lists), self.entries())

    @property
    def recorded(self) -> int:
        """How many picks were recorded so far, those that have been forgotten among them."""
        return self._number

    def ago(self, entry: Entry) -> float:
        """How many seconds ago a pick was made."""
        return self._epoch + self._clock() - entry.at

    def flush(self, timeout: float = 1.0) -> bool:
        """Wait until everything that has ended is in the file, at most `timeout` seconds. False if it is not."""
        return self._writer is None or self._writer.flush(timeout)

    def close(self) -> None:
        """Write what is yet to be written, if that takes less than a second, with what still runs. Idempotent."""
        if self._writer is None:
            return
        now = self._clock()
        while self._running:
            _, record = self._running.popitem()
            record.held = now - record._started
            self._writer.put(partial(record.entry, self._epoch))
        self._writer.close()

    def after_fork(self) -> None:
        """In a forked child: it is another client, and records its own picks."""
        if self._writer is not None:
            self._writer.after_fork()
        self._gaze.after_fork()
        self._start_anew()


def _considered(
    chosen: Node, seen: dict[Node, None], nodes: Sequence[Node], now: float, reckoning: ReckoningPolicy | None
) -> _Considered:
    named = list(islice(seen, MOST_CANDIDATES))
    if chosen not in named:
        named[MOST_CANDIDATES - 1 :] = [chosen]
    candidates = []
    for node in named:
        if reckoning is not None:
            candidates.append(Candidate(node.endpoint.address, node.in_flight, reckoning.latency(node, now)))
        else:
            score = node.score if node.score > -inf else None
            candidates.append(Candidate(node.endpoint.address, node.in_flight, None, score))
    return _Considered(tuple(candidates), len(seen) + (chosen not in seen), len(nodes))
