"""Everything at once: calls of all kinds from threads and tasks while servers die, leave and come back. Afterwards
nothing may be left: no call in flight, no channel of a leaver, no thread.
"""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

import clientlb
import clientlb.grpc
import clientlb.grpc.aio
from clientlb.node import Node
from tests.servers.process import wait_until

SECONDS = 3.0


def sync_calls(orders: Any, pb: Any, rng: random.Random) -> list[Callable[[], object]]:
    def cancel_stream() -> None:
        stream = orders.List(pb.Request(count=1000), timeout=20)
        next(stream)
        stream.cancel()

    def cancel_future() -> None:
        future = orders.Get.future(pb.Request(act="sleep", argument="0.02"), timeout=20)
        time.sleep(rng.random() / 50)
        future.cancel()

    return [
        lambda: orders.Get(pb.Request(), timeout=20),
        lambda: orders.Get.future(pb.Request(), timeout=20).result(),
        lambda: orders.Get.future(pb.Request(), timeout=20).add_done_callback(lambda it: it.code()),
        lambda: list(orders.List(pb.Request(count=rng.randrange(20)), timeout=20)),
        lambda: next(orders.List(pb.Request(count=1000), timeout=20)),  # and dropped
        lambda: orders.Add(iter([pb.Request()] * rng.randrange(20)), timeout=20),
        lambda: list(orders.Chat(iter([pb.Request()] * rng.randrange(20)), timeout=20)),
        cancel_stream,
        cancel_future,
    ]


async def aio_call(orders: Any, pb: Any, rng: random.Random) -> None:
    kind = rng.randrange(4)
    if kind == 0:
        await orders.Get(pb.Request(), timeout=20)
    elif kind == 1:
        async for _ in orders.List(pb.Request(count=rng.randrange(20)), timeout=20):
            pass
    elif kind == 2:
        await orders.List(pb.Request(count=1000), timeout=20).read()  # and dropped
    else:
        orders.Get(pb.Request(act="sleep", argument="0.02"), timeout=20).cancel()


def test_nothing_is_left_after_a_storm(own_pair, discovery, services, stub_class, pb):
    addresses = [server.address for server in own_pair]
    discovery.set("orders", addresses)
    ends = time.monotonic() + SECONDS
    nodes: set[Node] = set()
    strange: list[BaseException] = []
    done = [0]
    channel = clientlb.grpc.channel("orders", services, idempotent=True)
    orders = stub_class(channel)

    def thread(seed: int) -> None:
        rng = random.Random(seed)
        calls = sync_calls(orders, pb, rng)
        while time.monotonic() < ends:
            try:
                rng.choice(calls)()
                done[0] += 1
            except grpc.RpcError:
                pass  # servers are dying
            except BaseException as error:
                strange.append(error)

    async def tasks() -> None:
        async with clientlb.grpc.aio.channel("orders", services, idempotent=True) as aio_channel:
            aio_orders = stub_class(aio_channel)

            async def task(seed: int) -> None:
                rng = random.Random(seed)
                while time.monotonic() < ends:
                    try:
                        await aio_call(aio_orders, pb, rng)
                        done[0] += 1
                    except grpc.RpcError:
                        pass

            await asyncio.gather(*(task(seed) for seed in range(4)))
            links = aio_channel.links()
            deadline = time.monotonic() + 20
            while links.running:
                assert time.monotonic() < deadline, "calls still run"
                gc.collect()
                await asyncio.sleep(0.02)

    threads = [threading.Thread(target=thread, args=(seed,)) for seed in range(3)]
    threads.append(threading.Thread(target=lambda: asyncio.run(tasks())))
    for each in threads:
        each.start()
    rng = random.Random(0)
    while time.monotonic() < ends:
        nodes.update(services["orders"].nodes)
        discovery.set("orders", rng.sample(addresses, rng.choice([1, 2])))
        nodes.update(services["orders"].nodes)
        if rng.random() < 0.1:
            own_pair[0].restart()
        threading.Event().wait(0.1)
    for each in threads:
        each.join()
    gc.collect()
    wait_until(lambda: not any(node.in_flight for node in nodes), what="nothing in flight")
    discovery.set("orders", addresses[:1])
    wait_until(lambda: len(channel.links.channels) <= 1, what="the leavers' channels are closed")
    channel.close()
    assert strange == []
    assert done[0] > 20
    wait_until(lambda: not [each for each in threading.enumerate() if each.name.startswith("clientlb-grpc")])
