"""The embedded registry: a directory with one leased JSON file per instance. No server, one machine.

For demos, tests, and programs whose processes share a host. `clientlb.registration.directory` writes the files,
`leases` says what is in them; this module looks at them and delivers what it sees.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from clientlb.discovery.base import Listener
from clientlb.discovery.decode import MAX_INSTANCE_BYTES, InstanceDecoder
from clientlb.discovery.feed import Feed
from clientlb.discovery.leases import Lease, Roll, lease_id, read_lease, service_directory
from clientlb.discovery.polling import Poller
from clientlb.discovery.url import absolute, checked_seconds, path_of, seconds_option, split_url
from clientlb.errors import DiscoveryError

INTERVAL = 0.1
"""Seconds between two looks: a new server gets calls well within a second, for a few system calls per look."""


class DirectoryDiscovery:
    """The services in a directory. URL: `dir:///run/registry`, with `?interval=0.1`.

    A root that does not exist is an error that keeps the last good list; a service without a directory, or with an
    empty one, has no endpoints. An instance whose lease expired is dead.

    Args:
        path: The root of the registry.
        interval: Seconds between two looks (default 0.1).
        clock: Wall-clock time, in seconds since the epoch; owners of leases use the same clock.

    Raises:
        ConfigurationError: The path or the interval cannot be right.
    """

    def __init__(self, path: str | Path, *, interval: float = INTERVAL, clock: Callable[[], float] = time.time) -> None:
        self._root = absolute(path)
        self._interval = checked_seconds("interval", interval)
        self._clock = clock
        self._poller = Poller("dir", self._interval)

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Read `dir:///PATH?interval=SECONDS`."""
        parts, options = split_url(url, ("interval",))
        return cls(path_of(url, parts), interval=seconds_option(options, "interval", INTERVAL))

    def resolver(self, service: str) -> DirectoryResolver:
        """Make the resolver of one service.

        Raises:
            ConfigurationError: The name is empty.
        """
        return DirectoryResolver(self, service)

    def close(self) -> None:
        """End the thread that watches the directory."""
        self._poller.clear()

    def __str__(self) -> str:
        return f"dir://{self._root}"


class DirectoryResolver:
    """Watches one service. The first list is delivered before `start` returns."""

    def __init__(self, discovery: DirectoryDiscovery, service: str) -> None:
        self._discovery = discovery
        self._name = f"{service} in {discovery}"
        self._directory = service_directory(discovery._root, service)
        self._roll = Roll(discovery._interval)
        self._decoder = InstanceDecoder(self._name)
        self._files: dict[str, tuple[tuple[int, int, int], Lease]] = {}
        self._feed: Feed | None = None

    def start(self, listener: Listener) -> None:
        """Deliver what the directory holds, then watch it."""
        self._feed = Feed(listener, self._name)
        self._look()
        self._discovery._poller.add(self._look)

    def close(self) -> None:
        """Stop watching."""
        if self._feed is not None:
            self._feed.close()
            self._discovery._poller.remove(self._look)

    def _look(self) -> float | None:
        assert self._feed is not None
        try:
            leases = self._leases()
        except OSError as error:
            self._feed.error(DiscoveryError(f"{self._discovery}: {error.strerror}: {error.filename}"))
            return None
        alive, first_end = self._roll.call(leases, self._discovery._clock())
        self._feed.update(self._decoder.decode_all({id: alive[id].data for id in sorted(alive)}))
        return first_end

    def _leases(self) -> dict[str, Lease]:
        """What the directory holds; only files that changed since the last look are read.

        Raises:
            OSError: The registry cannot be read. A service that is not there is no error.
        """
        files: dict[str, tuple[tuple[int, int, int], Lease]] = {}
        leases: dict[str, Lease] = {}
        try:
            entries = os.scandir(self._directory)
        except FileNotFoundError:
            os.stat(self._discovery._root)  # raises if it is the whole registry that is gone
            entries = None
        if entries is not None:
            with entries:
                for entry in entries:
                    id = lease_id(entry.name)
                    file = None if id is None else self._file(entry)
                    if id is not None and file is not None:
                        files[entry.name], leases[id] = file, file[1]
        self._files = files
        return leases

    def _file(self, entry: os.DirEntry[str]) -> tuple[tuple[int, int, int], Lease] | None:
        try:
            status = entry.stat()
            signature = (status.st_mtime_ns, status.st_size, status.st_ino)
            before = self._files.get(entry.name)
            if before is not None and before[0] == signature:
                return before
            if not stat.S_ISREG(status.st_mode):  # reading a pipe would block
                return None
            with open(entry.path, "rb") as file:
                return signature, read_lease(file.read(MAX_INSTANCE_BYTES + 1))
        except FileNotFoundError:  # withdrawn while we looked
            return None
