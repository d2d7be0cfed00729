"""Whatever happens to the registry, no call fails, and soon after it recovered the list is right again.

The faults are short here; `make soak` has them at full length.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.e2e.faults import CASES, ride_out
from tests.e2e.scenes import SHORT, Stage


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with contextlib.closing(Stage(SHORT)) as stage:
        yield stage


@pytest.mark.parametrize(("kind", "fault"), CASES)
def test_no_call_fails(stage: Stage, kind: str, fault: str) -> None:
    ride_out(stage.scene(kind), fault)
