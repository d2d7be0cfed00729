"""Every registry with every shell: what happens to servers costs no call.

The servers are processes of their own that register themselves. They are shared by all shells of a registry: a test
that ends one leaves it to the next to call a spare. A server that was killed stays in the registry until its lease ends,
so most tests run with one or two dead servers in the list, as life has it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clientlb import Services
from tests.e2e.fleet import Fleet, fleet_in
from tests.e2e.shells import REGISTRIES, SHELLS
from tests.e2e.traffic import Traffic
from tests.servers.process import ServerProcess


@pytest.fixture(scope="module", params=REGISTRIES)
def registry(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a registry that stays up."""
    if request.param == "dir":
        folder: Path = tmp_path_factory.mktemp("registry")
        return f"dir://{folder}"
    server: ServerProcess = request.getfixturevalue(request.param)
    return str(server.url)  # type: ignore[attr-defined]  # of both


@pytest.fixture(scope="module")
def shared_fleet(registry: str) -> Iterator[Fleet]:
    with fleet_in(registry) as fleet:
        yield fleet


@pytest.fixture
def fleet(shared_fleet: Fleet) -> Fleet:
    shared_fleet.fill()
    return shared_fleet


@pytest.fixture
def services(registry: str) -> Iterator[Services]:
    with Services(registry) as services:
        yield services


each_shell = pytest.mark.parametrize("shell", SHELLS)


@each_shell
def test_calls_spread_and_a_killed_server_costs_no_idempotent_call(
    shell: str, fleet: Fleet, services: Services
) -> None:
    with Traffic(shell, services, fleet) as traffic:
        traffic.wait_served_by(*fleet.names)
        victim = fleet.kill_one()
        killed_at = time.monotonic()
        traffic.wait_served_by(*fleet.names, since=killed_at)
        traffic.wait_calls(60)
    traffic.check_no_failures()
    assert not traffic.served_after(victim.name, killed_at)
    traffic.check_nothing_in_flight()


@each_shell
def test_a_new_server_gets_calls_within_a_second(shell: str, fleet: Fleet, services: Services) -> None:
    with Traffic(shell, services, fleet) as traffic:
        traffic.wait_served_by(*fleet.names)
        server = fleet.add()
        registered_at = server.joined()[traffic.service]
        traffic.wait_served_by(server.name)
    waited = traffic.first_served_by(server.name) - registered_at
    assert waited < 1.0, f"the first call came after {waited:.3f} s\n{traffic.report()}"
    traffic.check_no_failures()


@each_shell
def test_a_server_that_leaves_costs_no_call_at_all(shell: str, fleet: Fleet, services: Services) -> None:
    with Traffic(shell, services, fleet, store=True) as traffic:
        traffic.wait_served_by(*fleet.names)
        leaver = fleet.lose_one()
        left_at = time.monotonic()
        traffic.wait_calls(30)
    traffic.check_no_failures()
    assert not traffic.served_after(leaver.name, left_at)
    traffic.check_nothing_in_flight()
