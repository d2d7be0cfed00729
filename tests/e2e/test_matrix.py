"""Every registry with every shell: what happens to servers costs no call.

The servers are processes of their own that register themselves. They are shared by all shells of a registry: a test
that ends one leaves it to the next to call a spare. A server that was killed stays in the registry until its lease
ends, so most tests run with one dead server in the list, as life has it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from clientlb import Services
from tests.e2e.fleet import Fleet, fleet_in
from tests.e2e.shells import SETTLED, SHELLS
from tests.e2e.traffic import Traffic


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
    with Services(registry, options=SETTLED) as services:
        yield services


@pytest.mark.parametrize("shell", SHELLS, scope="class")
class TestEachShell:
    """Its scope makes pytest run all tests of a registry and shell before it goes on to the next."""

    def test_calls_spread_and_a_kill_costs_no_idempotent_call(
        self, shell: str, fleet: Fleet, services: Services
    ) -> None:
        with Traffic(shell, services, fleet) as traffic:
            traffic.wait_endpoints(len(fleet.serving))  # those that were killed before have left
            traffic.wait_served_by(*fleet.names)
            fleet.kill(traffic.favourite)
            traffic.wait_calls(200)  # if one met the dead server it went on to another
        traffic.check_no_failures()
        traffic.check_nothing_in_flight()

    def test_a_new_server_gets_calls_at_once(self, shell: str, fleet: Fleet, services: Services) -> None:
        with Traffic(shell, services, fleet) as traffic:
            traffic.wait_served_by(*fleet.names)
            server = fleet.add()
            registered_at = server.joined()[traffic.service]
            traffic.wait_served_by(server.name)
        waited = traffic.first_served_by(server.name) - registered_at
        # usually a tenth; the limit is for slow machines
        assert waited < 5.0, f"the first call came after {waited:.3f} s\n{traffic.report()}"
        traffic.check_no_failures()

    def test_a_server_that_leaves_costs_no_call_at_all(self, shell: str, fleet: Fleet, services: Services) -> None:
        with Traffic(shell, services, fleet, store=True) as traffic:
            traffic.wait_served_by(*fleet.names)
            traffic.wait_gone(fleet.lose_one())
            traffic.wait_calls(30)
        traffic.check_no_failures()
        traffic.check_nothing_in_flight()
