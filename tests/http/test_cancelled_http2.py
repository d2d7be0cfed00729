"""HTTP/2: a call that is cut short tells the server, and costs the other calls on its connection nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

import clientlb
from clientlb._http.streams import Stream
from tests.http.h2_server import H2Server
from tests.http.test_cancelled import Bench, Pieces, at_every_step, pieces, plug, way
from tests.http.wires import Cancel, H2Wire, Net, run, stepping

__all__ = ["pieces", "plug", "way"]
HTTP2 = {"http1": False, "http2": True}


async def name_of(bench: Bench, name: str, path: str = "/") -> str:
    return (await bench.http.get(f"http://orders{path}", headers={"x-name": name})).text


async def check(bench: Bench) -> None:
    """Nothing is in use, here or there, and a call finds its way."""
    assert await name_of(bench, "last") == "last"
    bench.check()
    for wire in bench.net.wires:
        assert wire.closed or wire.state.open_inbound_streams == 0
    (connection,) = bench.pool.connections
    assert connection._connection._h2_state.open_outbound_streams == 0
    await bench.http.aclose()
    assert bench.net.open == 0
    bench.services.close()


@pytest.mark.parametrize("path", ["/", "/hang"])
def test_a_cancelled_call_does_the_others_no_harm(
    plug: Callable[[Any], None], pieces: Pieces, way: type[Cancel], path: str
) -> None:
    """One is under way on the connection, and one begins in the moment of the cancellation."""

    def try_one(step: int) -> bool:
        async def main() -> bool:
            plug(net := Net(H2Wire))
            bench, cancel = Bench(pieces, net, **HTTP2), way()
            assert await name_of(bench, "first") == "first"
            names: set[str] = set()
            steps = 0

            async def call(name: str, path: str) -> None:
                names.add(await name_of(bench, name, path))

            async def call_cancelled() -> None:
                def on_step(number: int) -> None:
                    nonlocal steps
                    steps += 1
                    if number == step:
                        group.start_soon(call, "beside", "/")
                        cancel.now()

                await cancel.run(lambda: stepping(name_of(bench, f"cancelled {step}", path), on_step))

            async with anyio.create_task_group() as group:
                group.start_soon(call, "held", "/held")
                await anyio.wait_all_tasks_blocked()
                group.start_soon(call_cancelled)
                await anyio.wait_all_tasks_blocked()
                if steps <= step:
                    cancel.now()  # it hangs, or has ended
                while "held" not in names:  # it may be made again, after a write that was cut short
                    for wire in net.wires:
                        wire.release()
                    await anyio.wait_all_tasks_blocked()
            assert names == ({"held"} if steps <= step else {"held", "beside"})
            await check(bench)
            return steps <= step

        ended: bool = run(way, main)
        return ended

    at_every_step(try_one)


@pytest.mark.parametrize("victim", [0, 1], ids=["who connects", "who waits for that"])
def test_a_cancelled_call_does_those_no_harm_that_wait_for_the_same_connection(
    plug: Callable[[Any], None], pieces: Pieces, way: type[Cancel], victim: int
) -> None:
    def try_one(step: int) -> bool:
        async def main() -> bool:
            plug(net := Net(H2Wire))
            bench, cancel = Bench(pieces, net, **HTTP2), way()
            names: set[str] = set()
            steps = 0

            async def call(name: str) -> None:
                names.add(await name_of(bench, name))

            async def call_cancelled() -> None:
                def on_step(number: int) -> None:
                    nonlocal steps
                    steps += 1
                    if number == step:
                        cancel.now()

                await cancel.run(lambda: stepping(name_of(bench, "cancelled"), on_step))

            async with anyio.create_task_group() as group:
                for place in range(3):
                    if place == victim:
                        group.start_soon(call_cancelled)
                    else:
                        group.start_soon(call, f"call {place}")
            assert names == {f"call {place}" for place in range(3) if place != victim}
            await check(bench)
            return steps <= step

        ended: bool = run(way, main)
        return ended

    at_every_step(try_one)


def test_calls_that_were_cancelled_do_not_use_up_a_connection(
    plug: Callable[[Any], None], pieces: Pieces, way: type[Cancel]
) -> None:
    """There are more of them than streams at once, and what came for them is more than a connection takes unread."""

    async def main() -> None:
        plug(net := Net(H2Wire))
        bench = Bench(pieces, net, **HTTP2)
        for _ in range(3):
            async with anyio.create_task_group() as group:
                cancels = [way() for _ in range(40)]
                for cancel in cancels:
                    group.start_soon(cancel.run, lambda: name_of(bench, "", "/hang"))
                await anyio.wait_all_tasks_blocked()
                for cancel in cancels:
                    cancel.now()
        for _ in range(120):
            async with bench.http.stream("GET", "http://orders/large") as response:
                async for _ in response.aiter_raw():
                    break
        (wire,) = net.wires
        assert wire.resets == 240
        await check(bench)

    run(way, main)


def test_threads_end_a_stream_whose_body_is_not_read(pieces: Pieces) -> None:
    with (
        H2Server(lambda seen: "begin" if seen.method == "PUT" else "answer") as server,
        clientlb.Services(f"static://{server.address}") as services,
        pieces[0].Client(services, **HTTP2) as http,
    ):
        for _ in range(120):
            with http.stream("PUT", "http://orders/"):
                pass
        assert http.get("http://orders/").status_code == 200
        assert (server.connections, server.resets) == (1, 120)


def test_threads_do_not_go_on_after_a_write_that_was_interrupted(
    pieces: Pieces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not written would be missing in the headers of the next call."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with (
        H2Server(lambda seen: "answer") as server,
        clientlb.Services(f"static://{server.address}") as services,
        pieces[0].Client(services, **HTTP2) as http,
    ):
        for number in range(3):
            assert http.get("http://orders/", headers={"x-name": f"call {number}"}).status_code == 200
            with monkeypatch.context() as patch:
                patch.setattr(Stream, "write", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    http.get("http://orders/", headers={"x-name": f"interrupted {number}"})
            assert http.get("http://orders/", headers={"x-name": f"interrupted {number}"}).status_code == 200
        assert (server.connections, len(server.seen)) == (4, 6)
