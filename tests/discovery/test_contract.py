"""What `clientlb.testing` ships: the fakes do what they say, and the contract catches the backends that break it."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from clientlb.discovery.base import Discovery, Listener, Resolver
from clientlb.discovery.directory import DirectoryDiscovery
from clientlb.endpoint import Endpoint
from clientlb.errors import DiscoveryError
from clientlb.registration.base import Registrar
from clientlb.registration.directory import DirectoryRegistrar
from clientlb.testing import DiscoveryContract, FakeClock, ManualDiscovery, RecordingListener, RegistrarContract

A, B = Endpoint("10.0.0.1", 80, "a"), Endpoint("10.0.0.2", 80, "b")


class TestManualDiscovery(DiscoveryContract):
    breakable = True

    @pytest.fixture(autouse=True)
    def registry(self) -> None:
        self.content: dict[str, Sequence[Endpoint]] = {}
        self.made: list[ManualDiscovery] = []
        self.broken = False

    def make_discovery(self) -> ManualDiscovery:
        discovery = ManualDiscovery()
        self.made.append(discovery)
        self.tell(discovery)
        return discovery

    def put(self, service: str, endpoints: Sequence[Endpoint]) -> None:
        self.content[service] = endpoints
        self.tell(*self.made)

    def break_registry(self) -> None:
        self.broken = True
        self.tell(*self.made)

    def mend_registry(self) -> None:
        self.broken = False
        self.tell(*self.made)

    def tell(self, *discoveries: ManualDiscovery) -> None:
        everything: dict[str, Sequence[Endpoint]] = {"contract-unknown": [], "contract-later": []}
        for discovery in discoveries:
            for service, endpoints in (everything | self.content).items():
                if self.broken:
                    discovery.fail(service, DiscoveryError("down"))
                else:
                    discovery.set(service, endpoints)


class Twisted:
    """A resolver around a good one that breaks the contract in one way."""

    def __init__(self, inner: Resolver) -> None:
        self.inner = inner

    def start(self, listener: Listener) -> None:
        self.inner.start(self.twist(listener))

    def close(self) -> None:
        self.inner.close()

    def twist(self, listener: Listener) -> Listener:
        return listener


class EmptiesOnError(Twisted):
    def twist(self, listener: Listener) -> Listener:
        class Emptying:
            update = staticmethod(listener.update)

            def error(self, error: Exception) -> None:
                listener.update([])
                listener.error(error)

        return Emptying()


class SwallowsErrors(Twisted):
    def twist(self, listener: Listener) -> Listener:
        class Deaf:
            update = staticmethod(listener.update)

            def error(self, error: Exception) -> None:
                pass

        return Deaf()


class LosesRemovals(Twisted):
    def twist(self, listener: Listener) -> Listener:
        known: dict[tuple[str, str, int], Endpoint] = {}

        class Growing:
            error = staticmethod(listener.error)

            def update(self, endpoints: Iterable[Endpoint]) -> None:
                known.update((endpoint.key, endpoint) for endpoint in endpoints)
                listener.update(known.values())

        return Growing()


class SpeaksAfterClose(Twisted):
    def close(self) -> None:
        pass


class RaisesOnSecondClose(Twisted):
    closed = False

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        self.inner.close()


class Dead(Twisted):
    def start(self, listener: Listener) -> None:
        pass


class Hangs(Twisted):
    def close(self) -> None:
        threading.Event().wait(0.5)
        self.inner.close()


class WaitsForItsDelivery(Twisted):
    """Delivers under a lock, and takes it in close()."""

    delivering = False

    def twist(self, listener: Listener) -> Listener:
        def update(endpoints: Iterable[Endpoint]) -> None:
            self.delivering = True
            listener.update(endpoints)
            self.delivering = False

        class Marking:
            error = staticmethod(listener.error)

        Marking.update = staticmethod(update)  # type: ignore[attr-defined]
        return Marking()  # type: ignore[return-value]

    def close(self) -> None:
        if self.delivering:
            threading.Event().wait(0.5)
        self.inner.close()


class CutsLongLists(Twisted):
    def twist(self, listener: Listener) -> Listener:
        class Cutting:
            error = staticmethod(listener.error)

            def update(self, endpoints: Iterable[Endpoint]) -> None:
                listener.update(list(endpoints)[:32])

        return Cutting()


@pytest.mark.parametrize(
    ("twisted", "test"),
    [
        (EmptiesOnError, "test_trouble_keeps_the_list"),
        (EmptiesOnError, "test_start_while_the_registry_is_down"),
        (SwallowsErrors, "test_trouble_keeps_the_list"),
        (LosesRemovals, "test_changes_arrive"),
        (SpeaksAfterClose, "test_nothing_arrives_after_close"),
        (RaisesOnSecondClose, "test_start_and_close_return_at_once"),
        (Hangs, "test_start_and_close_return_at_once"),
        (Hangs, "test_start_while_the_registry_is_down"),
        (WaitsForItsDelivery, "test_listener_may_close_its_resolver"),
        (CutsLongLists, "test_long_list_arrives_complete"),
        (Dead, "test_first_list_arrives"),
        (Dead, "test_unknown_service_has_no_endpoints"),
        (Dead, "test_service_that_appears_later"),
    ],
)
def test_the_contract_catches(twisted: type[Twisted], test: str) -> None:
    class Broken(TestManualDiscovery):
        timeout = 0.1
        close_within = 0.3

        def make_discovery(self) -> Any:
            good = super().make_discovery()
            plain: Callable[[str], Resolver] = good.resolver
            good.resolver = lambda service: twisted(plain(service))  # type: ignore[method-assign, assignment, return-value]
            return good

    broken = Broken()
    broken.content, broken.made, broken.broken = {}, [], False
    with pytest.raises(AssertionError):
        getattr(broken, test)()


def test_the_contract_catches_a_name_that_tells_a_secret() -> None:
    class Telling(ManualDiscovery):
        def __str__(self) -> str:
            return "manual://user:sesame@host"

    class Broken(DiscoveryContract):
        secret = "sesame"

        def make_discovery(self) -> Discovery:
            return Telling()

    with pytest.raises(AssertionError):
        Broken().test_name_has_no_secret()


def test_a_backend_inherits_no_tests_of_what_it_cannot_do() -> None:
    class Fixed(DiscoveryContract):
        mutable = False

    class Full(DiscoveryContract):
        breakable = can_be_malformed = True
        secret = "sesame"

    def tests(contract: type[DiscoveryContract]) -> set[str]:
        return {name for name in dir(contract) if name.startswith("test_") and getattr(contract, name) is not None}

    assert tests(Fixed) == {
        "test_first_list_arrives",
        "test_long_list_arrives_complete",
        "test_listener_may_close_its_resolver",
        "test_one_service_can_be_watched_twice",
        "test_unknown_service_has_no_endpoints",
        "test_has_a_name",
        "test_start_and_close_return_at_once",
        "test_resolver_that_never_started_closes",
        "test_services_are_independent",
    }
    assert tests(Full) == {name for name in vars(DiscoveryContract) if name.startswith("test_")}


def test_a_missing_hook_is_named() -> None:
    class Hookless(DiscoveryContract):
        breakable = True

    for hook in (lambda it: it.make_discovery(), lambda it: it.put("s", []), lambda it: it.break_registry()):
        with pytest.raises(TypeError, match=r"Hookless .*must define"):
            hook(Hookless())


class TestDirectoryRegistrar(RegistrarContract):
    expires = True
    shortest_ttl = 0.2

    @pytest.fixture(autouse=True)
    def root(self, tmp_path: Path) -> None:
        self.path = tmp_path

    def make_registrar(self) -> Registrar:
        return DirectoryRegistrar(self.path)

    def make_discovery(self) -> Discovery:
        return DirectoryDiscovery(self.path, interval=0.02)


class _Registrar(DirectoryRegistrar):
    """A good one, for others to break."""


class NeverLeaves(_Registrar):
    def withdraw(self, service: str, endpoint: Endpoint) -> None:
        pass


class LeavesWithAll(_Registrar):
    def withdraw(self, service: str, endpoint: Endpoint) -> None:
        for file in (self._root / service).glob("b*"):
            file.unlink()
        super().withdraw(service, endpoint)


class AnnouncesForEver(_Registrar):
    def announce(self, service: str, endpoint: Endpoint, ttl: float) -> None:
        super().announce(service, endpoint, 3600.0)


class AnnouncesTwice(_Registrar):
    def announce(self, service: str, endpoint: Endpoint, ttl: float) -> None:
        super().announce(service, endpoint, ttl)
        super().announce(service, dataclasses.replace(endpoint, id=f"{endpoint.id}-{time.monotonic_ns()}"), ttl)


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (NeverLeaves, "test_withdrawn_server_leaves_alone"),
        (LeavesWithAll, "test_withdrawn_server_leaves_alone"),
        (AnnouncesForEver, "test_lease_ends_with_its_owner"),
        (AnnouncesTwice, "test_announcing_again_changes_nothing"),
    ],
)
def test_the_contract_of_registrars_catches(broken: type[_Registrar], test: str, tmp_path: Path) -> None:
    class Broken(TestDirectoryRegistrar):
        timeout = 0.4

        def make_registrar(self) -> Registrar:
            return broken(tmp_path)

    contract = Broken()
    contract.path = tmp_path
    with pytest.raises(AssertionError):
        getattr(contract, test)()


def test_a_registrar_without_leases_inherits_no_test_of_them() -> None:
    class Lasting(RegistrarContract):
        pass

    assert Lasting.test_lease_ends_with_its_owner is None
    with pytest.raises(TypeError, match="Lasting must define make_registrar"):
        Lasting().test_closes_more_than_once()


# --- the fakes -------------------------------------------------------------------------------------------------------


def test_manual_discovery() -> None:
    discovery = ManualDiscovery({"orders": [A, "[::1]:81"]})
    early, late = RecordingListener(), RecordingListener()
    resolver = discovery.resolver("orders")
    resolver.start(early)
    assert [str(endpoint) for endpoint in early.endpoints or ()] == ["10.0.0.1:80", "[::1]:81"]
    trouble = DiscoveryError("down")
    discovery.fail("orders", trouble)
    discovery.resolver("orders").start(late)
    assert (late.updates, late.errors) == ([], [trouble])
    assert discovery.watched("orders") == 2
    resolver.close()
    discovery.set("orders", [B])
    assert late.endpoints == (B,)
    assert len(early.updates) == 1
    discovery.close()
    assert discovery.watched("orders") == 0


def test_manual_discovery_says_nothing_before_it_knows() -> None:
    listener = RecordingListener()
    ManualDiscovery().resolver("orders").start(listener)
    assert (listener.endpoints, listener.errors) == (None, [])


def test_fake_clock() -> None:
    clock = FakeClock(5.0)
    assert (clock(), clock.advance(2.5), clock()) == (5.0, 7.5, 7.5)


def test_recording_listener_waits_for_news_of_another_thread() -> None:
    listener = RecordingListener()
    thread = threading.Thread(target=listener.update, args=([A],))
    thread.start()
    assert listener.wait_for(lambda it: it.endpoints == (A,))
    thread.join()


def test_recording_listener_says_what_came_instead() -> None:
    listener = RecordingListener()
    listener.update([A])
    listener.error(OSError("down"))
    with pytest.raises(AssertionError, match=r"not within 0.01 s; <1 lists, last \['10.0.0.1:80'\]; 1 errors, .*down"):
        listener.wait_for_addresses("10.0.0.2:80", timeout=0.01)
