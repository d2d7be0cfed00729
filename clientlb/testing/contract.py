"""The contract of discovery as tests that run against any backend. Needs no test framework to be imported."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

from clientlb.endpoint import Endpoint
from clientlb.testing._base import A, B, C, Contract
from clientlb.testing.fakes import RecordingListener


class DiscoveryContract(Contract):
    """The tests that every discovery backend must pass. Subclass it in a test module, for pytest or anything like it:

        class TestRedis(DiscoveryContract):
            breakable = True
            def make_discovery(self): return RedisDiscovery(self.address)
            def put(self, service, endpoints): ...

    A subclass that says it cannot do something (`mutable = False`, ...) does not inherit the tests of that.
    Each test uses service names of its own registry content; `put` for a service replaces what it had.
    """

    mutable: ClassVar[bool] = True
    """The content can change while somebody watches. If False, `put` is only called before `make_discovery`."""

    breakable: ClassVar[bool] = False
    """`break_registry` and `mend_registry` are there."""

    can_be_malformed: ClassVar[bool] = False
    """`put_malformed` is there."""

    # --- hooks ---------------------------------------------------------------------------------------------------

    def put(self, service: str, endpoints: Sequence[Endpoint]) -> None:
        """Make the registry hold exactly these endpoints for the service."""
        raise TypeError(f"{type(self).__name__} must define put()")

    def put_malformed(self, service: str) -> None:
        """Add an instance to the service that no one can read, beside those that it has."""
        raise TypeError(f"{type(self).__name__} says can_be_malformed and must define put_malformed()")

    def break_registry(self) -> None:
        """Make the registry unreadable."""
        raise TypeError(f"{type(self).__name__} says breakable and must define break_registry()")

    def mend_registry(self) -> None:
        """Make it readable again, with the content that it had."""
        raise TypeError(f"{type(self).__name__} says breakable and must define mend_registry()")

    # --- the tests -----------------------------------------------------------------------------------------------

    def test_first_list_arrives(self) -> None:
        """The endpoints that are there arrive without a change."""
        self.put("contract", [A, B])
        with self._discovery() as discovery, self._watching(discovery, "contract") as seen:
            self._wait(seen, [A, B])

    def test_long_list_arrives_complete(self) -> None:
        """Fifty endpoints are one list."""
        many = [Endpoint("127.0.0.1", 7001 + number, id=f"n{number}") for number in range(50)]
        self.put("contract", many)
        with self._discovery() as discovery, self._watching(discovery, "contract") as seen:
            self._wait(seen, many)

    def test_unknown_service_has_no_endpoints(self) -> None:
        """A service that does not exist is an empty list, not an error."""
        self.put("contract", [A])
        with self._discovery() as discovery, self._watching(discovery, "contract-unknown") as seen:
            self._wait(seen, [])
            assert not seen.errors

    def test_has_a_name(self) -> None:
        """Errors and logs can say which registry they mean."""
        with self._discovery() as discovery:
            assert str(discovery)
            assert " object at 0x" not in str(discovery)

    def test_name_has_no_secret(self) -> None:
        """Errors and logs do not give the password away."""
        with self._discovery() as discovery:
            assert self.secret not in str(discovery)

    def test_start_and_close_return_at_once(self) -> None:
        """Nothing blocks its caller, and closing twice is like closing once."""
        self.put("contract", [A])
        discovery = self.make_discovery()
        resolver, seen = discovery.resolver("contract"), RecordingListener()
        self._at_once(lambda: resolver.start(seen))
        self._wait(seen, [A])
        for _ in range(2):
            self._at_once(resolver.close)
        for _ in range(2):
            self._at_once(discovery.close)

    def test_resolver_that_never_started_closes(self) -> None:
        """`close` needs no `start` before it."""
        with self._discovery() as discovery:
            self._at_once(discovery.resolver("contract").close)

    def test_listener_may_close_its_resolver(self) -> None:
        """`close` may be called in the middle of a delivery, by a program that has seen enough."""
        self.put("contract", [A])
        with self._discovery() as discovery:
            resolver = discovery.resolver("contract")
            seen = _ClosingListener(resolver.close)
            resolver.start(seen)
            self._wait(seen, [A])
            assert seen.seconds < self.close_within, "close() waited for the delivery that called it"

    def test_one_service_can_be_watched_twice(self) -> None:
        """Two resolvers of one service both deliver it, and the end of one is not the end of the other."""
        self.put("contract", [A])
        with self._discovery() as discovery, self._watching(discovery, "contract") as seen:
            with self._watching(discovery, "contract") as other:
                self._wait(seen, [A])
                self._wait(other, [A])
            with self._watching(discovery, "contract") as again:
                self._wait(again, [A])

    def test_services_are_independent(self) -> None:
        """Two resolvers of one discovery deliver each its own service."""
        self.put("contract", [A])
        self.put("contract-other", [B])
        with (
            self._discovery() as discovery,
            self._watching(discovery, "contract") as seen,
            self._watching(discovery, "contract-other") as other,
        ):
            self._wait(seen, [A])
            self._wait(other, [B])

    def test_service_that_appears_later(self) -> None:
        """A service that did not exist at the start is noticed when it does."""
        with self._discovery() as discovery, self._watching(discovery, "contract-later") as seen:
            self._wait(seen, [])
            self.put("contract-later", [A])
            self._wait(seen, [A])

    def test_changes_arrive(self) -> None:
        """Additions, removals and changes of attributes arrive, also the last removal."""
        heavier = Endpoint(A.host, A.port, id=A.id, weight=2.0, zone=A.zone, version="1.1")
        self.put("contract", [A])
        with self._discovery() as discovery, self._watching(discovery, "contract") as seen:
            for content in ([A], [A, B], [A, B, C], [B, C], [C, B, A], [heavier, C], []):
                self.put("contract", content)
                self._wait(seen, content)

    def test_survivors_stay_equal(self) -> None:
        """An endpoint that stays is the same value before and after a change of its neighbours."""
        self.put("contract", [A, B])
        with self._discovery() as discovery, self._watching(discovery, "contract") as seen:
            self._wait(seen, [A, B])
            before = self._find(seen, A)
            self.put("contract", [A, C])
            self._wait(seen, [A, C])
            assert self._find(seen, A) == before

    def test_change_of_one_service_leaves_the_other(self) -> None:
        """News of one service is no news for another."""
        self.put("contract", [A])
        self.put("contract-other", [B])
        with (
            self._discovery() as discovery,
            self._watching(discovery, "contract") as seen,
            self._watching(discovery, "contract-other") as other,
        ):
            self._wait(seen, [A])
            self._wait(other, [B])
            self.put("contract", [A, C])
            self._wait(seen, [A, C])
            assert self._described(other.endpoints or ()) == self._described([B])

    def test_nothing_arrives_after_close(self) -> None:
        """A closed resolver is silent, as its open neighbour shows."""
        self.put("contract", [A])
        with self._discovery() as discovery, self._watching(discovery, "contract") as still_open:
            closed, seen = discovery.resolver("contract"), RecordingListener()
            closed.start(seen)
            self._wait(seen, [A])
            self._wait(still_open, [A])
            closed.close()
            delivered = len(seen.updates), len(seen.errors)
            self.put("contract", [A, B])
            self._wait(still_open, [A, B])
            assert (len(seen.updates), len(seen.errors)) == delivered

    def test_malformed_instance_is_left_out(self) -> None:
        """One bad instance costs nothing but itself."""
        self.put("contract", [A, B])
        self.put_malformed("contract")
        with self._discovery() as discovery, self._watching(discovery, "contract") as seen:
            self._wait(seen, [A, B])
            assert not seen.errors

    def test_malformed_instance_that_comes_later_costs_nothing(self) -> None:
        """One bad instance among good ones that are watched already costs nothing but itself."""
        self.put("contract", [A])
        with self._discovery() as discovery, self._watching(discovery, "contract") as seen:
            self._wait(seen, [A])
            self.put_malformed("contract")
            self.put("contract", [A, B])
            self._wait(seen, [A, B])
            assert all(self._described(update) for update in seen.updates)
            assert not seen.errors

    def test_trouble_keeps_the_list(self) -> None:
        """An outage is an error that deletes nothing, and the watch goes on after it."""
        self.put("contract", [A, B])
        with self._discovery() as discovery, self._watching(discovery, "contract") as seen:
            self._wait(seen, [A, B])
            self.break_registry()
            try:
                seen.wait_for(lambda it: it.errors, self.timeout)
                assert self._described(seen.endpoints or ()) == self._described([A, B])
            finally:
                self.mend_registry()
            self.put("contract", [A, B, C])
            self._wait(seen, [A, B, C])
            assert all(self._described(update) for update in seen.updates), "an outage emptied the list"

    def test_start_while_the_registry_is_down(self) -> None:
        """`start` succeeds during an outage, tells of it, and delivers when it is over. `close` waits for nobody."""
        self.put("contract", [A])
        self.break_registry()
        try:
            discovery = self.make_discovery()
            resolver, seen = discovery.resolver("contract"), RecordingListener()
            self._at_once(lambda: resolver.start(seen))
            seen.wait_for(lambda it: it.errors, self.timeout)
            assert not seen.updates
            leaving = discovery.resolver("contract")
            leaving.start(RecordingListener())
            self._at_once(leaving.close)
        finally:
            self.mend_registry()
        try:
            self._wait(seen, [A])
        finally:
            resolver.close()
            discovery.close()

    _needs: ClassVar[dict[str, tuple[str, ...]]] = {
        "secret": ("test_name_has_no_secret",),
        "mutable": (
            "test_service_that_appears_later",
            "test_changes_arrive",
            "test_survivors_stay_equal",
            "test_change_of_one_service_leaves_the_other",
            "test_nothing_arrives_after_close",
            "test_malformed_instance_that_comes_later_costs_nothing",
            "test_trouble_keeps_the_list",
        ),
        "breakable": ("test_trouble_keeps_the_list", "test_start_while_the_registry_is_down"),
        "can_be_malformed": (
            "test_malformed_instance_is_left_out",
            "test_malformed_instance_that_comes_later_costs_nothing",
        ),
    }


class _ClosingListener(RecordingListener):
    """Closes its resolver when the first list arrives, and notes how long that took."""

    def __init__(self, close: Callable[[], None]) -> None:
        super().__init__()
        self._close = close
        self.seconds = 0.0

    def update(self, endpoints: Iterable[Endpoint]) -> None:
        start = time.monotonic()
        self._close()
        self.seconds = time.monotonic() - start
        super().update(endpoints)
