"""Services and the decorator, on a registry that the test writes."""

import asyncio
import os
import threading
from functools import partial

import pytest

from clientlb import ClosedError, ConfigurationError, DiscoveryError, Endpoint, GuardOptions, Options, Services, events
from clientlb.policy import Filter
from clientlb.testing import ManualDiscovery


@pytest.fixture
def registry():
    return ManualDiscovery({"orders": ["h:1", "h:2"], "users": ["u:1"]})


@pytest.fixture
def services(registry):
    with Services(registry) as services:
        yield services


def test_watches_a_service_from_its_first_use_once(registry, services):
    assert registry.watched("orders") == 0
    assert services["orders"] is services["orders"]
    assert registry.watched("orders") == 1
    assert {endpoint.port for endpoint in services["orders"].endpoints} == {1, 2}


def test_one_watch_however_many_threads_begin(registry, services):
    barrier, found = threading.Barrier(16), []

    def use():
        barrier.wait()
        found.append(services["orders"])

    threads = [threading.Thread(target=use) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1
    assert registry.watched("orders") == 1


class Remarking:
    """A resolver that has something to say, or fails to."""

    def __init__(self, resolver, remarks):
        self.start, self.close, self.remarks = resolver.start, resolver.close, remarks


@pytest.mark.parametrize(
    ("remarks", "lines"),
    [(lambda: ["2 instances could not be read"], ["  2 instances could not be read"]), (lambda: 1 // 0, [])],
)
def test_remarks_of_a_resolver_are_explained_and_cannot_break_it(registry, remarks, lines):
    plain = registry.resolver
    registry.resolver = lambda service: Remarking(plain(service), remarks)
    with Services(registry) as services:
        told = services["orders"].explain().splitlines()
    assert told[1:-2] == lines
    assert "h:1: may be picked" in told[-2]


@pytest.mark.parametrize("name", ["", None, 3])
def test_service_needs_a_name(services, name):
    with pytest.raises(ConfigurationError, match="give a non-empty string"):
        services[name]


def test_options_per_service(registry):
    special = Options(policy="random")
    services = Services(registry, options={"orders": special})
    assert services["orders"].options is special
    assert services["users"].options == services.options_of("anything")
    assert services.configured == {"orders"}


def test_close_is_idempotent_and_says_so_afterwards(registry):
    services = Services(registry)
    balancer = services["orders"]
    services.close()
    services.close()
    assert registry.watched("orders") == 0
    with pytest.raises(ClosedError):
        services["orders"]
    with pytest.raises(ClosedError):
        balancer.pick()


class Fragile(ManualDiscovery):
    """Its resolvers fail to start once, and to close always."""

    def __init__(self):
        super().__init__({"orders": ["h:1"], "users": ["u:1"]})
        self.failures = 1

    def resolver(self, service):
        start = super().resolver(service).start

        def fragile(listener):
            if self.failures:
                self.failures -= 1
                raise RuntimeError("can't start new thread")
            start(listener)

        class Resolver:
            def start(self, listener):
                fragile(listener)

            def close(self):
                raise OSError("no")

        return Resolver()


def test_watch_that_could_not_start_is_tried_again():
    services = Services(Fragile())
    with pytest.raises(RuntimeError, match="can't start"):
        services["orders"]
    assert services["orders"].pick().endpoint.port == 1


def test_resolver_that_cannot_be_closed_keeps_nothing_else_open(caplog):
    registry = Fragile()
    registry.failures = 0
    services = Services(registry)
    balancers = services["orders"], services["users"]
    services.close()
    for balancer in balancers:
        with pytest.raises(ClosedError):
            balancer.pick()
    assert caplog.text.count("could not be closed") == 2


async def test_async_context(registry):
    async with Services(registry) as services:
        assert services["orders"].endpoints
    with pytest.raises(ClosedError):
        services["orders"]


def test_hooks_get_every_event_and_cannot_break_a_call(registry, caplog):
    seen = []

    def broken(event):
        raise RuntimeError("a hook of somebody else")

    with Services(registry, hooks=[broken, seen.append], options=Options(guard=GuardOptions(hold=0))) as services:
        assert services["orders"].pick().endpoint.host == "h"
        registry.set("orders", ["h:3"])
        registry.fail("orders", DiscoveryError("down"))
    assert [type(event) for event in seen] == [
        events.EndpointsChanged,
        events.EndpointsChanged,
        events.DiscoveryFailed,
    ]
    assert "an event hook failed on EndpointsChanged" in caplog.text


def test_stats_of_every_service_used(services):
    with services["orders"].pick():
        pass
    services["users"]
    stats = services.stats()
    assert {name: service.calls for name, service in stats.items()} == {"orders": 1, "users": 0}


def test_decorated_function_gets_an_endpoint(services):
    @services.balanced("orders")
    def load(endpoint: Endpoint, order: int, *, deep: bool = False) -> tuple[int, int, bool]:
        """Load an order."""
        return endpoint.port, order, deep

    port, order, deep = load(7, deep=True)
    assert (port in (1, 2), order, deep) == (True, 7, True)
    assert (load.__name__, load.__doc__) == ("load", "Load an order.")
    assert services["orders"].stats().in_flight == 0


async def test_decorated_coroutine_function_stays_one(services):
    @services.balanced("orders")
    async def load(endpoint: Endpoint) -> int:
        await asyncio.sleep(0)
        return endpoint.port

    assert asyncio.iscoroutinefunction(load)
    assert await load() in (1, 2)
    assert services["orders"].stats().in_flight == 0


@pytest.mark.parametrize(
    ("error", "idempotent", "calls"),
    [
        (ConnectionRefusedError, False, 2),
        (ConnectionResetError, True, 2),
        (ConnectionResetError, False, 1),
        (KeyError, True, 1),
    ],
)
def test_decorated_function_is_repeated_where_that_is_safe(services, error, idempotent, calls):
    asked = []

    @services.balanced("orders", idempotent=idempotent)
    def load(endpoint):
        asked.append(endpoint.port)
        if len(asked) == 1:
            raise error("trouble")
        return "fine"

    if calls == 1:
        with pytest.raises(error):
            load()
    else:
        assert load() == "fine"
    assert len(set(asked)) == len(asked) == calls


def test_decorator_can_turn_retries_off(services):
    @services.balanced("orders", idempotent=True, retry=False)
    def load(endpoint):
        raise ConnectionRefusedError

    with pytest.raises(ConnectionRefusedError):
        load()
    assert services["orders"].stats().retries == 0


async def test_cancelled_coroutine_is_no_evidence(services):
    started = asyncio.Event()

    @services.balanced("orders")
    async def load(endpoint):
        started.set()
        await asyncio.sleep(60)

    task = asyncio.create_task(load())
    await started.wait()
    assert services["orders"].stats().in_flight == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    stats = services["orders"].stats()
    assert (stats.in_flight, stats.failures) == (0, 0)


def test_many_loops_and_threads_share_one_services(services):
    @services.balanced("orders")
    async def load(endpoint):
        await asyncio.sleep(0.001)
        return endpoint.port

    async def many():
        return await asyncio.gather(*(load() for _ in range(50)))

    found = []
    threads = [threading.Thread(target=lambda: found.extend(asyncio.run(many()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 200
    stats = services["orders"].stats()
    assert (stats.calls, stats.in_flight) == (200, 0)


def test_forked_child_watches_anew(tmp_path):
    path = tmp_path / "services.json"
    path.write_text('{"orders": ["h:1"]}')
    with Services(f"file://{path}?interval=0.05") as services:
        pick = services["orders"].pick()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                assert services["orders"].stats().in_flight == 0, "the parent's calls do not run here"
                path.write_text('{"orders": ["h:2"]}')
                for _ in range(200):
                    if services["orders"].pick().endpoint.port == 2:
                        status = 0
                        break
                    threading.Event().wait(0.02)
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        pick.release()


class TestKeysOfTheDecorator:
    @pytest.fixture
    def many(self):
        registry = ManualDiscovery({"carts": [f"h:{port}" for port in range(1, 11)]})
        with Services(registry, options=Options(policy="rendezvous")) as services:
            yield services

    def test_a_callable_gets_the_arguments_of_the_call(self, many):
        @many.balanced("carts", key=lambda user, item=None: user)
        def put(endpoint, user, item=None):
            return endpoint.port

        homes = {user: {put(user, item=item) for item in "abc"} for user in range(20)}
        assert all(len(ports) == 1 for ports in homes.values())
        assert len(set.union(*homes.values())) > 3

    def test_so_it_does_for_coroutines(self, many):
        @many.balanced("carts", key=lambda user: f"user-{user}")
        async def get(endpoint, user):
            return endpoint.port

        assert len({asyncio.run(get(7)) for _ in range(4)}) == 1

    def test_a_value_is_the_key_of_every_call(self, many):
        @many.balanced("carts", key="one")
        def get(endpoint):
            return endpoint.port

        assert len({get() for _ in range(10)}) == 1

    @pytest.mark.parametrize("wrong", [{"key": lambda: 1.5}, {"where": lambda: {"shard": 1}}], ids=["key", "where"])
    def test_what_is_no_key_and_no_filter_is_refused_by_the_name_of_the_service(self, many, wrong):
        @many.balanced("carts", **wrong)
        def load(endpoint):
            return endpoint

        with pytest.raises(ConfigurationError, match=r"^service 'carts': (the key of a call is a float|where is)"):
            load()
        ((name, value),) = wrong.items()
        with pytest.raises(ConfigurationError, match=r"^service 'carts': (the key of a call is a float|where is)"):
            many.balanced("carts", **{name: value()})
        with pytest.raises(ConfigurationError, match=r"^service 'carts': deadline is -1; give a number above 0"):
            many.balanced("carts", deadline=-1)

    def test_a_repeated_call_goes_to_the_next_of_its_key(self, many):
        tried = []

        @many.balanced("carts", key=lambda user: user, idempotent=True)
        def get(endpoint, user):
            tried.append(endpoint.port)
            if len(tried) % 3:
                raise ConnectionRefusedError
            return endpoint.port

        assert get(7) == get(7)
        assert tried[:3] == tried[3:]
        assert len(set(tried)) == 3

    def test_a_filter(self):
        registry = ManualDiscovery({"carts": [Endpoint("h", port, version=str(port)) for port in (1, 2)]})
        with Services(registry, options=Options(policy=partial(Filter, "random"))) as services:

            @services.balanced("carts", where=lambda version: {"version": version})
            def get(endpoint, version):
                return endpoint.port

            assert {get("2") for _ in range(10)} == {2}

    def test_what_cannot_be_right_is_said_at_once(self, many):
        with pytest.raises(ConfigurationError, match="where is 3"):
            many.balanced("carts", where=3)
