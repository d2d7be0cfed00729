"""A real etcd server, for the example of a backend that somebody else writes."""

from __future__ import annotations

import base64
import json
import urllib.request
from typing import Any

from tests.servers.process import ServerProcess, fetched, free_ports


class EtcdServer(ServerProcess):
    """One etcd server with a data folder, so that a restart finds what was there."""

    def __init__(self) -> None:
        super().__init__("etcd")
        self.port, self._peer_port = free_ports(2)

    @property
    def url(self) -> str:
        return f"etcd://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        client, peer = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self._peer_port}"
        options = {
            "name": "one",
            "data-dir": str(self.data),
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"one={peer}",
            "heartbeat-interval": "20",  # ms; it waits for an election at every start
            "election-timeout": "200",
        }
        flags = [f"--{name}={value}" for name, value in options.items()]
        return ["env", "ETCD_UNSUPPORTED_ARCH=arm64", str(fetched("etcd/etcd")), *flags]  # elsewhere it means nothing

    def request(self, path: str, **body: Any) -> Any:
        """One call of the HTTP gateway."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/v3{path}", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=5.0) as answer:
            return json.loads(answer.read())

    def put(self, key: str, value: bytes) -> None:
        self.request("/kv/put", key=base64.b64encode(key.encode()).decode(), value=base64.b64encode(value).decode())

    def delete(self, key: str) -> None:
        self.request("/kv/deleterange", key=base64.b64encode(key.encode()).decode())

    def clear(self) -> None:
        self.request("/kv/deleterange", key="AA==", range_end="AA==")  # from the zero byte on

    def keys(self) -> list[str]:
        found = self.request("/kv/range", key="AA==", range_end="AA==").get("kvs", ())
        return [base64.b64decode(pair["key"]).decode() for pair in found]

    def answers(self) -> bool:
        return "header" in self.request("/kv/range", key="AA==")
