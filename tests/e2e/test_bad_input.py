"""What cannot be right is said at once and names itself; what cannot be sent twice is sent once."""

from __future__ import annotations

import asyncio
import socketserver
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import grpc
import pytest

import clientlb
import clientlb.grpc
import clientlb.grpc.aio
from clientlb import (
    BudgetOptions,
    ConfigurationError,
    GuardOptions,
    HealthOptions,
    Options,
    RetryOptions,
    Services,
    load_options,
)
from clientlb.policy import Filter

# ------------------------------------------------------------------ what cannot be right

BAD_URLS = {
    "etcd://127.0.0.1:2379": "etcd",
    "127.0.0.1:8500": "127.0.0.1:8500",
    "zookeeper://127.0.0.1:70000": "70000",
    "consul://127.0.0.1:8500?tga=blue": "tga",
    "dir://relative/path": "dir://relative/path",
    "static://127.0.0.1:0": "port",
    "consul://127.0.0.1:8500?wait=soon": "'consul://127.0.0.1:8500?wait=soon': wait",
    "dns+srv://_grpc._tcp.{servce}.internal": "only {service} stands for something",
}


@pytest.mark.parametrize(("url", "named"), BAD_URLS.items())
def test_url_that_cannot_be_right(url: str, named: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Services(url)
    assert named in str(caught.value)


def test_unknown_scheme_names_the_known_ones() -> None:
    for use in (Services, lambda url: clientlb.registration.register("orders", port=80, to=url)):
        with pytest.raises(ConfigurationError, match=r"consul.*dir.*zookeeper"):
            use("etcd://127.0.0.1:2379")


BAD_OPTIONS: dict[str, Callable[[], object]] = {
    "policy": lambda: Options(policy="fastest"),
    "wait_for_endpoints": lambda: Options(wait_for_endpoints=-1),
    "guard.hold": lambda: GuardOptions(hold=float("nan")),
    "health.consecutive_failures": lambda: Options(health=HealthOptions(consecutive_failures=0)),
    "health.open_for": lambda: Options(health=HealthOptions(open_for=0)),
    "retry.statuses": lambda: Options(retry=RetryOptions(statuses=frozenset({42}))),
    "retry.budget.ratio": lambda: Options(retry=RetryOptions(budget=BudgetOptions(ratio=-0.1))),
    "retry.stop": lambda: Options(retry=RetryOptions(stop=3)),  # type: ignore[arg-type]
    "options": lambda: fixed(options=3),
    "key ''": lambda: fixed(options={"": Options()}),
    "hooks is": lambda: fixed(hooks=print),
    "hooks has": lambda: fixed(hooks=[3]),
    "clock": lambda: fixed(clock=3),
    "idempotent": lambda: fixed().balanced("orders", idempotent="yes"),  # type: ignore[arg-type]
    "service name": lambda: fixed().balanced(lambda endpoint: endpoint),  # type: ignore[arg-type,return-value]
    "balanced is 3": lambda: fixed().balanced("orders")(3),  # type: ignore[arg-type]
    "classify": lambda: fixed().balanced("orders", classify=3),  # type: ignore[arg-type]
    "'Load'": lambda: clientlb.grpc.channel("orders", fixed(), idempotent={"Load"}),
    "credentials": lambda: clientlb.grpc.channel("orders", fixed(), credentials=3),  # type: ignore[arg-type]
    "pairs": lambda: clientlb.grpc.channel("orders", fixed(), options={"grpc.x": 1}),  # type: ignore[arg-type]
    "interceptors": lambda: clientlb.grpc.aio.channel("orders", fixed(), interceptors=[3]),  # type: ignore[list-item]
    "self_test": lambda: register(self_test=3),
    "stop": lambda: register(stop=3),
}


def fixed(**arguments: Any) -> Services:
    return Services("static://127.0.0.1:80", **arguments)


def register(**arguments: Any) -> object:
    return clientlb.registration.register("orders", port=80, to="dir:///tmp/nobody", **arguments)


@pytest.mark.parametrize(("named", "make"), BAD_OPTIONS.items(), ids=BAD_OPTIONS)
def test_option_out_of_range(named: str, make: Callable[[], object]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert named in str(caught.value)


def test_option_out_of_range_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "clientlb.toml"
    file.write_text("[services.orders.health]\nconsecutive_failures = 0\n")
    with pytest.raises(ConfigurationError, match="consecutive_failures") as caught:
        load_options(file, environ={})
    assert "at least 1" in str(caught.value)
    assert str(file) in str(caught.value)


def test_option_out_of_range_in_a_variable() -> None:
    with pytest.raises(ConfigurationError, match=r"CLIENTLB_\* variables.*deadline is 'soon'"):
        load_options(environ={"CLIENTLB_DEADLINE": "soon"})


def test_policy_that_cannot_be_made_says_whose_it_was_to_be() -> None:
    with pytest.raises(TypeError) as caught:
        fixed(options=Options(policy=Filter))["orders"]  # type: ignore[arg-type]
    assert "service 'orders'" in "".join(caught.value.__notes__)


URL = "consul://127.0.0.1:8500"  # what people give instead of Services(URL)
MAKERS: dict[str, Callable[[], object]] = {
    **{
        f"{flavour}.{name}": lambda flavour=flavour, name=name: getattr(import_module(f"clientlb.{flavour}"), name)(URL)
        for flavour in ("httpx", "httpx2")
        for name in ("Client", "AsyncClient", "Transport", "AsyncTransport")
    },
    "grpc": lambda: clientlb.grpc.channel("orders", URL),  # type: ignore[arg-type]
    "grpc.aio": lambda: clientlb.grpc.aio.channel("orders", URL),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_url_instead_of_services(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigurationError, match=rf"services is '{URL}'; give clientlb.Services\(URL\)"):
        make()


@pytest.mark.parametrize("argument", ["inner", "uds", "base_path"])
def test_way_to_an_endpoint_that_cannot_be_called(argument: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{argument} is 'x'; give a callable"):
        import_module("clientlb.httpx").Client(fixed(), **{argument: "x"})


@pytest.mark.parametrize("flavour", ["httpx", "httpx2"])
def test_option_of_a_call_that_does_not_exist(flavour: str) -> None:
    with (
        Services("static://127.0.0.1:80") as services,
        import_module(f"clientlb.{flavour}").Client(services) as client,
        pytest.raises(ConfigurationError, match=r"retries do not exist; known: .*idempotent.*retry"),
    ):
        client.get("http://orders/7", extensions={"clientlb": {"retries": 3}})


# ------------------------------------------------------------------ a body that cannot be sent twice


class _HangsUp(socketserver.StreamRequestHandler):
    """Reads a whole request, then closes the connection without an answer."""

    def handle(self) -> None:
        while self.rfile.readline().strip():
            pass
        while (size := self.rfile.readline()) and int(size, 16):
            self.rfile.read(int(size, 16) + 2)
        self.server.requests += 1  # type: ignore[attr-defined]


@contextmanager
def hanging_up(count: int) -> Iterator[list[socketserver.ThreadingTCPServer]]:
    servers = [socketserver.ThreadingTCPServer(("127.0.0.1", 0), _HangsUp) for _ in range(count)]
    for server in servers:
        server.requests = 0  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield servers
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def put_once(flavour: str, services: Services) -> None:
    with import_module(f"clientlb.{flavour}").Client(services) as client:
        client.put("http://orders/7", content=iter([b"one", b"two"]))


def put_once_async(flavour: str, services: Services) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    async def run() -> None:
        async with import_module(f"clientlb.{flavour}").AsyncClient(services) as client:
            await client.put("http://orders/7", content=pieces())

    asyncio.run(run())


@pytest.mark.parametrize("flavour", ["httpx", "httpx2"])
@pytest.mark.parametrize("put", [put_once, put_once_async])
def test_one_shot_body_that_would_need_a_retry(flavour: str, put: Callable[[str, Services], None]) -> None:
    with hanging_up(2) as servers:
        addresses = ",".join(f"127.0.0.1:{server.server_address[1]}" for server in servers)
        with (
            Services(f"static://{addresses}") as services,
            pytest.raises(import_module(flavour).RemoteProtocolError) as caught,
        ):
            put(flavour, services)
        assert sum(server.requests for server in servers) == 1  # type: ignore[attr-defined]
    assert note_of(caught.value).endswith("not retried: the request body is a one-shot stream and cannot be sent again")


def gather(services: Services) -> None:
    with clientlb.grpc.channel("orders", services, idempotent=True) as channel:
        call: grpc.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(GATHER)
        call(iter(MANY), timeout=10.0)


def gather_aio(services: Services) -> None:
    async def run() -> None:
        async with clientlb.grpc.aio.channel("orders", services, idempotent=True) as channel:
            await channel.stream_unary(GATHER)(iter(MANY), timeout=10.0)

    asyncio.run(run())


GATHER = "/e2e.Orders/Gather"
MANY = [b"%d" % number for number in range(50)]  # a few can be sent again, for the shell keeps those


@pytest.mark.parametrize("call", [gather, gather_aio])
def test_one_shot_stream_of_requests_that_would_need_a_retry(call: Callable[[Services], None]) -> None:
    received = []

    def refuse(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        received.append(list(requests))
        context.abort(grpc.StatusCode.UNAVAILABLE, "not today")

    server = grpc.server(ThreadPoolExecutor(2))
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {"Gather": grpc.stream_unary_rpc_method_handler(refuse)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("e2e.Orders", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with Services(f"static://127.0.0.1:{port}") as services, pytest.raises(grpc.RpcError) as caught:
            call(services)
    finally:
        server.stop(None).wait()
    assert received == [MANY]
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert caught.value.details() == "not today"
    assert "in the midst of the request stream" in note_of(caught.value)


def note_of(error: BaseException) -> str:
    """The note that says what was tried: a single attempt."""
    [note] = error.__notes__
    assert "attempt 1 at 127.0.0.1:" in note
    assert "attempt 2" not in note
    return note
