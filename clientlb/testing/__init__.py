"""Fakes and checks for tests: ours, and those of programs and backends that build on clientlb.

`ManualDiscovery` is a registry that the test writes, `FakeClock` a clock that the test winds, `RecordingListener` a
listener that remembers. `ScriptedServer` is a real HTTP server that answers as the test says. `DiscoveryContract` and
`RegistrarContract` hold the tests that every backend must pass. No test framework is needed to import this package;
`plugin` shows it to pytest as fixtures.
"""

from __future__ import annotations

from clientlb.testing.contract import DiscoveryContract
from clientlb.testing.fakes import FakeClock, ManualDiscovery, RecordingListener
from clientlb.testing.registrars import RegistrarContract
from clientlb.testing.servers import ScriptedServer, SeenRequest

__all__ = [
    "DiscoveryContract",
    "FakeClock",
    "ManualDiscovery",
    "RecordingListener",
    "RegistrarContract",
    "ScriptedServer",
    "SeenRequest",
]
