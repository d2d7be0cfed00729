"""The embedded registry: a directory with one leased JSON file per instance. No server, one machine.

For demos, tests, and programs whose processes share a host. `clientlb.registration.directory` writes the files,
`leases` says what is in them; this module looks at them and delivers what it sees.
"""

from __future__ import annotations

import contextlib
import math
import os
import stat
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Self

from clientlb.discovery._remarks import not_read
from clientlb.discovery.decode import MAX_INSTANCE_BYTES, Decoder, InstanceDecoder, open_decoder
from clientlb.discovery.feed import Feed
from clientlb.discovery.leases import Lease, Roll, lease_id, read_lease, service_directory
from clientlb.discovery.polling import PolledResolver, Poller
from clientlb.discovery.url import absolute, checked_seconds, path_of, seconds_option, split_url
from clientlb.errors import DiscoveryError

_Signature = tuple[int, int, int]

INTERVAL = 0.1
"""Seconds between two looks: a new server gets calls well within a second, for a few system calls per look."""

FULL_LOOK = 1.0
"""Seconds after which the files are looked at although the directory, which records every rename, says nothing new:
somebody may have written into a file, and some file systems keep coarse times."""

_TICK = 0.05
"""What happens within one tick of a file system's clock leaves the same time. No common local one is coarser."""


class DirectoryDiscovery:
    """The services in a directory. URL: `dir:///run/registry`, with `?interval=0.1` and `&format=curator`.

    A root that does not exist is an error that keeps the last good list; a service without a directory, or with an
    empty one, has no endpoints. An instance whose lease expired is dead.

    Args:
        path: The root of the registry.
        interval: Seconds between two looks (default 0.1).
        clock: Wall-clock time, in seconds since the epoch; owners of leases use the same clock.
        format: The format of the files, as for `open_decoder` (default: that of each file is recognised).

    Raises:
        ConfigurationError: The path, the interval or the format cannot be right.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        interval: float = INTERVAL,
        clock: Callable[[], float] = time.time,
        format: str | Decoder | None = None,
    ) -> None:
        self._root = absolute(path)
        self._interval = checked_seconds("interval", interval)
        self._clock = clock
        self._format = format
        open_decoder(format)  # a wrong one fails here rather than at the first call
        self._poller = Poller("dir", self._interval)

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Read `dir:///PATH?interval=SECONDS&format=NAME`."""
        parts, options = split_url(url, ("interval", "format"))
        interval = seconds_option(options, "interval", INTERVAL)
        return cls(path_of(url, parts), interval=interval, format=options.get("format"))

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
        self._decoder = InstanceDecoder(self._name, discovery._format)
        self._files: dict[str, tuple[_Signature, Lease]] = {}
        self._leases: dict[str, Lease] = {}
        self._quiet: _Signature | None = None
        self._looked_at = -math.inf
        self._delivered: dict[str, Lease] | None = None

    def remarks(self) -> list[str]:
        """How many instances could not be read, for `Balancer.explain()`."""
        return not_read(self._decoder.skipped)

    def _deliver(self, feed: Feed) -> float | None:
        try:
            self._look_at_files()
        except OSError as error:
            self._delivered = None
            feed.error(DiscoveryError(f"{self._discovery}: {error.strerror}: {error.filename}"))
            return None
        alive, first_end = self._roll.call(self._leases, self._discovery._clock())
        if alive is not self._delivered:
            feed.update(self._decoder.decode_all({id: alive[id].data for id in sorted(alive)}))
            self._delivered = alive
        return first_end

    def _look_at_files(self) -> None:
        """Learn what the directory holds; only files that changed since the last look are read.

        Everything is reached through the open root, so that a registry that is moved away in the middle of a look is
        never mistaken for one whose servers left.

        Raises:
            OSError: The registry cannot be read. A service that is not there is no error.
        """
        with _opened(self._discovery._root) as root:
            try:
                with _opened(self._directory.name, root) as directory:
                    status = os.fstat(directory)
                    signature, now = _signature(status), time.monotonic()
                    if signature == self._quiet and now < self._looked_at + FULL_LOOK:
                        return
                    settled = status.st_mtime < time.time() - _TICK
                    self._read(directory)
                    self._quiet, self._looked_at = (signature if settled else None), now
            except FileNotFoundError:
                self._files, self._leases, self._quiet = {}, {}, None

    def _read(self, directory: int) -> None:
        files: dict[str, tuple[_Signature, Lease]] = {}
        with os.scandir(directory) as entries:
            for entry in entries:
                file = None if lease_id(entry.name) is None else self._file(entry, directory)
                if file is not None:
                    files[entry.name] = file
        if files != self._files:
            self._files = files
            self._leases = {id: lease for name, (_, lease) in files.items() if (id := lease_id(name)) is not None}

    def _file(self, entry: os.DirEntry[str], directory: int) -> tuple[_Signature, Lease] | None:
        try:
            status = entry.stat()
            signature = _signature(status)
            before = self._files.get(entry.name)
            if before is not None and before[0] == signature:
                return before
            if not stat.S_ISREG(status.st_mode):  # reading a pipe would block
                return None
            with open(entry.name, "rb", opener=partial(os.open, dir_fd=directory)) as file:
                return signature, read_lease(file.read(MAX_INSTANCE_BYTES + 1))
        except FileNotFoundError:  # withdrawn while we looked
            return None


def _signature(status: os.stat_result) -> _Signature:
    return (status.st_mtime_ns, status.st_size, status.st_ino)


@contextlib.contextmanager
def _opened(path: str | Path, parent: int | None = None) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
