"""Churn, with three servers of which one after another is killed: no update is lost."""

from __future__ import annotations

import pytest

from tests.discovery.consul_churn import churn
from tests.servers.consul import ConsulCluster


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_update_is_lost(consul_cluster: ConsulCluster, service: str, seed: int) -> None:
    churn(consul_cluster, service, seed=seed, instances=300, kills=4, pause=8.0)
