"""Closing a client ends its calls that wait for endpoints: at once, not when their patience is over."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest

import clientlb
from clientlb.balancer import Balancer
from clientlb.testing import ManualDiscovery
from tests.http.conftest import Kind

LONG = 600.0
HEDGED = clientlb.RetryOptions(hedge=clientlb.HedgeOptions())


@pytest.fixture
def services(request: pytest.FixtureRequest) -> Any:
    options = clientlb.Options(wait_for_endpoints=LONG, retry=request.param)
    with clientlb.Services(ManualDiscovery(), options=options) as services:
        yield services


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set as soon as a call waits for endpoints."""
    waiting = threading.Event()

    def noted(ordinary: Callable[..., Any]) -> Callable[..., Any]:
        def wait(self: Balancer, timeout: float) -> Any:
            waiting.set()
            return ordinary(self, timeout)

        return wait

    for name in ("wait", "wait_async"):
        monkeypatch.setattr(Balancer, name, noted(getattr(Balancer, name)))
    return waiting


@pytest.mark.parametrize("services", [clientlb.RetryOptions(), HEDGED], ids=["plain", "hedged"], indirect=True)
async def test_a_call_that_waits_for_endpoints_ends_with_its_client(
    kind: Kind, services: clientlb.Services, waiting: threading.Event
) -> None:
    errors: list[Exception] = []
    client = kind.client_type(services)

    def call() -> None:
        with pytest.raises(clientlb.ClosedError, match="the client was closed") as caught:
            client.get("http://orders/")
        errors.append(caught.value)

    async def call_async() -> None:
        with pytest.raises(clientlb.ClosedError, match="the client was closed") as caught:
            await client.get("http://orders/")
        errors.append(caught.value)

    async def close() -> None:
        await anyio.to_thread.run_sync(waiting.wait)
        await (client.aclose() if kind.is_async else anyio.to_thread.run_sync(client.close))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            if kind.is_async:
                group.start_soon(call_async)
            else:
                group.start_soon(lambda: anyio.to_thread.run_sync(call, abandon_on_cancel=True))
            await close()
    assert len(errors) == 1
