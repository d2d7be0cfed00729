"""300 instances that two writers change at random while ZooKeeper is killed four times: no change may be lost."""

from __future__ import annotations

import pytest

from clientlb.discovery.zookeeper import ZooKeeperDiscovery
from tests.conftest import running
from tests.discovery.zookeeper_writing import check_churn
from tests.servers.zookeeper import ZooKeeperEnsemble, ZooKeeperServer


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("persistent", [True, False], ids=["persistent", "one-shot"])
@pytest.mark.parametrize("make", [ZooKeeperServer, ZooKeeperEnsemble])
def test_churn_loses_nothing(
    make: type[ZooKeeperServer | ZooKeeperEnsemble], persistent: bool, seed: int, service: str
) -> None:
    with running(make()) as registry:
        discovery = ZooKeeperDiscovery(registry.hosts, persistent_watches=persistent)
        check_churn(registry, discovery, service, seed=seed, instances=300, changes=5000, crashes=4)
