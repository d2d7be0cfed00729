"""A minute of nonsense in each registry (`SOAK_SECONDS`, default 60)."""

from __future__ import annotations

import os
from pathlib import Path

from tests.discovery.fuzzing import fuzz_consul, fuzz_directory, fuzz_zookeeper
from tests.servers.zookeeper import ZooKeeperServer

SECONDS = float(os.environ.get("SOAK_SECONDS", "60"))


def test_consul(service: str) -> None:
    fuzz_consul(service, seconds=SECONDS, seed=2)


def test_directory(tmp_path: Path, service: str) -> None:
    fuzz_directory(tmp_path, service, seconds=SECONDS, seed=2)


def test_zookeeper(zookeeper: ZooKeeperServer, service: str) -> None:
    fuzz_zookeeper(zookeeper, service, seconds=SECONDS, seed=2)
