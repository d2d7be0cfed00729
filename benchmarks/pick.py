"""What one pick costs: nanoseconds for `balancer.try_pick()` and `pick.release(Outcome.SUCCESS)`.

These two are what every shell does for a call, with breaker, latency histogram, retry budget and lock. Beside them, in
the same rounds, `random.choice` over a list of ten items: the least that anybody's own load balancing could cost. The
figures without a policy's name are those of the default policy, least time. Every endpoint has been called before the
clock starts, and the garbage collector runs as it does in real programs. The time is that of the processor, so that
other programs cost nothing but the cache that they use; with eight threads it is the time on the wall.

    ratio_to_choice_N         pick and release among N endpoints / random.choice
    flatness_10000_over_10    the same among 10 000 endpoints / among 10
    in_flight_left            calls still in flight after everything, threads included: each one would be a lost count
    observed.ns_10            pick, observe and release, as a shell does that reads a body after the head
    threads_8.ns_N            eight threads share the balancer: wall time / picks
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Callable

import common

from clientlb import Endpoint, Options, Outcome
from clientlb.balancer import Balancer
from clientlb.pick import pick_of

SIZES = (2, 10, 100, 10_000)
THREADS = 8
SUCCESS = Outcome.SUCCESS
PROTOTYPE = {
    "ratio_to_choice_10": "5-6: plain prototype of P2C with peak EWMA, no lock, no breaker, no figures",
    "p2c.ratio_to_choice_10": "3.4: plain prototype of P2C, no lock, no breaker, no figures",
    "choice_ns": "220: where the prototypes were measured",
}


def called_balancer(policy: str, size: int) -> Balancer:
    """A balancer of which every endpoint was called twice, so that the policy knows them all."""
    balancer = Balancer("orders", Options(policy=policy))
    balancer.update(Endpoint(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", 8080) for n in range(size))
    for node in balancer.nodes * 2:
        node.in_flight += 1
        pick_of(balancer, node, balancer.clock()).release(SUCCESS)
    return balancer


def pick_and_release(balancer: Balancer, count: int) -> None:
    for _ in range(count):
        balancer.try_pick().release(SUCCESS)  # type: ignore[union-attr]


def pick_observe_and_release(balancer: Balancer, count: int) -> None:
    for _ in range(count):
        pick = balancer.try_pick()
        pick.observe(SUCCESS)  # type: ignore[union-attr]
        pick.release()  # type: ignore[union-attr]


def in_threads(balancer: Balancer, count: int) -> None:
    threads = [threading.Thread(target=pick_and_release, args=(balancer, count // THREADS)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def choose(items: list[int], count: int) -> None:
    choice = random.choice
    for _ in range(count):
        choice(items)


def side(
    function: Callable[..., None], target: object, count: int, clock: Callable[[], int] = time.thread_time_ns
) -> Callable[[], float]:
    """What measures one side of a round: nanoseconds per turn of its loop."""

    def measure() -> float:
        began = clock()
        function(target, count)
        return (clock() - began) / count

    return measure


def main() -> None:
    arguments = common.arguments(__doc__)
    rounds, count = (9, 20_000) if arguments.quick else (41, 50_000)
    policies = ("least_time", "p2c", "least_request", "weighted_round_robin", "round_robin", "random")
    balancers = {(policy, size): called_balancer(policy, size) for policy in policies for size in SIZES}

    sides: dict[str, Callable[[], float]] = {"choice": side(choose, list(range(10)), count)}
    for (policy, size), balancer in balancers.items():
        sides[f"{policy}.{size}"] = side(pick_and_release, balancer, count)
    sides["observed"] = side(pick_observe_and_release, balancers["least_time", 10], count)
    for size in SIZES:
        sides[f"threads.{size}"] = side(in_threads, balancers["least_time", size], count, time.perf_counter_ns)
    measured = common.alternate(sides, rounds)

    report = common.Report("pick")
    choice = measured["choice"]
    report.add("choice_ns", statistics.median(choice), anchor=PROTOTYPE["choice_ns"])
    for policy in policies:
        prefix = "" if policy == "least_time" else f"{policy}."
        counts = prefix == ""  # only the default policy has targets
        for size in SIZES:
            report.add(f"{prefix}ns_{size}", statistics.median(measured[f"{policy}.{size}"]))
        for size in SIZES:
            name = f"{prefix}ratio_to_choice_{size}"
            target = 9 if counts and size == 10 else None
            report.add_ratio(name, measured[f"{policy}.{size}"], choice, target=target, anchor=PROTOTYPE.get(name, ""))
        flatness = f"{prefix}flatness_10000_over_10"
        limit = 1.3 if counts else None
        report.add_ratio(flatness, measured[f"{policy}.10000"], measured[f"{policy}.10"], target=limit)
    report.add("observed.ns_10", statistics.median(measured["observed"]))
    for size in SIZES:
        report.add(f"threads_{THREADS}.ns_{size}", statistics.median(measured[f"threads.{size}"]))
    left = sum(node.in_flight for balancer in balancers.values() for node in balancer.nodes)
    report.add("in_flight_left", left, target=0, anchor="0: prototype, after 8 threads")
    report.print(arguments.json)


if __name__ == "__main__":
    main()
