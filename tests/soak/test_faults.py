"""Every fault of a registry at full length, with the leases and sessions that are the defaults."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.e2e.faults import CASES, ride_out
from tests.e2e.scenes import FULL, Stage


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with contextlib.closing(Stage(FULL)) as stage:
        yield stage


@pytest.mark.parametrize(("kind", "fault"), CASES)
def test_no_call_fails(stage: Stage, kind: str, fault: str) -> None:
    ride_out(stage.scene(kind), fault)
