"""The last good lists on disk, for a process that starts while its registry is down.

One file per registry and service: a line that says what it is, then one line of JSON per endpoint. A file is replaced
as a whole (written beside it, synced, renamed), so that a reader sees the old list or the new one, whoever else writes.
What is read is trusted less than a registry: a file that belongs to somebody else, can be written by others, is too
big, or has one line that is not as it should be, is left alone as a whole.

All of it happens on a thread of its own. A disk may hang for seconds, and neither a watch nor a call may hang with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote

from clientlb.discovery.feed import logger
from clientlb.endpoint import Endpoint
from clientlb.errors import ConfigurationError

MOST_BYTES = 16 * 2**20
"""Longest file that is written or read: some 100 000 endpoints."""

_FORMAT = "clientlb endpoints"
_VERSION = 1
_PAUSE = 1.0
"""Seconds between two writes: a fleet that restarts changes its list many times a second."""
_CLOSE_PATIENCE = 1.0
_ABANDONED = 3600.0
"""Seconds after which a half-written file belongs to a process that died."""


class Saved(NamedTuple):
    """What a file holds."""

    endpoints: tuple[Endpoint, ...]
    age: float
    """Seconds since it was written."""


class Subject(Protocol):
    """Whose lists are kept: a balancer."""

    service: str

    @property
    def closed(self) -> bool:
        """Whether it has forgotten its list."""

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """The list in use."""

    def offer(self, endpoints: Iterable[Endpoint], age: float) -> None:
        """Take a list of an earlier time."""


class SnapshotFiles:
    """The files of one registry. Trouble with the disk is an `OSError`, what is wrong with a file a `ValueError`.

    Args:
        folder: Where they are; made with mode 0700 when the first one is written.
        registry: What names the registry, without secrets.

    Raises:
        ConfigurationError: `folder` is no path, or is no folder.
    """

    def __init__(self, folder: str | os.PathLike[str], registry: str) -> None:
        if not isinstance(folder, (str, os.PathLike)) or not os.fspath(folder):
            raise ConfigurationError(f"snapshots is {folder!r}; give the path of a folder")
        self._folder = Path(os.fspath(folder))
        if os.path.lexists(self._folder) and not os.path.isdir(self._folder):
            raise ConfigurationError(f"snapshots: {self._folder} is no folder; give the path of a folder")
        self._registry = registry

    def path(self, service: str) -> Path:
        """The file of a service: no name leads out of the folder, and two never share a file."""
        digest = sha256(f"{self._registry}\n{service}".encode(errors="surrogatepass")).hexdigest()
        readable = quote(service, safe="", errors="replace").replace(".", "%2E")[:100]
        return self._folder / f"{readable}-{digest[:16]}.jsonl"

    def load(self, service: str) -> Saved | None:
        """Read the list of a service; None if there is no file.

        Raises:
            OSError: It cannot be read.
            ValueError: It is not a file of this service that only we can write.
        """
        try:
            # no link is followed, and a pipe does not block
            handle = os.open(self.path(service), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("it is no ordinary file")
            if status.st_uid not in (os.geteuid(), 0):
                raise ValueError(f"it belongs to user {status.st_uid}")
            if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise ValueError("others may write it")
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES} bytes")
        first, *lines = content.decode("utf-8").split("\n")[:-1] or [""]
        head = _object(first)
        if head.get("format") != _FORMAT or head.get("version") != _VERSION:
            raise ValueError("its format is another one")
        if head.get("registry") != self._registry or head.get("service") != service:
            raise ValueError("it is of another registry or service")
        written = head.get("written")
        if not isinstance(written, (int, float)) or head.get("endpoints") != len(lines) or not lines:
            raise ValueError("it is incomplete")
        return Saved(tuple(map(_endpoint, lines)), max(0.0, time.time() - written))

    def save(self, service: str, endpoints: tuple[Endpoint, ...]) -> None:
        """Replace the list of a service.

        Raises:
            OSError: It cannot be written.
            ValueError: It would be too long.
        """
        path = self.path(service)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._sweep(path)
        handle, temporary = tempfile.mkstemp(prefix=f"{path.stem}.", suffix=".tmp", dir=self._folder)  # mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                for line in self._lines(service, endpoints):  # line by line, so that other threads get their turn
                    file.write(line.encode() + b"\n")
                    if file.tell() > MOST_BYTES:
                        raise ValueError(f"{len(endpoints)} endpoints take more than {MOST_BYTES} bytes")
                file.flush()
                os.fsync(handle)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with contextlib.suppress(OSError):  # some file systems cannot; the file is there all the same
                os.fsync(folder)
        finally:
            os.close(folder)

    def delete(self, service: str) -> None:
        """Remove the list of a service, if there is one.

        Raises:
            OSError: It cannot be removed.
        """
        self.path(service).unlink(missing_ok=True)

    def _sweep(self, path: Path) -> None:
        """Remove what processes that died while they wrote have left."""
        for left in self._folder.glob(f"{path.stem}.*.tmp"):
            with contextlib.suppress(OSError):
                if left.stat().st_mtime < time.time() - _ABANDONED:
                    left.unlink()

    def _lines(self, service: str, endpoints: tuple[Endpoint, ...]) -> Iterator[str]:
        head = {"format": _FORMAT, "version": _VERSION, "registry": self._registry, "service": service}
        yield json.dumps({**head, "written": time.time(), "endpoints": len(endpoints)})
        for endpoint in endpoints:
            fields = {name: getattr(endpoint, name) for name in _FIELDS}
            yield json.dumps({**fields, "metadata": dict(endpoint.metadata)})


_FIELDS: dict[str, type | tuple[type, ...]] = {
    "host": str,
    "port": int,
    "id": str,
    "weight": (int, float),
    "secure": bool,
    "zone": (str, type(None)),
    "version": (str, type(None)),
    "started_at": (int, float, type(None)),
}


def _object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("a line is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("a line is no JSON object")
    return value


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _endpoint(line: str) -> Endpoint:
    fields = _object(line)
    if fields.keys() != {*_FIELDS, "metadata"}:
        raise ValueError("an endpoint has other fields")
    for name, kind in _FIELDS.items():
        if not isinstance(fields[name], kind):
            raise ValueError(f"the {name} of an endpoint is of the wrong kind")
    metadata = fields["metadata"]
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("the metadata of an endpoint are not strings")
    return Endpoint(**fields)  # the same checks as for what a registry says


class SnapshotKeeper:
    """Reads and writes the files on a thread of its own. No method blocks or raises.

    Reading begins with the first use of a service, so that the list is at hand when it turns out to be needed. Writing
    follows a change at once, and then at most once a second, with the list as it is by then.
    """

    def __init__(self, files: SnapshotFiles) -> None:
        self._files = files
        self._warned: set[str] = set()
        self._start_anew()

    def _start_anew(self) -> None:
        self._condition = threading.Condition()
        self._to_load: dict[str, Subject] = {}
        self._to_save: dict[str, Subject] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    def fetch(self, subject: Subject) -> None:
        """Read the list of a service and offer it."""
        with self._condition:
            self._to_load[subject.service] = subject
            self._wake()

    def keep(self, subject: Subject) -> None:
        """Write the list of a service. An empty one removes the file: the guard has believed it long enough."""
        with self._condition:
            self._to_save[subject.service] = subject
            self._wake()

    def _wake(self) -> None:
        if self._closed:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="clientlb-snapshots", daemon=True)
            self._thread.start()
        self._condition.notify()

    def close(self) -> None:
        """Write what is yet to be written, if that takes less than a second. Idempotent."""
        with self._condition:
            self._closed = True
            self._condition.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():  # an event hook may close everything
            thread.join(_CLOSE_PATIENCE)

    def after_fork(self) -> None:
        """In a forked child: the thread is the parent's, and so is what it was to do."""
        self._start_anew()

    def _run(self) -> None:
        next_write = 0.0
        while True:
            with self._condition:
                while not self._to_load and not self._closed:
                    wait = next_write - time.monotonic()
                    if self._to_save and wait <= 0:
                        break
                    self._condition.wait(wait if self._to_save else None)
                to_load, self._to_load = self._to_load, {}
                # what was named nobody by its registry is judged by the file, so the file is read first
                to_save: dict[str, Subject] = {}
                if not to_load:
                    to_save, self._to_save = self._to_save, {}
                if self._closed and not to_load and not to_save:
                    return
            for subject in to_load.values():
                self._load(subject)
            for subject in to_save.values():
                self._save(subject)
            if to_save:
                next_write = time.monotonic() + _PAUSE

    def _load(self, subject: Subject) -> None:
        try:
            saved = self._files.load(subject.service)
            if saved is not None:
                subject.offer(*saved)
        except Exception as error:
            self._warn(subject.service, "is not used", error)

    def _save(self, subject: Subject) -> None:
        try:
            endpoints = subject.endpoints
            if endpoints:
                self._files.save(subject.service, endpoints)
            elif not subject.closed:
                self._files.delete(subject.service)
        except Exception as error:
            self._warn(subject.service, "could not be written", error)

    def _warn(self, service: str, what: str, error: Exception) -> None:
        """Once: a full disk would else fill the log."""
        if f"{service} {what}" not in self._warned:
            self._warned.add(f"{service} {what}")
            name = self._files.path(service)
            logger.warning("the last good list of service %r, %s, %s: %s", service, name, what, error)
