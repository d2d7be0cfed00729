"""What the contracts of discovery and registration have in common: their endpoints, and how they watch and wait."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

from clientlb.discovery.base import Discovery
from clientlb.endpoint import Endpoint
from clientlb.testing.fakes import RecordingListener

A = Endpoint("127.0.0.1", 7001, id="a", zone="z1", version="1.0")
B = Endpoint("127.0.0.1", 7002, id="b", weight=3.0, zone="z2")
C = Endpoint("127.0.0.1", 7003, id="c")


class Contract:
    """Tests that run against any backend, as methods. Needs no test framework to be imported."""

    secret: ClassVar[str] = ""
    """A password or token in what `make_discovery` returns; it must not appear in its name. "" if it has none."""

    timeout: ClassVar[float] = 15.0
    """Seconds within which news must arrive. Generous: the contract is about what arrives, not about when."""

    close_within: ClassVar[float] = 3.0
    """Seconds within which what must not block has to return, on a busy machine."""

    _needs: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Abilities, and the tests that a subclass without them does not inherit."""

    def make_discovery(self) -> Discovery:
        """Make a new discovery of the registry under test. The test closes it."""
        raise TypeError(f"{type(self).__name__} must define make_discovery()")

    def describe(self, endpoint: Endpoint) -> object:
        """What of an endpoint must survive the registry. Override it for one that cannot hold all of this."""
        return (endpoint.host, endpoint.port, endpoint.weight, endpoint.zone, endpoint.version)

    # --- how the tests are written -----------------------------------------------------------------------------------

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        for ability, tests in cls._needs.items():
            for test in tests:
                if not getattr(cls, ability) and test not in vars(cls):
                    setattr(cls, test, None)

    @contextlib.contextmanager
    def _discovery(self) -> Iterator[Discovery]:
        with contextlib.closing(self.make_discovery()) as discovery:
            yield discovery

    @contextlib.contextmanager
    def _watching(self, discovery: Discovery, service: str) -> Iterator[RecordingListener]:
        with contextlib.closing(discovery.resolver(service)) as resolver:
            listener = RecordingListener()
            resolver.start(listener)
            yield listener

    def _wait(self, seen: RecordingListener, wanted: Sequence[Endpoint]) -> None:
        content = self._described(wanted)
        seen.wait_for(lambda it: it.endpoints is not None and self._described(it.endpoints) == content, self.timeout)

    def _described(self, endpoints: Iterable[Endpoint]) -> list[str]:
        return sorted(repr(self.describe(endpoint)) for endpoint in endpoints)

    def _find(self, seen: RecordingListener, wanted: Endpoint) -> Endpoint:
        return next(it for it in seen.endpoints or () if (it.host, it.port) == (wanted.host, wanted.port))

    def _at_once(self, action: Callable[[], object]) -> None:
        start = time.monotonic()
        action()
        assert time.monotonic() - start < self.close_within, "it blocked its caller"
