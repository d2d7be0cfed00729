"""Pick: one choice of an endpoint, and the way to report how the attempt went.

The end of a call has two parts. `observe` at the head of the response: latency and outcome. `release` when the body or
the stream ends: the call is no longer in flight. A plain call does both with one `release(outcome)`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from types import TracebackType
from typing import TYPE_CHECKING

from clientlb.classify import classify_exception
from clientlb.endpoint import Endpoint
from clientlb.node import Node
from clientlb.outcome import Cause, Outcome

if TYPE_CHECKING:
    from clientlb.balancer import Balancer
    from clientlb.journal.journal import Record
    from clientlb.policy import Request

_SUCCESS = Outcome.SUCCESS  # see clientlb.balancer
_IGNORED = Outcome.IGNORED
_APPLICATION = Cause.APPLICATION


class Pick:
    """The endpoint of one attempt. As a context manager it reports what happened in its block.

    Attributes:
        node: The endpoint with its live state.
        started: When it was picked, in seconds of the balancer's clock.
        observed: The outcome that was reported before the release, if there was one.
        record: What the journal has of it. Set only if there is a journal.
    """

    __slots__ = ("_balancer", "node", "observed", "record", "started")

    # without an __init__, which costs more than all the rest of a pick: see `pick_of`
    _balancer: Balancer | None  # None once released
    node: Node
    started: float
    observed: Outcome | None
    record: Record

    @property
    def endpoint(self) -> Endpoint:
        """Where to send the call."""
        return self.node.endpoint

    def observe(
        self, outcome: Outcome, reason: str = "", now: float | None = None, cause: Cause = _APPLICATION
    ) -> None:
        """Report the outcome at the head of the response, while the call goes on. Only the first one counts."""
        balancer = self._balancer
        if balancer is not None and self.observed is None:
            balancer.report(self, outcome, reason, 0, now, cause)
            self.observed = outcome

    def release(
        self,
        outcome: Outcome | None = None,
        reason: str = "",
        now: float | None = None,
        cause: Cause = _APPLICATION,
    ) -> None:
        """End the call. Only the first release counts.

        Args:
            outcome: How it went; None is success, or what was observed before. After an observed success a failure
                still counts: the body broke off.
            reason: Why, in a word or two.
            now: Seconds of the balancer's clock, if they were just read.
            cause: What kind of failure it was, if it was one.
        """
        balancer = self._balancer
        if balancer is None:
            return
        self._balancer = None
        if self.observed is None:
            balancer.report(self, _SUCCESS if outcome is None else outcome, reason, 1, now, cause)
        elif outcome is None or outcome is _SUCCESS or outcome is _IGNORED:
            balancer.leave(self)
        else:
            balancer.report(self, outcome, reason, 1, now, cause)

    def supersede(self, now: float) -> None:
        """End an attempt that another attempt of its call was faster than. It took at least as long as until now."""
        balancer = self._balancer
        if balancer is not None:
            self._balancer = None
            balancer.supersede(self, now)

    def __enter__(self) -> Pick:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.release()
        else:
            verdict = classify_exception(error)
            self.release(verdict.outcome, verdict.reason, None, verdict.cause)

    def __repr__(self) -> str:
        return f"<Pick {self.endpoint}>"


def pick_of(balancer: Balancer, node: Node, now: float) -> Pick:
    """A pick that begins now."""
    pick = Pick()
    pick._balancer = balancer
    pick.node = node
    pick.started = now
    pick.observed = None
    return pick


class TriedNodes(list[Node]):
    """The nodes that a call keeps away from, for `Balancer.try_pick(exclude)`, and what the call is.

    Args:
        first: The pick with which it began.
        request: What it asks for; None is nothing.
        nodes: Those that were tried, and perhaps others besides.
        others: How many others.
    """

    __slots__ = ("first", "others", "request")

    def __init__(
        self, first: Pick, request: Request | None = None, nodes: Iterable[Node] = (), others: int = 0
    ) -> None:
        super().__init__(nodes)
        self.first: Pick = first
        self.request: Request | None = request
        self.others: int = others

    @property
    def attempts(self) -> int:
        """How often the call was tried."""
        return len(self) - self.others

    def and_also(self, nodes: Collection[Node], *, tried: bool) -> TriedNodes:
        """A copy with more nodes, tried or not."""
        return TriedNodes(self.first, self.request, [*self, *nodes], self.others + (0 if tried else len(nodes)))
