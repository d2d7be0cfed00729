"""The embedded registry: a directory with one leased JSON file per instance. No server, one machine.

For demos, tests, and programs whose processes share a host. `clientlb.registration.directory` writes the files,
`leases` says what is in them; this module looks at them and delivers what it sees.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Self

from clientlb.discovery.decode import MAX_INSTANCE_BYTES, InstanceDecoder
from clientlb.discovery.feed import Feed
from clientlb.discovery.leases import Lease, Roll, lease_id, read_lease, service_directory
from clientlb.discovery.polling import PolledResolver, Poller
from clientlb.discovery.url import absolute, checked_seconds, path_of, seconds_option, split_url
from clientlb.errors import DiscoveryError

_Signature = tuple[int, int, int]

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
        self._poller.close()

    def __str__(self) -> str:
        return f"dir://{self._root}"


class DirectoryResolver(PolledResolver):
    """Watches one service."""

    def __init__(self, discovery: DirectoryDiscovery, service: str) -> None:
        super().__init__(discovery._poller, f"{service} in {discovery}")
        self._discovery = discovery
        self._directory = service_directory(discovery._root, service)
        self._roll = Roll(discovery._interval)
        self._decoder = InstanceDecoder(self._name)
        self._files: dict[str, tuple[_Signature, Lease]] = {}

    def _deliver(self, feed: Feed) -> float | None:
        try:
            leases = self._leases()
        except OSError as error:
            feed.error(DiscoveryError(f"{self._discovery}: {error.strerror}: {error.filename}"))
            return None
        alive, first_end = self._roll.call(leases, self._discovery._clock())
        feed.update(self._decoder.decode_all({id: alive[id].data for id in sorted(alive)}))
        return first_end

    def _leases(self) -> dict[str, Lease]:
        """What the directory holds; only files that changed since the last look are read.

        Everything is reached through the open root, so that a registry that is moved away in the middle of a look is
        never mistaken for one whose servers left.

        Raises:
            OSError: The registry cannot be read. A service that is not there is no error.
        """
        files: dict[str, tuple[_Signature, Lease]] = {}
        leases: dict[str, Lease] = {}
        with _opened(self._discovery._root) as root:
            try:
                with _opened(self._directory.name, root) as directory, os.scandir(directory) as entries:
                    for entry in entries:
                        id = lease_id(entry.name)
                        file = None if id is None else self._file(entry, directory)
                        if id is not None and file is not None:
                            files[entry.name], leases[id] = file, file[1]
            except FileNotFoundError:
                pass
        self._files = files
        return leases

    def _file(self, entry: os.DirEntry[str], directory: int) -> tuple[_Signature, Lease] | None:
        try:
            status = entry.stat()
            signature = (status.st_mtime_ns, status.st_size, status.st_ino)
            before = self._files.get(entry.name)
            if before is not None and before[0] == signature:
                return before
            if not stat.S_ISREG(status.st_mode):  # reading a pipe would block
                return None
            with open(entry.name, "rb", opener=partial(os.open, dir_fd=directory)) as file:
                return signature, read_lease(file.read(MAX_INSTANCE_BYTES + 1))
        except FileNotFoundError:  # withdrawn while we looked
            return None


@contextlib.contextmanager
def _opened(path: str | Path, parent: int | None = None) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
