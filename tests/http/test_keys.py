"""What a call says about itself reaches the policy: a key keeps it at one server, a filter picks servers."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest

import clientlb
from clientlb import ConfigurationError, Endpoint
from clientlb.policy import Filter
from clientlb.testing import ManualDiscovery
from tests.http.conftest import Http, Kind, Process
from tests.servers.process import free_ports


def services_of(servers: dict[str, Process], policy: object) -> clientlb.Services:
    endpoints = [
        Endpoint("127.0.0.1", server.port, metadata={"shard": name}, version=str(number))
        for number, (name, server) in enumerate(servers.items(), 1)
    ]
    return clientlb.Services(ManualDiscovery({"orders": endpoints}), options=clientlb.Options(policy=policy))


async def who(http: Http, **options: object) -> str:
    response = await http.get("http://orders/", extensions={"clientlb": options})
    return str(response.json()["server"])


async def test_a_key_stays_at_one_server_and_keys_are_spread(kind: Kind, shared_servers: dict[str, Process]) -> None:
    with services_of(shared_servers, "rendezvous") as services:
        async with kind.client(services) as http:
            homes = {key: {await who(http, key=key) for _ in range(3)} for key in map(str, range(20))}
            assert all(len(found) == 1 for found in homes.values())
            assert Counter(name for (name,) in homes.values()).keys() == {"a", "b"}
            assert {await who(http, key=7)} == homes["7"], "a whole number is the same key as its digits"


async def test_a_retry_goes_to_the_next_of_the_key(kind: Kind, shared_servers: dict[str, Process]) -> None:
    a, b = shared_servers.values()
    nobody = f"127.0.0.1:{free_ports(1)[0]}"
    discovery = ManualDiscovery({"orders": [a.address, b.address, nobody]})
    options = clientlb.Options(policy="rendezvous", health=clientlb.HealthOptions(consecutive_failures=1000))
    with clientlb.Services(discovery, options=options) as services:
        balancer = services["orders"]
        async with kind.client(services) as http:
            checked = 0
            for key in range(40):
                with balancer.pick(key=key) as first:
                    pass
                if first.endpoint.address != nobody:
                    continue
                second = balancer.try_pick_for(clientlb.policy.Request.of(key=key), [first.node])
                assert second is not None
                second.release()
                response = await http.get("http://orders/", extensions={"clientlb": {"key": key}})
                tried = [attempt.endpoint for attempt in response.extensions["clientlb"].attempts]
                assert tried == [first.endpoint, second.endpoint]
                checked += 1
            assert checked > 3


async def test_a_filter_picks_servers(kind: Kind, shared_servers: dict[str, Process]) -> None:
    with services_of(shared_servers, partial(Filter, "round_robin", "fail")) as services:
        async with kind.client(services) as http:
            assert {await who(http, where={"version": "2"}) for _ in range(4)} == {"b"}
            assert {await who(http, where={"shard": "a"}) for _ in range(4)} == {"a"}
            assert {await who(http) for _ in range(4)} == {"a", "b"}
            with pytest.raises(clientlb.NoEndpointsError, match="shard=c") as caught:
                await who(http, where={"shard": "c"})
            assert isinstance(caught.value, kind.library.ConnectError)


async def test_a_filter_that_the_policy_does_not_heed_is_refused(kind: Kind, services: clientlb.Services) -> None:
    async with kind.client(services) as http:
        with pytest.raises(ConfigurationError, match="wrap it in Filter"):
            await who(http, where={"version": "2"})
        with pytest.raises(ConfigurationError, match="the key of a call is a list"):
            await who(http, key=["a"])
    assert sum(node.in_flight for node in services["orders"].nodes) == 0
