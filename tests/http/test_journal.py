"""A journal of real calls to real servers, and its replay: what would have happened under the default policy."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import clientlb
import clientlb.httpx
from clientlb.cli import main
from clientlb.journal import read_journal
from clientlb.replay import recorded, replay
from clientlb.testing import ManualDiscovery
from tests.http.conftest import Process

CALLS = 1000


def test_the_default_policy_would_have_steered_around_the_slow_server(
    tmp_path: Path, start: Callable[..., Process]
) -> None:
    path = tmp_path / "journal.jsonl"
    servers = {name: start(name) for name in "abc"}
    slow = servers["c"].address
    registry = ManualDiscovery({"orders": [server.address for server in servers.values()]})
    options = clientlb.Options(policy="round_robin", journal=clientlb.JournalOptions(path=path))
    with clientlb.Services(registry, options=options) as services, clientlb.httpx.Client(services) as http:
        with ThreadPoolExecutor(4) as crew:
            url = "http://orders/sleep?seconds=0.03&at=c"
            answers = list(crew.map(lambda _: http.get(url).status_code, range(CALLS)))
        assert answers == [200] * CALLS
        told = services["orders"].explain(3)
        assert "  the last 3 picks:" in told
        assert "one of 3: ok after" in told

    recordings = read_journal(path)
    before, after = recorded(recordings), replay(recordings, clientlb.Options())
    assert (before.calls, before.lost, before.cancelled) == (CALLS, 0, 0)
    assert abs(before.share(slow) - 1 / 3) < 0.01
    assert after.calls == CALLS
    assert after.share(slow) < before.share(slow) / 3
    assert (after.quantile(0.99) or 1.0) < (before.quantile(0.99) or 0.0)
    assert main(["replay", str(path)]) == 0
