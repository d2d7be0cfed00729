"""Writes a journal to its file, on a thread of its own.

Several services and processes may write the same file: each writes whole lines, appends them, and holds a lock on the
file meanwhile. Who finds the file too long renames it and begins a new one; the others see that theirs is no longer the
one of that name. Every writer begins in a new file with who it is and whom it uses, so a file can be read by itself.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import logging
import os
import queue
import stat
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from clientlb.journal.entry import Entry, Listed

_log = logging.getLogger("clientlb.journal")

FORMAT = "clientlb journal"
VERSION = 1
Item: TypeAlias = "Callable[[], Entry | Listed]"

_MOST_WAITING = 50_000
"""Items. What a disk that hangs does not take is dropped; a program must not run out of memory for its journal."""
_PAUSE = 0.1
"""Seconds between two writes: one write for many picks."""
_BATCH = 2**18
"""Bytes that are written at once, roughly."""
_CLOSE_PATIENCE = 1.0


class JournalWriter:
    """Takes what is to be written and returns at once. `put` may be called anywhere, even by the garbage collector.

    Args:
        path: The file. It is made readable for its owner only.
        max_bytes: Size at which it is renamed and begun anew.
        head: Who writes: the client, its service and its policy.
    """

    def __init__(self, path: str | os.PathLike[str], max_bytes: int, head: dict[str, str]) -> None:
        self.path: str = os.fspath(path)
        self.dropped: int = 0
        """Items that were not written, because the disk was too slow or full."""
        self._max_bytes = max_bytes
        self._head = head
        self._warned = False
        self._file: int | None = None
        self._introduced = False
        self._listed = self._used = Listed(0.0, ())
        self._queue: queue.SimpleQueue[Item | threading.Event | None] = queue.SimpleQueue()  # its `put` is reentrant
        self._closing = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def put(self, item: Item) -> None:
        """Have something written. Does nothing after `close`."""
        if self._closed:
            return
        if self._queue.qsize() < _MOST_WAITING:
            self._queue.put(item)
        else:
            self.dropped += 1

    def start(self) -> None:
        """Begin to write, if that has not begun."""
        if self._thread is not None or self._closed:
            return
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="clientlb-journal", daemon=True)
                try:
                    self._thread.start()
                    atexit.register(self.close)
                except RuntimeError as error:  # no more threads, or the program is at its end
                    self._warn(error)

    def flush(self, timeout: float) -> bool:
        """Wait until what was put is written, at most `timeout` seconds."""
        written = threading.Event()
        self._queue.put(written)
        return self._thread is not None and written.wait(timeout)

    def close(self) -> None:
        """Write what was put, if that takes less than a second. Idempotent."""
        self._closed = True
        self._closing.set()
        self._queue.put(None)
        atexit.unregister(self.close)
        thread = self._thread
        if thread is not None and thread.is_alive() and thread is not threading.current_thread():
            thread.join(_CLOSE_PATIENCE)

    def after_fork(self) -> None:
        """In a forked child, where this is the parent's: let go of its file. The parent keeps its lock on it."""
        atexit.unregister(self.close)
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        last = False
        while not last:
            items = [self._queue.get()]
            self._closing.wait(_PAUSE)
            with contextlib.suppress(queue.Empty):
                while True:
                    items.append(self._queue.get_nowait())
            last = None in items
            for lines in self._batches(items):
                try:
                    self._write(lines)
                except Exception as error:
                    self.dropped += lines.count(b"\n")
                    self._warn(error)
            for item in items:
                if isinstance(item, threading.Event):
                    item.set()
        self._let_go()

    def _batches(self, items: list[Item | threading.Event | None]) -> Iterator[bytes]:
        lines: list[str] = []
        size = 0
        self._used = self._listed
        for item in items:
            if item is None or isinstance(item, threading.Event):
                continue
            value = item()
            line = self._change(value) if isinstance(value, Listed) else value.as_json()
            lines.append(_dump({"client": self._head["client"], **line}))
            size += len(lines[-1])
            if size >= _BATCH:
                yield _join(lines)
                lines, size = [], 0
                self._used = self._listed
        if lines:
            yield _join(lines)

    def _change(self, listed: Listed) -> dict[str, Any]:
        """Who came and who went: a list of thousands that changes by one is one line of one endpoint."""
        before = {endpoint.key: endpoint for endpoint in self._listed.endpoints}
        now = {endpoint.key: endpoint for endpoint in listed.endpoints}
        joined = [endpoint.as_json() for key, endpoint in now.items() if before.get(key) != endpoint]
        left = [list(key) for key in before if key not in now]
        self._listed = listed
        return {"at": round(listed.at, 6), "joined": joined, "left": left}

    def _write(self, lines: bytes) -> None:
        """Append whole lines, and rename the file before it becomes too long.

        Raises:
            OSError: They could not be written. Then nothing of them is in the file.
        """
        while True:
            if self._file is None:
                self._file = self._open()
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                status = os.fstat(self._file)
                if self._is_renamed(status):
                    self._let_go()
                elif status.st_size and status.st_size + len(lines) > self._max_bytes:
                    os.replace(self.path, f"{self.path}.1")
                    self._let_go()
                else:
                    self._append(lines, status.st_size)
                    return
            finally:
                if self._file is not None:
                    fcntl.flock(self._file, fcntl.LOCK_UN)

    def _is_renamed(self, status: os.stat_result) -> bool:
        try:
            named = os.stat(self.path)
        except FileNotFoundError:
            return True
        return (named.st_ino, named.st_dev) != (status.st_ino, status.st_dev)

    def _append(self, lines: bytes, size: int) -> None:
        assert self._file is not None
        rest = memoryview(lines if self._introduced else self._introduction() + lines)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, size)  # no half of a line
            raise
        self._introduced = True

    def _introduction(self) -> bytes:
        """Who writes, and whom it used before what follows."""
        used = {"at": round(self._used.at, 6), "joined": [endpoint.as_json() for endpoint in self._used.endpoints]}
        return _join([_dump({"format": FORMAT, "version": VERSION, **self._head, **used})])

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        file = os.open(self.path, flags, 0o600)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise OSError("it is no ordinary file")
        self._introduced = False
        return file

    def _let_go(self) -> None:
        if self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)  # to close it is not enough where a forked child has it, too
            os.close(self._file)
            self._file = None

    def _warn(self, error: Exception) -> None:
        """Once: a full disk would else fill the log."""
        if not self._warned:
            self._warned = True
            _log.warning("the journal %s could not be written; picks are missing in it: %s", self.path, error)


def _dump(line: dict[str, Any]) -> str:
    return json.dumps(line, separators=(",", ":"))


def _join(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
