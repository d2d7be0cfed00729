"""One blocking query, asked again and again: which index to send, and how old an answer may be.

The query sends the index of the last answer, and returns when there is a newer one or when the wait is over. The index
is a hint, not a version: it goes back when servers restart, and what an error carries is meaningless. Hence index 0
(answer now) after everything that is not a good answer: with a stale index, a change would be seen only at the end of
the wait.

The default consistency makes every answer depend on the leader: without one, an agent says 500 after seven seconds.
`stale` lets any server answer, also in an election, and says how long ago that server heard from the leader. So we ask
for `stale`, and only an answer in doubt is put to the leader, as a `consistent` query; if that fails, it is reported as
old. In doubt is what is too far behind, and what is older than an answer that we believed. The second is what a server
says that has just started: it answers while it reads its log again, with some of the instances or with none, an index
to match, and the same headers as ever, also to a query of the default consistency. For the same reason a first answer
without instances is in doubt: there is nothing yet that it could be older than.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Literal, get_args

from clientlb.discovery._consul_health import HealthReader
from clientlb.discovery._consul_http import Answer, ConsulError, ConsulHTTP, Parameters, path
from clientlb.endpoint import Endpoint

logger: logging.Logger = logging.getLogger("clientlb.discovery")

Consistency = Literal["stale", "default", "consistent", "cached"]
CONSISTENCIES: tuple[str, ...] = get_args(Consistency)

_TRUSTS_THE_LEADER = 60.0  # seconds in which the leader is asked instead of a server that was too far behind
_FILTERED = "X-Consul-Results-Filtered-By-ACLs"
_NEEDS = "it needs service:read and node:read"


class OldAnswerError(ConsulError):
    """Nobody has an answer that is young enough. `endpoints` is what the old one says."""

    def __init__(self, message: str, endpoints: list[Endpoint]) -> None:
        super().__init__(message)
        self.endpoints = endpoints


class HealthQuery:
    """Asks for the instances of one service in one datacenter.

    Args:
        service: The service.
        reader: Reads the answers.
        parameters: What else to say in the query, such as the datacenter.
        consistency: Who may answer.
        max_stale: Seconds that an answer may be behind.
        patience: Seconds that an answer may take beyond its wait.
        has_token: An empty answer is worth a hint: Consul says that little when a token may not see the instances.
    """

    def __init__(
        self,
        service: str,
        reader: HealthReader,
        parameters: Parameters,
        *,
        consistency: Consistency,
        max_stale: float,
        patience: float,
        has_token: bool,
    ) -> None:
        self.reader = reader
        self.where: str = f"datacenter {parameters['dc']}" if "dc" in parameters else "the agent's own datacenter"
        self._service = service
        self._parameters = parameters
        self._consistency = consistency
        self._max_stale = max_stale
        self._patience = patience
        self._index = 0
        self._known: int | None = None  # the index of the last answer that was believed
        self._leader_until = 0.0
        self._hint_at_empty = has_token
        self._hint_at_filtered = True

    def ask(self, http: ConsulHTTP, wait: float) -> list[Endpoint]:
        """Return the instances that get calls, when they changed or after `wait` seconds. Raises ConsulError."""
        index, self._index = self._index, 0  # 0 stays if anything goes wrong
        answer = self._get(http, index, wait, self._mode())
        if (age := _age(answer.headers)) > self._max_stale:
            answer = self._ask_the_leader(http, answer, f"the servers lost their leader {age:.0f} s ago")
            self._leader_until = time.monotonic() + _TRUSTS_THE_LEADER
        elif doubt := self._doubt(answer):
            answer = self._ask_the_leader(http, answer, doubt)
        given = _index(answer)
        endpoints = self.reader.read(answer.body)
        self._look_for_filters(answer)
        self._known = given
        self._index = 0 if given < index else max(given, 1)  # lower: the servers lost their state
        return endpoints

    def ask_now(self, http: ConsulHTTP) -> list[Endpoint]:
        """As `ask`, without waiting for a change."""
        self._index = 0
        return self.ask(http, 0.0)

    def _mode(self) -> str:
        return "default" if time.monotonic() < self._leader_until else self._consistency

    def _get(self, http: ConsulHTTP, index: int, wait: float, mode: str) -> Answer:
        # Consul adds up to a sixteenth to the wait, so that not all watches come back at once
        silence = self._patience + (wait * 17 / 16 if index else 0.0)
        question: dict[str, str | list[str]] = {"index": str(index), "wait": f"{wait * 1000:.0f}ms", **self._parameters}
        if mode != "default":
            question[mode] = ""
        try:
            return http.get(path("health", "service", self._service), silence, question)
        except ConsulError:
            self._leader_until = 0.0
            raise

    def _doubt(self, answer: Answer) -> str:
        """Why an answer may be of a server that has not read its own log yet; empty if there is no reason."""
        given = _index(answer)
        if self._consistency == "consistent":
            return ""
        if self._known is None:
            return "the first answer has no instances" if _is_empty(answer) else ""
        return f"the servers went back from index {self._known} to {given}" if given < self._known else ""

    def _ask_the_leader(self, http: ConsulHTTP, old: Answer, doubt: str) -> Answer:
        try:
            return self._get(http, 0, 0.0, "consistent")
        except ConsulError as error:
            raise OldAnswerError(f"{doubt}: {error}", self.reader.read(old.body)) from None

    def _look_for_filters(self, answer: Answer) -> None:
        empty, filtered = _is_empty(answer), answer.headers.get(_FILTERED) == "true"
        if filtered and empty:
            raise ConsulError(f"the token may not see the instances: {_NEEDS}")
        if filtered and self._hint_at_filtered:
            self._hint_at_filtered = False
            logger.warning("%s: the token may not see all instances: %s", self._service, _NEEDS)
        elif empty and self._hint_at_empty:
            logger.warning("%s: no instances; if there should be some, look at the token: %s", self._service, _NEEDS)
        self._hint_at_empty = False


def _index(answer: Answer) -> int:
    try:
        return int(answer.headers["X-Consul-Index"])
    except (KeyError, ValueError):
        raise ConsulError("the answer has no X-Consul-Index: this is not a Consul agent") from None


def _is_empty(answer: Answer) -> bool:
    return len(answer.body) < 4  # a list without elements


def _age(headers: Mapping[str, str]) -> float:
    """Seconds that an answer is behind: since its server heard from the leader, and since the agent's cache has it."""
    return max(_number(headers, "X-Consul-LastContact") / 1000, _number(headers, "Age"))


def _number(headers: Mapping[str, str], name: str) -> float:
    try:
        return float(headers.get(name, 0))
    except ValueError:
        return 0.0
