"""One of four servers gets into trouble: it becomes 20 times slower, is killed, or hangs (SIGSTOP).

Every server is a process that works on a few calls at a time by sleeping, so its capacity is its own. Calls are
idempotent and come in an open loop: at times that were drawn beforehand (Poisson, the same for all ways), however long
others take; latency counts from the time at which a call was due. The trouble begins after a quarter of the run and
lasts to its end.

The ways: `clientlb` as it is by default; its `round_robin`; `envoy`, a local Envoy with least requests, outlier
detection, two retries on other hosts and a timeout per try; and for gRPC `grpc_round_robin`, the policy of gRPC itself
with its own retries. Where there is a timeout per attempt it is half a second. All calls end after three seconds.

    TROUBLE.KIND.WAY.p50_ms, .p99_ms, .p999_ms     TROUBLE is slow, killed or hung; KIND is httpx (async) or grpc (aio)
    TROUBLE.KIND.WAY.failed                        calls that failed
    TROUBLE.KIND.p99_to_best_other                 clientlb / the best of the others that lost no call
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from typing import Any

import common
import grpc
import grpc.aio
import httpx
import origins
import proxies
import sluggish

import clientlb.grpc.aio
import clientlb.httpx
from clientlb import Options, Services

SERVICE = "orders"
SERVERS = 4
WORK, SLOTS, SLOWER = 0.010, 4, 20.0
RATE = 120.0
"""Calls per second: 30 for each server, of which a slow one can do 20."""
ATTEMPT, DEADLINE = 0.5, 3.0
TROUBLES = ("slow", "killed", "hung")
BODY = b'{"id": 7}'
ENVOY_HEALTH: dict[str, Any] = {
    "outlier_detection": {
        "consecutive_5xx": 5,
        "interval": "1s",
        "base_ejection_time": "5s",
        "max_ejection_percent": 50,
    },
    "retry_policy": {
        "retry_on": "5xx,reset,connect-failure,unavailable",
        "num_retries": 2,
        "per_try_timeout": f"{ATTEMPT}s",
        "host_selection_retry_max_attempts": 5,
        "retry_host_predicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
                },
            }
        ],
    },
}
GRPC_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.025s",
                "maxBackoff": "0.25s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}
GRPC_SETTINGS = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]

Call = Callable[[], Awaitable[object]]


def options(way: str) -> Options:
    given: dict[str, Any] = {} if way == "clientlb" else {"policy": way}
    if "attempt_timeout" in Options.__dataclass_fields__:
        given["attempt_timeout"] = ATTEMPT
    return Options(**given)


@asynccontextmanager
async def http_call(way: str, ports: Sequence[int]) -> AsyncIterator[Call]:
    limits = httpx.Limits(max_connections=1000, max_keepalive_connections=1000)
    async with AsyncExitStack() as stack:
        if way == "envoy":
            program = proxies.find("envoy")
            assert program is not None
            port = stack.enter_context(proxies.envoy(program, ports, health=ENVOY_HEALTH))
            url = f"http://127.0.0.1:{port}/"
            client: Any = httpx.AsyncClient(timeout=DEADLINE, limits=limits, trust_env=False)
        else:
            services = stack.enter_context(Services(_static(ports), options=options(way)))
            url = f"http://{SERVICE}/"
            client = clientlb.httpx.AsyncClient(services, timeout=ATTEMPT, limits=limits, trust_env=False)
        await stack.enter_async_context(client)

        async def call() -> None:
            (await client.get(url)).raise_for_status()

        yield call


@asynccontextmanager
async def grpc_call(way: str, ports: Sequence[int]) -> AsyncIterator[Call]:
    async with AsyncExitStack() as stack:
        if way == "envoy":
            program = proxies.find("envoy")
            assert program is not None
            port = stack.enter_context(proxies.envoy(program, ports, grpc=True, health=ENVOY_HEALTH))
            channel: Any = grpc.aio.insecure_channel(f"127.0.0.1:{port}", GRPC_SETTINGS)
        elif way == "grpc_round_robin":
            config = ("grpc.service_config", json.dumps(GRPC_SERVICE_CONFIG))
            target = f"ipv4:{','.join(f'127.0.0.1:{port}' for port in ports)}"
            channel = grpc.aio.insecure_channel(target, [*GRPC_SETTINGS, config])
        else:
            services = stack.enter_context(Services(_static(ports), options=options(way)))
            channel = clientlb.grpc.aio.channel(SERVICE, services, options=GRPC_SETTINGS, idempotent=True)
        await stack.enter_async_context(channel)
        method = channel.unary_unary(origins.METHOD, None, None, _registered_method=True)
        yield lambda: method(BODY, timeout=DEADLINE)


def _static(ports: Sequence[int]) -> str:
    return f"static://{','.join(f'127.0.0.1:{port}' for port in ports)}"


KINDS = {
    "httpx": (http_call, ("clientlb", "round_robin", "envoy")),
    "grpc": (grpc_call, ("clientlb", "round_robin", "grpc_round_robin", "envoy")),
}


# ---------------------------------------------------------------------- one run


def due_times(seconds: float, seed: str) -> list[float]:
    rng = random.Random(seed)
    times, at = [], 0.0
    while (at := at + rng.expovariate(RATE)) < seconds:
        times.append(at)
    return times


async def open_loop(
    call: Call, times: Sequence[float], begin: Callable[[], None], at: float
) -> tuple[list[float], int]:
    """Make the calls at their times; latencies from when each was due, and how many failed."""
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    failed = 0
    start = time.perf_counter()

    async def one(due: float) -> None:
        nonlocal failed
        try:
            await asyncio.wait_for(call(), DEADLINE)
        except (httpx.HTTPError, grpc.RpcError, TimeoutError):
            failed += 1
        latencies.append(time.perf_counter() - start - due)

    loop.call_later(at, begin)
    tasks = []
    for due in times:
        wait = start + due - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(due)))
    await asyncio.gather(*tasks)
    return latencies, failed


async def run(kind: str, way: str, trouble: str, seconds: float) -> tuple[list[float], int]:
    """One way through one trouble, with servers of its own."""
    make_call, _ = KINDS[kind]
    with ExitStack() as stack:
        started = [sluggish.Sluggish(WORK, SLOTS) for _ in range(SERVERS)]
        fleet = [stack.enter_context(server) for server in started]
        victim = fleet[-1]
        begin = {"slow": lambda: victim.slow_down(SLOWER), "killed": victim.kill, "hung": victim.hang}[trouble]
        async with make_call(way, [server.ports[kind] for server in fleet]) as call:
            await asyncio.gather(*(call() for _ in range(2 * SERVERS)))  # connections are made
            return await open_loop(call, due_times(seconds, trouble), begin, seconds / 4)


def add(report: common.Report, name: str, latencies: Sequence[float], failed: int, ours: bool) -> None:
    for quantile, percent in (("p50", 50.0), ("p99", 99.0), ("p999", 99.9)):
        report.add(f"{name}.{quantile}_ms", common.percentile(latencies, percent) * 1e3)
    report.add(f"{name}.failed", failed, target=0 if ours else None)


def main() -> None:
    arguments = common.arguments(__doc__)
    seconds, passes = (2.0, 1) if arguments.quick else (12.0, 2)
    report = common.Report("slow_server", packages=("httpx", "grpcio"))
    has_envoy = proxies.find("envoy") is not None
    for trouble in TROUBLES:
        for kind, (_, ways) in KINDS.items():
            made: dict[str, tuple[list[float], int]] = {way: ([], 0) for way in ways if way != "envoy" or has_envoy}
            for _ in range(passes):
                for way, (latencies, failed) in made.items():
                    more, lost = asyncio.run(run(kind, way, trouble, seconds))
                    made[way] = (latencies + more, failed + lost)
            for way, (latencies, failed) in made.items():
                add(report, f"{trouble}.{kind}.{way}", latencies, failed, way == "clientlb")
            p99 = {way: common.percentile(latencies, 99) for way, (latencies, _) in made.items()}
            best = min((way for way in made if way != "clientlb"), key=lambda way: (made[way][1] > 0, p99[way]))
            name = f"{trouble}.{kind}.p99_to_best_other"
            report.add(name, p99["clientlb"] / p99[best], target=1, anchor=f"1: {best}, {made[best][1]} failed")
    report.print(arguments.json)
    if not has_envoy:
        print("not compared with envoy: run benchmarks/proxies.sh, or put it on PATH", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
