"""Endpoints in a JSON or TOML file that somebody else writes: a deployment tool, a sidecar, an editor.

    {"orders": ["10.0.0.1:80", {"host": "10.0.0.2", "port": 80, "weight": 2}], "users": []}

A bare JSON list is the list of every service. The file is read again when its time, size or inode changes.
"""

from __future__ import annotations

import json
import logging
import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from clientlb.discovery._remarks import not_read
from clientlb.discovery.decode import decode_address, decode_object
from clientlb.discovery.feed import Feed
from clientlb.discovery.polling import PolledResolver, Poller
from clientlb.discovery.url import absolute, checked_seconds, path_of, seconds_option, split_url
from clientlb.endpoint import Endpoint
from clientlb.errors import DiscoveryError, InvalidEndpointError

logger: logging.Logger = logging.getLogger("clientlb.discovery")

INTERVAL = 0.5
"""Seconds between two looks at the file: half of the second within which a new server should get calls."""

MAX_FILE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, eq=False)
class _Version:
    """The file as it was read once: its content, or what was wrong with it."""

    signature: tuple[int, int, int]
    content: Any = None
    trouble: str = ""


class FileDiscovery:
    """The services of one file. URL: `file:///etc/services.json` or `.toml`, with `?interval=0.5`.

    A file that is missing or cannot be parsed is an error that keeps the last good list; a service that a good file
    does not mention has no endpoints; a bad entry among good ones is left out and logged.

    Args:
        path: The file; TOML if its name ends with `.toml`, otherwise JSON.
        interval: Seconds between two looks (default 0.5).

    Raises:
        ConfigurationError: The path or the interval cannot be right.
    """

    def __init__(self, path: str | Path, *, interval: float = INTERVAL) -> None:
        self._path = absolute(path)
        self._poller = Poller("file", checked_seconds("interval", interval))
        self._last: _Version | None = None

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Read `file:///PATH?interval=SECONDS`."""
        parts, options = split_url(url, ("interval",))
        return cls(path_of(url, parts), interval=seconds_option(options, "interval", INTERVAL))

    def resolver(self, service: str) -> FileResolver:
        """Make the resolver of one service."""
        return FileResolver(self, service)

    def close(self) -> None:
        """End the thread that watches the file."""
        self._poller.close()

    def __str__(self) -> str:
        return self._path.as_uri()

    def _read(self) -> _Version:
        """The file as it is now; the same object as before if it did not change.

        Called from several threads without a lock: at worst the file is read twice.

        Raises:
            OSError: The file cannot be read at the moment.
        """
        status = os.stat(self._path)
        signature = (status.st_mtime_ns, status.st_size, status.st_ino)
        last = self._last
        if last is None or last.signature != signature:
            last = self._last = self._parse(signature, status)
        return last

    def _parse(self, signature: tuple[int, int, int], status: os.stat_result) -> _Version:
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would block
            return _Version(signature, trouble="it is not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            return _Version(signature, trouble=f"it has more than {MAX_FILE_BYTES} bytes")
        data = self._path.read_bytes()
        try:
            if self._path.suffix == ".toml":
                return _Version(signature, tomllib.loads(data.decode()))
            return _Version(signature, json.loads(data))
        except (ValueError, RecursionError) as error:
            return _Version(signature, trouble=f"it cannot be parsed: {error}")


class FileResolver(PolledResolver):
    """Watches one service of the file."""

    def __init__(self, discovery: FileDiscovery, service: str) -> None:
        super().__init__(discovery._poller, f"{service} in {discovery}")
        self._discovery = discovery
        self._service = service
        self._seen: _Version | None = None
        self._skipped = 0

    def remarks(self) -> list[str]:
        """How many entries could not be read, for `Balancer.explain()`."""
        return not_read(self._skipped)

    def _deliver(self, feed: Feed) -> None:
        try:
            version = self._discovery._read()
            if version is self._seen:
                return
            endpoints = self._endpoints(version)
        except (OSError, DiscoveryError) as error:
            self._seen = None
            trouble = error.strerror if isinstance(error, OSError) else error
            feed.error(DiscoveryError(f"{self._discovery}: {trouble}"))
            return
        self._seen = version
        feed.update(endpoints)

    def _endpoints(self, version: _Version) -> list[Endpoint]:
        if version.trouble:
            raise DiscoveryError(version.trouble)
        entries = version.content
        if isinstance(entries, Mapping):
            entries = entries.get(self._service, [])
        if not isinstance(entries, list):
            raise DiscoveryError(f"a list of endpoints was expected for {self._service}, not {type(entries).__name__}")
        read = [self._endpoint(position, entry) for position, entry in enumerate(entries)]
        self._skipped = read.count(None)
        return [endpoint for endpoint in read if endpoint is not None]

    def _endpoint(self, position: int, entry: object) -> Endpoint | None:
        try:
            return decode_address(entry) if isinstance(entry, str) else decode_object(entry)
        except InvalidEndpointError as error:
            logger.warning("%s: entry %d is left out: %s", self._name, position + 1, error)
            return None
