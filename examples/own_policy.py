"""A policy of one's own: near servers first, within `Filter` and beside the breaker and the retries of every policy."""

import random
from collections import Counter
from collections.abc import Sequence
from functools import partial

import clientlb
from clientlb.node import Node
from clientlb.policy import Filter

KILOMETRES = {"eu-1": 20, "eu-2": 900, "us-1": 6200}


class Nearest:
    """The nearest zone; there, the server with the fewest calls in flight."""

    def choose(self, nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
        return min(nodes, key=lambda node: (KILOMETRES[node.endpoint.zone or ""], node.in_flight, rng.random()))


def main() -> None:
    endpoints = [
        clientlb.Endpoint("10.0.0.1", 80, zone="us-1", version="2"),
        clientlb.Endpoint("10.0.0.2", 80, zone="eu-2", version="2"),
        clientlb.Endpoint("10.0.0.3", 80, zone="eu-1", version="1"),
        clientlb.Endpoint("10.0.0.4", 80, zone="eu-1", version="1"),
    ]
    balancer = clientlb.Balancer("orders", clientlb.Options(policy=partial(Filter, Nearest)))
    balancer.update(endpoints)
    held = [balancer.pick() for _ in range(10)]
    print("ten calls at once:", dict(sorted(Counter(pick.endpoint.host for pick in held).items())))
    for pick in held:
        pick.release()
    with balancer.pick(where={"version": "2"}) as pick:
        print("version 2:", pick.endpoint.zone)


if __name__ == "__main__":
    main()
