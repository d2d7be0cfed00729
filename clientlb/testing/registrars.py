"""The contract of registration as tests that run against any registrar. Needs no test framework to be imported."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import ClassVar

from clientlb.endpoint import Endpoint
from clientlb.registration.base import Registrar
from clientlb.testing._base import A, B, Contract

_LONG = 60.0


class RegistrarContract(Contract):
    """The tests that every registrar must pass, seen through the discovery of the same registry.

        class TestEtcdRegistrar(RegistrarContract):
            expires = True
            def make_registrar(self): return EtcdRegistrar(self.address)
            def make_discovery(self): return EtcdDiscovery(self.address)

    The services named `contract…` are empty when a test begins, and nobody else writes them.
    """

    expires: ClassVar[bool] = False
    """An entry that nobody renews ends after its `ttl`, though its registrar lives and is connected."""

    shortest_ttl: ClassVar[float] = 1.0
    """The shortest lease, in seconds, that the registry keeps to."""

    def make_registrar(self) -> Registrar:
        """Make a new registrar of the registry under test. The test closes it."""
        raise TypeError(f"{type(self).__name__} must define make_registrar()")

    def test_announced_server_is_found(self) -> None:
        """What was announced is in the list, with what it said of itself."""
        with self._registrar() as registrar, self._discovery() as discovery:
            with self._watching(discovery, "contract") as seen:
                registrar.announce("contract", B, _LONG)
                self._wait(seen, [B])
            registrar.withdraw("contract", B)

    def test_announcing_again_changes_nothing(self) -> None:
        """A renewal is no second server and no news."""
        with self._registrar() as registrar, self._discovery() as discovery:
            with self._watching(discovery, "contract") as seen:
                for _ in range(3):
                    registrar.announce("contract", A, _LONG)
                registrar.announce("contract", B, _LONG)
                self._wait(seen, [A, B])
                assert len([update for update in seen.updates if len(update) == 1]) <= 1
            registrar.withdraw("contract", A)
            registrar.withdraw("contract", B)

    def test_withdrawn_server_leaves_alone(self) -> None:
        """Who is withdrawn is gone long before the lease ends; the others stay."""
        with self._registrar() as registrar, self._discovery() as discovery:
            registrar.announce("contract", A, _LONG)
            registrar.announce("contract", B, _LONG)
            registrar.announce("contract-other", A, _LONG)
            with (
                self._watching(discovery, "contract") as seen,
                self._watching(discovery, "contract-other") as other,
            ):
                self._wait(seen, [A, B])
                registrar.withdraw("contract", A)
                self._wait(seen, [B])
                self._wait(other, [A])
                registrar.withdraw("contract", B)
                registrar.withdraw("contract-other", A)
                self._wait(seen, [])
                self._wait(other, [])

    def test_withdrawn_server_comes_back(self) -> None:
        """Leaving is not for ever."""
        with (
            self._registrar() as registrar,
            self._discovery() as discovery,
            self._watching(discovery, "contract") as seen,
        ):
            for _ in range(2):
                registrar.announce("contract", A, _LONG)
                self._wait(seen, [A])
                registrar.withdraw("contract", A)
                self._wait(seen, [])

    def test_withdrawing_what_is_not_there_is_no_error(self) -> None:
        """The registry may have lost the entry before its owner left."""
        with self._registrar() as registrar:
            registrar.withdraw("contract", A)
            registrar.announce("contract", A, _LONG)
            registrar.withdraw("contract", A)
            registrar.withdraw("contract", A)

    def test_lease_ends_with_its_owner(self) -> None:
        """An entry that is renewed stays for longer than its lease; then nobody renews it."""
        with (
            self._registrar() as registrar,
            self._discovery() as discovery,
            self._watching(discovery, "contract") as seen,
        ):
            registrar.announce("contract", A, self.shortest_ttl)
            registrar.announce("contract", A, self.shortest_ttl)
            self._wait(seen, [A])
            self._wait(seen, [])
            registrar.announce("contract", A, _LONG)
            self._wait(seen, [A])
            registrar.withdraw("contract", A)

    def test_knows_a_host_of_this_machine(self) -> None:
        """The host is one that an endpoint can have."""
        with self._registrar() as registrar:
            assert Endpoint(registrar.default_host(), 80)

    def test_has_a_name_without_secrets(self) -> None:
        """Errors and logs can say which registry they mean, and do not give the password away."""
        with self._registrar() as registrar:
            assert str(registrar)
            assert " object at 0x" not in str(registrar)
            assert not self.secret or self.secret not in str(registrar)

    def test_closes_more_than_once(self) -> None:
        """Also when it was never used."""
        registrar = self.make_registrar()
        for _ in range(2):
            self._at_once(registrar.close)

    _needs: ClassVar[dict[str, tuple[str, ...]]] = {"expires": ("test_lease_ends_with_its_owner",)}

    @contextlib.contextmanager
    def _registrar(self) -> Iterator[Registrar]:
        with contextlib.closing(self.make_registrar()) as registrar:
            yield registrar
