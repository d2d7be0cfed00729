"""Real ZooKeeper servers: one alone, or an ensemble. The flags make a small JVM start in 0.4 s."""

from __future__ import annotations

import socket

from tests.servers.process import ServerProcess, fetched, free_ports, wait_until

JVM = ["-Xms16m", "-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData"]
PROPERTIES = {
    "zookeeper.admin.enableServer": "false",  # also spares us the jars of its web server
    "zookeeper.4lw.commands.whitelist": "*",
    "zookeeper.forceSync": "no",
    "zookeeper.extendedTypesEnabled": "true",
    "zookeeper.jmx.log4j.disable": "true",
}
PACKAGE = "org.apache.zookeeper.server"


class ZooKeeperServer(ServerProcess):
    """One server with a data folder, so that a restart finds what was there.

    `tick` (ms) bounds session timeouts: a client may have from 2 to 20 ticks.
    """

    def __init__(self, *, port: int | None = None, tick: int = 500, number: int = 0, peers: str = "") -> None:
        super().__init__(f"zookeeper{number or ''}")
        self.port = port or free_ports(1)[0]
        self._tick, self._number, self._peers = tick, number, peers

    @property
    def hosts(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"zookeeper://{self.hosts}/services"

    def command(self) -> list[str]:
        self.data.mkdir(exist_ok=True)
        configuration = self.folder / "zoo.cfg"
        configuration.write_text(
            f"dataDir={self.data}\nclientPort={self.port}\nclientPortAddress=127.0.0.1\ntickTime={self._tick}\n"
            f"initLimit=20\nsyncLimit=10\nmaxClientCnxns=0\n{self._peers}\n"
        )
        if self._number:
            (self.data / "myid").write_text(str(self._number))
        main = f"{PACKAGE}.quorum.QuorumPeerMain" if self._peers else f"{PACKAGE}.ZooKeeperServerMain"
        jars = ":".join(str(jar) for jar in sorted(fetched("zookeeper").glob("*.jar")))
        properties = [f"-D{name}={value}" for name, value in PROPERTIES.items()]
        return ["java", *JVM, *properties, "-cp", jars, main, str(configuration)]

    def answers(self) -> bool:
        return bool(self.mode())

    def mode(self) -> str:
        """`standalone`, `leader` or `follower`; empty while it does not serve."""
        # A short timeout: ZooKeeper accepts connections long before it answers on them.
        with socket.create_connection(("127.0.0.1", self.port), timeout=0.25) as connection:
            connection.sendall(b"srvr")
            answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        return next((line.split()[1] for line in answer.splitlines() if line.startswith("Mode:")), "")


class ZooKeeperEnsemble:
    """Three servers that elect a leader."""

    def __init__(self, size: int = 3) -> None:
        ports = free_ports(3 * size)
        clients, quorum, election = ports[:size], ports[size : 2 * size], ports[2 * size :]
        peers = "\n".join(f"server.{n + 1}=127.0.0.1:{quorum[n]}:{election[n]}" for n in range(size))
        self.servers = [ZooKeeperServer(port=port, number=n, peers=peers) for n, port in enumerate(clients, 1)]

    @property
    def hosts(self) -> str:
        return ",".join(server.hosts for server in self.servers)

    @property
    def url(self) -> str:
        return f"zookeeper://{self.hosts}/services"

    def leader(self) -> ZooKeeperServer:
        leaders: list[ZooKeeperServer] = []

        def elected() -> bool:
            for server in self.servers:
                try:
                    if server.running and server.mode() == "leader":
                        leaders.append(server)
                except OSError:
                    continue
            return bool(leaders)

        wait_until(elected, 30, "the ensemble has a leader")
        return leaders[0]

    def start(self) -> None:
        for server in self.servers:
            server.launch()
        for server in self.servers:
            server.wait_ready()

    def stop(self) -> None:
        for server in self.servers:
            server.stop()
