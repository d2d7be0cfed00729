"""Real Consul servers: one alone, or a cluster, each with a data folder so that a restart finds what was there."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping
from typing import Any

from tests.servers.process import ServerProcess, fetched, free_ports, start_together, wait_until


class ConsulServer(ServerProcess):
    """One Consul server. `dev=True` keeps everything in memory and is ready in 0.1 s instead of 1.5 s.

    `extra` are settings of the agent; its `ports` and `performance` are added to ours.
    """

    def __init__(
        self,
        *,
        dev: bool = False,
        name: str = "server1",
        ports: list[int] | None = None,
        expect: int = 1,
        join: tuple[str, ...] = (),
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(f"consul-{name}")
        self.node = name
        self.port, self.rpc_port, self.serf_port = ports or free_ports(3)
        self._dev, self._expect, self._join, self._extra = dev, expect, join, extra or {}

    @property
    def url(self) -> str:
        return f"consul://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        configuration = self.folder / "agent.json"
        extra = dict(self._extra)
        settings: dict[str, Any] = {
            "ports": {
                "http": self.port,
                "server": self.rpc_port,
                "serf_lan": self.serf_port,
                **dict.fromkeys(["serf_wan", "dns", "grpc", "https"], -1),
                **extra.pop("ports", {}),
            },
            "disable_update_check": True,
            "disable_host_node_id": True,
            "skip_leave_on_interrupt": True,
            "performance": {"raft_multiplier": 1, **extra.pop("performance", {})},
            "limits": {"http_max_conns_per_client": 500},
            **extra,
        }
        configuration.write_text(json.dumps(settings))
        line = [
            str(fetched("consul/consul")),
            "agent",
            "-config-file",
            str(configuration),
            "-node",
            self.node,
        ]
        line += ["-bind", "127.0.0.1", "-client", "127.0.0.1"]
        if self._dev:
            return [*line, "-dev"]
        line += ["-server", "-bootstrap-expect", str(self._expect), "-data-dir", str(self.data)]
        for address in self._join:
            line += ["-retry-join", address, "-retry-interval", "1s"]
        return line

    def request(self, method: str, path: str, body: Any = None, timeout: float = 5.0, token: str = "") -> Any:
        """One call of the HTTP interface; the decoded answer, or None for an empty one."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", method=method)
        if token:
            request.add_header("X-Consul-Token", token)
        payload = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(request, payload, timeout) as answer:
            text = answer.read()
        return json.loads(text) if text.strip() else None

    def answers(self) -> bool:
        # A leader alone is not enough: services can be written and read once the node itself is in the catalog.
        checks = self.request("GET", f"/v1/health/node/{self.node}", timeout=1.0)
        return any(check["CheckID"] == "serfHealth" and check["Status"] == "passing" for check in checks)


class ConsulCluster:
    """Three servers that elect a leader. `extra` as for one."""

    def __init__(self, size: int = 3, *, extra: Mapping[str, Any] | None = None) -> None:
        ports = free_ports(3 * size)
        groups = [ports[3 * n : 3 * n + 3] for n in range(size)]
        addresses = [f"127.0.0.1:{serf}" for _, _, serf in groups]
        self.servers = [
            ConsulServer(
                name=f"server{n + 1}",
                ports=groups[n],
                expect=size,
                join=tuple(address for address in addresses if address != addresses[n]),
                extra=extra,
            )
            for n in range(size)
        ]

    def leader(self) -> ConsulServer:
        leaders: list[ConsulServer] = []

        def elected() -> bool:
            for server in self.servers:
                try:
                    address = server.request("GET", "/v1/status/leader", timeout=2.0) if server.running else ""
                except (OSError, ValueError):
                    continue
                leaders.extend(peer for peer in self.servers if address.endswith(f":{peer.rpc_port}"))
            return bool(leaders)

        wait_until(elected, 30, "the cluster has a leader")
        return leaders[0]

    def start(self) -> None:
        start_together(self.servers)

    def stop(self) -> None:
        for server in self.servers:
            server.stop()
