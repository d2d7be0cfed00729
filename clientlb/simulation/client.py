"""A simulated client: the shipped balancer and the shipped life of a call, driven by events instead of by a thread.

This is another loop over `clientlb.call.call`, beside those in `clientlb.drive` and `clientlb.hedging`. It decides
nothing: which server, whether again and when, all that is the library's own code with the loop's clock and a random
generator of its own.
"""

from __future__ import annotations

import dataclasses
import random
from math import inf
from typing import Final

from clientlb.balancer import Balancer
from clientlb.call import LATE, Attempt, Await, Ended, Sleep, Step, Steps, Wait, call
from clientlb.errors import ClientLBError
from clientlb.events import Event
from clientlb.options import Options
from clientlb.outcome import Outcome, Verdict
from clientlb.retry_options import NO_RETRIES, RetryOptions
from clientlb.simulation.loop import Loop
from clientlb.simulation.record import Record
from clientlb.simulation.server import Server
from clientlb.simulation.setting import Setting

TIMED_OUT: Final = Verdict(Outcome.RETRYABLE, "ReadTimeout")
_SUCCESS = Outcome.SUCCESS


class Client:
    """One process that calls the service.

    Attributes:
        balancer: Its own.
        stalled_until: Until then the process does not run: no call is made, no answer and no timeout is seen.
    """

    __slots__ = (
        "_attempt_timeout",
        "_deadline",
        "_loop",
        "_record",
        "_retry",
        "_round_trip",
        "_servers",
        "balancer",
        "stalled_until",
    )

    def __init__(
        self,
        loop: Loop,
        setting: Setting,
        options: Options,
        servers: dict[str, Server],
        record: Record,
        rng: random.Random,
    ) -> None:
        self.stalled_until: float = 0.0
        self._loop = loop
        self._servers = servers
        self._record = record
        self._deadline = setting.deadline
        self._attempt_timeout = setting.attempt_timeout
        self._round_trip = setting.round_trip
        self._retry = _retry_options(setting, options)
        self.balancer: Balancer = Balancer("simulated", options, emit=self._note, clock=loop.clock, rng=rng)

    def begin(self, work: float) -> None:
        """Make a call of so much work."""
        now = self._loop.now
        if now < self.stalled_until:
            self._loop.at(self.stalled_until, self.begin, work)
            return
        deadline = now + self._deadline
        steps = call(
            self.balancer,
            idempotent=True,
            retry=self._retry,
            deadline=deadline,
            attempt_timeout=self._attempt_timeout,
            whole=True,
        )
        running = _Running(self, steps, now, work)
        self._record.call_began(now)
        try:
            step = next(steps)
        except ClientLBError:
            self._end(running, False)
        else:
            self._take(running, step)

    def _take(self, running: _Running, step: Step | None) -> None:
        """Do what the call says is next."""
        if type(step) is Attempt:
            now = self._loop.now
            server = self._servers[step.pick.node.endpoint.id]
            attempt = _InFlight(running, server, step)
            self._record.attempt(now, server)
            self._loop.at(attempt.expires, _InFlight.expire, attempt)
            if step.hedge_after is not None:
                self._loop.after(step.hedge_after, self._late, attempt)
            if running.racing is not None or step.hedge_after is not None:
                running.racing = [*(running.racing or ()), attempt]
                running.latest = attempt
            server.arrive(attempt, running.work)
        elif type(step) is not Await:
            assert isinstance(step, (Sleep, Wait))
            self._loop.after(step.seconds, self._go_on, running)

    def _go_on(self, running: _Running) -> None:
        if self._loop.now < self.stalled_until:
            self._loop.at(self.stalled_until, self._go_on, running)
            return
        try:
            step = next(running.steps)
        except ClientLBError:
            self._end(running, False)
        else:
            self._take(running, step)

    def _late(self, attempt: _InFlight) -> None:
        """Another attempt may start beside this one, unless it has ended, or one has started already."""
        running = attempt.running
        if not running.racing or running.latest is not attempt:
            return
        if self._loop.now < self.stalled_until:
            self._loop.at(self.stalled_until, self._late, attempt)
        else:
            self._take(running, running.steps.send(LATE))

    def judge(self, attempt: _InFlight, verdict: Verdict) -> None:
        """Let the end of an attempt reach its call."""
        running = attempt.running
        racing = running.racing
        if racing is not None:
            racing.remove(attempt)
        try:
            step = running.steps.send(verdict if racing is None else Ended(attempt.step, verdict))
        except ClientLBError:
            self._end(running, False)
            return
        if step is None:
            self._end(running, verdict.outcome is _SUCCESS)
        else:
            self._take(running, step)

    def _end(self, running: _Running, success: bool) -> None:
        running.steps.close()
        for superseded in running.racing or ():
            superseded.cancel()
        running.racing = None
        self._record.call_ended(running.began, self._loop.now - running.began if success else inf)

    def _note(self, event: Event) -> None:
        self._record.event(self._loop.now, event)


def _retry_options(setting: Setting, options: Options) -> RetryOptions | None:
    """The options of every call; None leaves that to the balancer."""
    if not setting.retries:
        return NO_RETRIES
    return None if setting.hedge is None else dataclasses.replace(options.retry, hedge=setting.hedge)


class _Running:
    """A call that has begun and not ended.

    Attributes:
        racing: Its attempts in flight, if it may have several of them.
        latest: The last one that has started.
    """

    __slots__ = ("began", "client", "latest", "racing", "steps", "work")

    def __init__(self, client: Client, steps: Steps, began: float, work: float) -> None:
        self.client: Client = client
        self.steps: Steps = steps
        self.began: float = began
        self.work: float = work
        self.racing: list[_InFlight] | None = None
        self.latest: _InFlight | None = None


class _InFlight:
    """One attempt between client and server. A `Query` for the server."""

    __slots__ = ("arrived_at", "ends_at", "expires", "found", "over", "running", "server", "step", "verdict")

    def __init__(self, running: _Running, server: Server, step: Attempt) -> None:
        self.running: _Running = running
        self.server: Server = server
        self.step: Attempt = step
        assert step.expires is not None, "every simulated call has a deadline"
        self.expires: float = step.expires
        self.over: bool = False
        self.verdict: Verdict = TIMED_OUT
        self.ends_at: float = inf
        self.arrived_at: float = 0.0
        self.found: int = 0

    def answered(self, verdict: Verdict) -> None:
        """The server has answered; the answer travels. (The way there takes no time, the way back the round trip.)"""
        client = self.running.client
        self.verdict = verdict
        client._loop.after(client._round_trip, _InFlight.seen, self)

    def seen(self) -> None:
        """The answer has arrived at the client."""
        if self.over:
            return
        client = self.running.client
        stalled_until = client.stalled_until
        if client._loop.now < stalled_until:
            # a process that runs again may find both an answer and a timer that has gone off. Then the timer wins:
            # an event loop wakes who reads the answer one turn later than it cancels him
            if self.expires > stalled_until:
                client._loop.at(stalled_until, _InFlight.seen, self)
            return
        self.over = True
        client.judge(self, self.verdict)

    def expire(self) -> None:
        """The client has waited long enough, if the answer is not there yet."""
        if self.over:
            return
        client = self.running.client
        if client._loop.now < client.stalled_until:
            client._loop.at(client.stalled_until, _InFlight.expire, self)
            return
        self.cancel()
        client.judge(self, TIMED_OUT)

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        self.over = True
        self.server.abandon(self)
