"""Be found through a `dir://` registry: one leased file per instance, never seen half-written."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from clientlb.discovery.leases import lease_id, lease_name, read_lease, service_directory, write_lease
from clientlb.discovery.url import absolute, path_of, split_url
from clientlb.endpoint import Endpoint
from clientlb.errors import RegistrationError

SWEEP_AFTER = 3600.0
"""Seconds after which the files of dead owners are removed. They count as dead as soon as their lease ends; this only
keeps the directory from growing."""


class DirectoryRegistrar:
    """Writes leases into a directory. URL: `dir:///run/registry`.

    Args:
        path: The root of the registry; it is made when it does not exist.
        clock: Wall-clock time, in seconds since the epoch; readers use the same clock.

    Raises:
        ConfigurationError: The path cannot be right.
    """

    def __init__(self, path: str | Path, *, clock: Callable[[], float] = time.time) -> None:
        self._root = absolute(path)
        self._clock = clock
        self._swept: set[str] = set()

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Read `dir:///PATH`. The readers' `interval` is accepted, so that both sides can share one URL."""
        parts, _ = split_url(url, ("interval",))
        return cls(path_of(url, parts))

    def attach(self, wake: Callable[[], None]) -> None:
        """Ignored: a directory has no news for a writer."""

    def detach(self, wake: Callable[[], None]) -> None:
        """Nothing was attached."""

    def announce(self, service: str, endpoint: Endpoint, ttl: float) -> None:
        """Write the instance's file, valid for `ttl` seconds from now.

        Raises:
            RegistrationError: The file cannot be written.
        """
        directory = service_directory(self._root, service)
        data = write_lease(endpoint, expires_at=self._clock() + ttl, ttl=ttl)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            _replace(directory / lease_name(endpoint.id), data)
            if service not in self._swept:
                self._swept.add(service)
                _sweep(directory, self._clock() - SWEEP_AFTER)
        except OSError as error:
            raise RegistrationError(f"{self}: {error.strerror}: {error.filename}") from error

    def withdraw(self, service: str, endpoint: Endpoint) -> None:
        """Remove the instance's file.

        Raises:
            RegistrationError: The file cannot be removed.
        """
        file = service_directory(self._root, service) / lease_name(endpoint.id)
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise RegistrationError(f"{self}: {error.strerror}: {error.filename}") from error

    def close(self) -> None:
        """Nothing to release."""

    def default_host(self) -> str:
        """The readers are on this machine."""
        return "127.0.0.1"

    def __str__(self) -> str:
        return f"dir://{self._root}"


def _replace(file: Path, data: bytes) -> None:
    """Put a file under its name in one step. The name of the draft is per process: a crash leaves at most one."""
    draft = file.with_name(f".draft-{os.getpid()}-{file.name}"[:250])
    try:
        draft.write_bytes(data)
        os.replace(draft, file)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _sweep(directory: Path, long_ago: float) -> None:
    """Remove leases that ended, and drafts that were left, before `long_ago`. Somebody else may do it first."""
    for file in directory.iterdir():
        with contextlib.suppress(OSError):
            if lease_id(file.name) is not None:
                ended = read_lease(file.read_bytes()).expires_at
            else:
                ended = file.stat().st_mtime if file.name.startswith(".draft-") else long_ago
            if ended < long_ago:
                file.unlink()
