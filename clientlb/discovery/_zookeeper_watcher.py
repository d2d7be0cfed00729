"""The one thread that reads for all watched services of an ensemble.

    events, connections ─► Agenda ─► Watcher: errands, up to 64 services at a time ─► feed.update
                                     └─ whatever fails ─► feed.error, and later again

Two ways of reading, which see the same:

- `_Persistent` (servers since 3.6): one watch that lasts, on each service and all below it, and hundreds of instances
  per request. A change costs one request, however long the list is.
- `_OneShot`: watches that fire once, on each service and each instance, set anew with every reading.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

from kazoo.exceptions import KazooException, NoAuthError, NoNodeError, UnimplementedError
from kazoo.protocol.states import EventType

from clientlb.discovery._zookeeper_agenda import Agenda, Errand, View
from clientlb.discovery._zookeeper_client import WINDOW, Connection
from clientlb.discovery._zookeeper_protocol import add_watch, multi_read, remove_watches
from clientlb.discovery._zookeeper_sharing import Loan
from clientlb.errors import DiscoveryError

logger: logging.Logger = logging.getLogger("clientlb.zookeeper")

_PATIENCE = 1.0  # seconds without a session before it is an error: electing a leader takes half of it
_TICK = 0.5  # seconds between two looks at the clock while there is no session
_SERVICES_AT_ONCE = WINDOW // 2  # each may take two requests to list
_NODES_PER_READ = 500  # enough that requests cost nothing, and an answer of usual instances has 100 kB ...
_FIRST_NODES_PER_READ = 50
_BYTES_PER_READ = 1_000_000  # ... but nodes may have up to a megabyte each, and kazoo holds the whole answer
_LETTERS_PER_READ = 200_000  # of paths: servers hang up on a request of more than a megabyte, and a letter has up to 4


class Watcher:
    """Keeps the views of one connection up to date, on a daemon thread, until `close`.

    Args:
        connection: The session. It is given back at the end.
        persistent: Try persistent watches.
    """

    def __init__(self, connection: Loan[Connection], *, persistent: bool) -> None:
        self._loan = connection
        self._connection = connection.value
        self._agenda = Agenda()
        self._reading: _Reading = (
            _Persistent(self._connection, self._happened) if persistent else _OneShot(self._connection, self._happened)
        )
        self._unwatched: deque[str] = deque()
        self._closed = False
        self._stumbled = False
        self._wake = threading.Event()
        self._connection.subscribe(self._connection_changed)
        threading.Thread(target=self._run, name="clientlb-zookeeper", daemon=True).start()

    def add(self, view: View) -> None:
        """Begin to watch a service."""
        self._agenda.add(view)
        self._wake.set()

    def remove(self, view: View) -> None:
        """Watch a service no longer. Idempotent; does no I/O."""
        if self._agenda.remove(view):
            self._unwatched.append(view.path)
            self._wake.set()

    def close(self) -> None:
        """End the thread, and the session unless others use it. Returns at once."""
        self._closed = True
        self._connection.unsubscribe(self._connection_changed)
        self._reading.close()
        self._wake.set()
        self._loan.give_back()

    def _happened(self, path: str) -> None:
        if self._agenda.event(path):
            self._wake.set()

    def _connection_changed(self) -> None:
        if self._connection.connected:
            self._agenda.renew()
        self._wake.set()

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait(self._pause())
            self._wake.clear()
            try:
                self._step()
            except Exception:  # whatever it is, the watches go on: there is no other thread to keep them
                if not self._stumbled:
                    self._stumbled = True
                    logger.exception("the watch of %s stumbled, and goes on", self._connection)

    def _pause(self) -> float | None:
        """Seconds after which there is something to do even if nobody wakes us."""
        if not self._connection.connected:
            return _TICK
        due = self._agenda.due()
        return None if due is None else max(0.0, due - time.monotonic())

    def _step(self) -> None:
        connection = self._connection
        if not connection.connected:
            if connection.down_for > _PATIENCE:
                for view in self._agenda:
                    view.feed.error(DiscoveryError(connection.problem))
            connection.tend()  # last: it may fail, and whoever waits should have heard
            return
        while connection.connected and not self._closed:
            self._unwatch()
            errands = self._agenda.take(_SERVICES_AT_ONCE, time.monotonic())
            if not errands:
                break
            self._carry_out(errands)

    def _unwatch(self) -> None:
        paths = [self._unwatched.popleft() for _ in range(len(self._unwatched))]
        # without a session there are no watches either
        with contextlib.suppress(DiscoveryError, KazooException):
            self._reading.forget([path for path in paths if not self._agenda.watches(path)])

    def _carry_out(self, errands: Sequence[Errand]) -> None:
        epoch, rest = self._connection.epoch, list(errands)
        try:
            for errand, trouble in self._read(errands, epoch):
                rest.remove(errand)
                if trouble is None and self._connection.epoch == epoch:
                    errand.view.epoch = epoch
                    errand.view.backoff.succeeded()
                    errand.view.deliver()
                    self._agenda.remind(errand.view, time.monotonic())
                else:
                    self._failed(errand, epoch, trouble)
        except UnimplementedError:
            logger.info("%s is older than 3.6, without persistent watches: using one-shot watches", self._connection)
            self._reading.close()
            self._reading = _OneShot(self._connection, self._happened)
            for view in self._agenda:
                view.epoch = 0
            self._agenda.renew()
        except Exception as error:
            for errand in rest:
                self._failed(errand, epoch, error)

    def _read(self, errands: Sequence[Errand], epoch: int) -> Iterator[tuple[Errand, Exception | None]]:
        """Do the errands in turn; yields each that is done, and what was wrong if it could not be."""
        listing = [errand for errand in errands if errand.listing or errand.view.epoch != epoch]
        lists = dict(zip(listing, self._reading.list([errand.view.path for errand in listing]), strict=True))
        wanted = {errand: _wanted(errand, lists.get(errand), epoch) for errand in errands}
        answers = self._reading.read(
            [f"{errand.view.path}/{name}" for errand, names in wanted.items() for name in names]
        )
        for errand, names in wanted.items():
            listed = lists.get(errand)
            troubles = [listed] if isinstance(listed, Exception) else []
            denied: set[str] = set()
            for name in names:
                answer = next(answers)
                if isinstance(answer, NoNodeError):
                    errand.view.lose([name])
                elif isinstance(answer, NoAuthError):
                    denied.add(name)
                elif isinstance(answer, Exception):
                    troubles.append(answer)
                else:
                    errand.view.learn(name, answer)
            if (denied or errand.view.denied) and errand.view.known.keys() <= denied:
                troubles.append(DiscoveryError("none of the instances may be read (NoAuthError)"))
            else:
                errand.view.deny(denied)
            yield errand, troubles[0] if troubles else None

    def _failed(self, errand: Errand, epoch: int, error: Exception | None) -> None:
        view = errand.view
        view.epoch = 0
        if not self._connection.connected or self._connection.epoch != epoch:
            self._agenda.give_back(view)  # an outage: reported if it lasts; with the next connection all is read again
            return
        self._agenda.postpone(view, time.monotonic() + view.backoff.failed())
        reason = str(error) or type(error).__name__
        view.feed.error(DiscoveryError(f"{self._connection}: reading {view.path} failed: {reason}"))


def _wanted(errand: Errand, names: list[str] | Exception | None, epoch: int) -> list[str]:
    """Take in what the list of a service says, if it was listed; return the instances that have to be read."""
    view = errand.view
    if names is None:
        return list(errand.names)
    if isinstance(names, Exception):
        return []
    view.lose((view.known.keys() | view.denied) - set(names))
    if view.epoch == epoch:
        names = [name for name in names if name not in view.known or name in errand.names]
    wanted = []
    for name in names:
        if view.decoder.data_is_in_name(name):
            view.learn(name, b"")
        else:
            wanted.append(name)
    return wanted


class _Reading(Protocol):
    """How services are listed, read and watched."""

    def list(self, paths: Sequence[str]) -> list[list[str] | Exception]:
        """The names of the instances of each service; from now on their changes are noticed."""

    def read(self, paths: Sequence[str]) -> Iterator[bytes | Exception]:
        """The data of instances; from now on their changes are noticed."""

    def forget(self, paths: Sequence[str]) -> None:
        """Nobody wants to hear of these services any more."""

    def close(self) -> None:
        """Nobody wants to hear of anything any more."""


class _Persistent:
    """With watches that last, and reads of many nodes. Raises UnimplementedError on servers that have neither."""

    def __init__(self, connection: Connection, happened: Callable[[str], None]) -> None:
        self._connection, self._happened = connection, happened
        connection.hear(happened)

    def list(self, paths: Sequence[str]) -> list[list[str] | Exception]:
        requests: list[Callable[[Any], Any]] = []
        for path in paths:  # the watch first, so that no change falls between the two
            requests += [partial(add_watch, path=path), _children(path)]
        answers = self._connection.ask(requests)
        pairs = zip(answers[::2], answers[1::2], strict=True)
        return [watch if isinstance(watch, Exception) else _names(children) for watch, children in pairs]

    def read(self, paths: Sequence[str]) -> Iterator[bytes | Exception]:
        start, count = 0, _FIRST_NODES_PER_READ
        while part := _fitting(paths[start : start + count]):
            [answers] = self._connection.ask([partial(multi_read, paths=part)])
            if isinstance(answers, Exception):
                raise answers
            yield from answers
            start += len(part)
            size = sum(len(answer) for answer in answers if isinstance(answer, bytes)) / len(part)
            count = max(1, min(_NODES_PER_READ, int(_BYTES_PER_READ / (size + 1))))

    def forget(self, paths: Sequence[str]) -> None:
        if not self._connection.borrowed:  # there others may watch the same nodes, and all of a node's watches would go
            self._connection.ask(partial(remove_watches, path=path) for path in paths)

    def close(self) -> None:
        self._connection.hear_no_more(self._happened)


class _OneShot:
    """With watches that fire once, and a request per node: for servers before 3.6, and clients that are not ours."""

    def __init__(self, connection: Connection, happened: Callable[[str], None]) -> None:
        self._connection, self._happened = connection, happened

    def list(self, paths: Sequence[str]) -> list[list[str] | Exception]:
        answers = self._connection.ask(_children(path, self._fired) for path in paths)
        # Nobody has registered yet, which is an answer. Watch for the first one.
        missing = [path for path, answer in zip(paths, answers, strict=True) if isinstance(answer, NoNodeError)]
        for path, stat in zip(missing, self._connection.ask(map(self._existence, missing)), strict=True):
            if stat is not None:
                self._happened(path)  # it came between the two questions
        return [_names(answer) for answer in answers]

    def read(self, paths: Sequence[str]) -> Iterator[bytes | Exception]:
        for start in range(0, len(paths), WINDOW):
            for answer in self._connection.ask(map(self._content, paths[start : start + WINDOW])):
                yield answer if isinstance(answer, Exception) else answer[0]

    def forget(self, paths: Sequence[str]) -> None:
        """The watches stay until they fire: these servers cannot take them back."""

    def close(self) -> None:
        """As `forget`: whoever they call is not there any more."""

    def _existence(self, path: str) -> Callable[[Any], Any]:
        return lambda client: client.exists_async(path, watch=self._fired)

    def _content(self, path: str) -> Callable[[Any], Any]:
        return lambda client: client.get_async(path, watch=self._fired)

    def _fired(self, event: Any) -> None:
        if event.type != EventType.NONE:  # which is the end of a session: the next one reads everything anyway
            self._happened(event.path)


def _fitting(paths: Sequence[str]) -> Sequence[str]:
    """As many of the paths as one request may have."""
    while len(paths) > 1 and sum(map(len, paths)) > _LETTERS_PER_READ:
        paths = paths[: len(paths) // 2]
    return paths


def _children(path: str, watch: Callable[[Any], None] | None = None) -> Callable[[Any], Any]:
    return lambda client: client.get_children_async(path, watch=watch)


def _names(answer: Any) -> list[str] | Exception:
    """The names of a list; a service without a node has none."""
    if isinstance(answer, NoNodeError):
        return []
    return answer if isinstance(answer, Exception) else sorted(answer)
