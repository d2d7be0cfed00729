"""Watch one service of a discovery, in a few words."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from clientlb.discovery import Discovery
from clientlb.testing import RecordingListener
from tests.servers.process import wait_until

QUICK = 5.0
"""Seconds in which what waits for nobody is over, also on a slow machine."""


class Watched(RecordingListener):
    """A listener that tests ask for ports: what they register differs in them."""

    @property
    def ports(self) -> set[int] | None:
        """The ports of the last list; None before the first."""
        endpoints = self.endpoints
        return None if endpoints is None else {endpoint.port for endpoint in endpoints}

    def expect(self, *ports: int, timeout: float = 30.0) -> None:
        """Wait until exactly these ports are in the list."""
        try:
            wait_until(lambda: self.ports == set(ports), timeout)
        except AssertionError:
            raise AssertionError(f"expected {set(ports)}, have {self.ports}; errors: {self.errors}") from None

    def expect_error(self, *parts: str, timeout: float = 30.0) -> str:
        """Wait for an error with these parts in its text."""

        def matching() -> list[str]:
            texts = [str(error) for error in list(self.errors)]
            return [text for text in texts if all(part in text for part in parts)]

        try:
            wait_until(matching, timeout)
        except AssertionError:
            raise AssertionError(f"no error with {parts} in {self.errors}") from None
        return matching()[-1]


@contextmanager
def watching(discovery: Discovery, service: str) -> Iterator[Watched]:
    """Watch a service; in the end close everything, which must be quick: most questions are held for half a minute."""
    listener = Watched()
    resolver = discovery.resolver(service)
    resolver.start(listener)
    try:
        yield listener
    finally:
        started = time.monotonic()
        resolver.close()
        discovery.close()
        assert time.monotonic() - started < QUICK
