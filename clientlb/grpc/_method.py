"""What the methods of sync and aio channels have in common: what of the service's options holds for their calls."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from clientlb.deadlines import shortest

if TYPE_CHECKING:
    from clientlb.grpc._base import ServiceChannel


class BalancedMethod:
    """A method of the service, at whichever endpoint.

    Args:
        channel: The balanced channel.
        arity: Name of the method of a channel that makes its like, such as `"unary_unary"`.
        name: Full name of the method.
        arguments: The serializers, and whatever else generated code gives.

    Attributes:
        idempotent: Its calls may be repeated.
        single: There is one response. A stream of them may take as long as it likes, unless its call says otherwise.
        hedged: A second attempt may run beside one that is late.
        short: No call asks for more than one attempt at once, a refusal or a choice of endpoints. So the first attempt
            can be made without steps, which cost more than all the rest of a call that succeeds at once.
        limited: Calls have less time than they or their callers say.
    """

    def __init__(self, channel: ServiceChannel, arity: str, name: str, *arguments: Any) -> None:
        balancer = channel.balancer()
        options = balancer.options
        self.idempotent: bool = channel.idempotence.of(name)
        self.single: bool = arity.endswith("_unary")
        self.hedged: bool = self.idempotent and arity == "unary_unary" and options.retry.hedge is not None
        self.short: bool = (
            channel.ask is None and options.throttle is None and not self.hedged and not balancer.wants_reports
        )
        self.attempt_timeout: float | None = options.attempt_timeout
        self._deadline = options.deadline if self.single else None
        self.limited: bool = self.single and (self._deadline is not None or self.attempt_timeout is not None)
        self._arity = arity
        self._name = name
        self._arguments = arguments
        self._reference = weakref.ref(self)

    def times(self, timeout: float | None) -> tuple[float | None, float | None]:
        """The seconds that a call has which begins now, and those of its first attempt.

        Args:
            timeout: What the caller says.
        """
        if self._deadline is not None:
            timeout = self._deadline if timeout is None else min(timeout, self._deadline)
        whole = shortest(timeout)
        if not self.single or self.attempt_timeout is None:
            return whole, whole
        return whole, self.attempt_timeout if whole is None else min(whole, self.attempt_timeout)
