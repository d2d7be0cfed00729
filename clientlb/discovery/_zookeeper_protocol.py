"""Three requests of ZooKeeper's protocol that kazoo 2.11 lacks, added from outside.

kazoo's own support waits in its pull request #715. Until it is released, this module adds requests of the form that
kazoo's connection sends (`type`, `serialize`, `deserialize`), and listens to the events that it reads. On the wire
(numbers are big-endian, a string is an int of its length and UTF-8):

    addWatch       106   string path, int mode (1: persistent and recursive)     reply: int error
    removeWatches   18   string path, int kind (3: any)                          reply: nothing
    multiRead       22   per node: header (int 4 = getData, bool done, int -1), string path, bool watch;
                         at the end the header (-1, true, -1)
                         reply: per node the header and either data and stat, or (type -1) int error; the same end

A persistent watch fires again and again, for the node and everything below it, also before the node exists. It ends
with the connection. Servers older than 3.6 answer "unimplemented" to the first and the last, and hang up.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from kazoo.exceptions import EXCEPTIONS, SystemZookeeperError
from kazoo.protocol.paths import _prefix_root
from kazoo.protocol.serialization import Watch, int_struct, multiheader_struct, read_buffer, stat_struct, write_string

logger: logging.Logger = logging.getLogger("clientlb.zookeeper")

_GET_DATA = 4
_RECURSIVE = 1
_ANY_WATCH = 3
_HEADER = multiheader_struct.pack(_GET_DATA, False, -1)
_END = multiheader_struct.pack(-1, True, -1)
_PATH_AND_MODE = struct.Struct("!i")


@dataclass(frozen=True)
class _AddWatch:
    path: str
    type: ClassVar[int] = 106

    def serialize(self) -> Any:
        return write_string(self.path) + _PATH_AND_MODE.pack(_RECURSIVE)

    @classmethod
    def deserialize(cls, data: bytes, offset: int) -> bool:
        return True


@dataclass(frozen=True)
class _RemoveWatches:
    path: str
    type: ClassVar[int] = 18

    def serialize(self) -> Any:
        return write_string(self.path) + _PATH_AND_MODE.pack(_ANY_WATCH)

    @classmethod
    def deserialize(cls, data: bytes, offset: int) -> bool:
        return True


@dataclass(frozen=True)
class _MultiRead:
    paths: Sequence[str]
    type: ClassVar[int] = 22

    def serialize(self) -> Any:
        reads = (_HEADER + bytes(write_string(path)) + b"\0" for path in self.paths)
        return b"".join((*reads, _END))

    @classmethod
    def deserialize(cls, data: bytes, offset: int) -> list[bytes | Exception]:
        answers: list[bytes | Exception] = []
        while True:
            kind, done, _ = multiheader_struct.unpack_from(data, offset)
            offset += multiheader_struct.size
            if done:
                return answers
            if kind == _GET_DATA:
                content, offset = read_buffer(data, offset)
                answers.append(content or b"")
                offset += stat_struct.size
            else:
                code = int_struct.unpack_from(data, offset)[0]
                answers.append(EXCEPTIONS.get(code, SystemZookeeperError)())
                offset += int_struct.size


def add_watch(client: Any, path: str) -> Any:
    """Watch a node and all below it until the connection ends. Returns kazoo's asynchronous result."""
    return _send(client, _AddWatch(_prefix_root(client.chroot, path)))


def remove_watches(client: Any, path: str) -> Any:
    """End what `add_watch` began. Returns kazoo's asynchronous result."""
    return _send(client, _RemoveWatches(_prefix_root(client.chroot, path)))


def multi_read(client: Any, paths: Sequence[str]) -> Any:
    """Read many nodes at once. The asynchronous result is a list of data, or of the exception of a node."""
    return _send(client, _MultiRead([_prefix_root(client.chroot, path) for path in paths]))


class _Ear:
    """Put into a client's connection, once: hears its events for all who want to."""

    def __init__(self, client: Any) -> None:
        self.heard: tuple[Callable[[str], object], ...] = ()
        self._client = client
        self._read_watch_event = client._connection._read_watch_event

    def __call__(self, buffer: Any, offset: int) -> None:
        try:
            path = self._client.unchroot(Watch.deserialize(buffer, offset)[0].path)
            for heard in self.heard:
                heard(path)
        except Exception:  # it must not end the connection
            logger.exception("an event of ZooKeeper could not be handled")
        self._read_watch_event(buffer, offset)


def listen(client: Any, heard: Callable[[str], object]) -> None:
    """Have `heard(path)` called for every event that the client reads, on kazoo's connection thread.

    It is called before the answers that follow the event are handed out, and kazoo's own watches go on working.
    """
    connection = client._connection
    if not isinstance(connection._read_watch_event, _Ear):
        connection._read_watch_event = _Ear(client)
    connection._read_watch_event.heard += (heard,)


def listen_no_more(client: Any, heard: Callable[[str], object]) -> None:
    """End what `listen` began."""
    ear = client._connection._read_watch_event
    ear.heard = tuple(each for each in ear.heard if each != heard)


def _send(client: Any, request: Any) -> Any:
    answer = client.handler.async_result()
    client._call(request, answer)
    return answer
