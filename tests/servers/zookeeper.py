"""Real ZooKeeper servers: one alone, or an ensemble, also with TLS or SASL. A small JVM starts in 0.4 s."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Mapping
from pathlib import Path

from tests.servers.process import ServerProcess, fetched, free_ports, start_together, wait_until

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

    def __init__(
        self,
        *,
        port: int | None = None,
        tick: int = 500,
        number: int = 0,
        peers: str = "",
        settings: str = "",
        properties: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"zookeeper{number or ''}")
        self.port = port or free_ports(1)[0]
        self._tick, self._number, self._peers, self._settings = tick, number, peers, settings
        self._properties = PROPERTIES | dict(properties or {})
        self._packages = ["zookeeper"]

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
            f"initLimit=20\nsyncLimit=10\nmaxClientCnxns=0\n{self._settings}\n{self._peers}\n"
        )
        if self._number:
            (self.data / "myid").write_text(str(self._number))
        main = f"{PACKAGE}.quorum.QuorumPeerMain" if self._peers else f"{PACKAGE}.ZooKeeperServerMain"
        jars = ":".join(str(jar) for package in self._packages for jar in sorted(fetched(package).glob("*.jar")))
        properties = [f"-D{name}={value}" for name, value in self._properties.items()]
        return ["java", *JVM, *properties, "-cp", jars, main, str(configuration)]

    def answers(self) -> bool:
        return bool(self.mode())

    def mode(self) -> str:
        """`standalone`, `leader` or `follower`; empty while it does not serve."""
        return next((line.split()[1] for line in self.ask("srvr").splitlines() if line.startswith("Mode:")), "")

    def ask(self, word: str) -> str:
        """The answer to one of ZooKeeper's four letter words."""
        # A short timeout: ZooKeeper accepts connections long before it answers on them.
        with socket.create_connection(("127.0.0.1", self.port), timeout=0.25) as connection:
            connection.sendall(word.encode())
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()

    @property
    def sessions(self) -> int:
        """How many clients have a session now."""
        return sum("sid=" in line for line in self.ask("cons").splitlines())


class SaslZooKeeper(ZooKeeperServer):
    """A server that serves only who has authenticated with SASL, and knows one user."""

    def __init__(self, user: str, password: str) -> None:
        super().__init__(
            properties={
                "zookeeper.authProvider.1": f"{PACKAGE}.auth.SASLAuthenticationProvider",
                "zookeeper.sessionRequireClientSASLAuth": "true",
            }
        )
        login = "org.apache.zookeeper.server.auth.DigestLoginModule"
        jaas = self.folder / "jaas.conf"
        jaas.write_text(f'Server {{\n  {login} required\n  user_{user}="{password}";\n}};\n')
        self._properties["java.security.auth.login.config"] = str(jaas)


class TlsZooKeeper(ZooKeeperServer):
    """A server that also speaks TLS, on `secure_port`, with clients that have the same certificate."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self.secure_port = free_ports(1)[0]
        super().__init__(settings=f"secureClientPort={self.secure_port}\nsecureClientPortAddress=127.0.0.1")
        store = self.folder / "store.pem"
        store.write_text(certificate.read_text() + key.read_text())
        self._packages.append("netty")
        self._properties |= {"zookeeper.serverCnxnFactory": f"{PACKAGE}.NettyServerCnxnFactory"}
        for kind in ("keyStore", "trustStore"):
            self._properties |= {f"zookeeper.ssl.{kind}.location": str(store), f"zookeeper.ssl.{kind}.type": "PEM"}


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
        start_together(self.servers)

    def stop(self) -> None:
        for server in self.servers:
            server.stop()


class OldZooKeeper:
    """A proxy that makes a server look like one before 3.6: requests it did not have are refused, and it hangs up."""

    NEW_REQUESTS = frozenset({106, 22, 18})  # addWatch, multiRead, removeWatches
    UNIMPLEMENTED = -6

    def __init__(self, server: ZooKeeperServer) -> None:
        self._server = server
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.hosts = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.refused: list[int] = []

    def start(self) -> None:
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._server.port))
                threading.Thread(target=self._answers, args=(server, client), daemon=True).start()
                threading.Thread(target=self._requests, args=(client, server), daemon=True).start()

    def _answers(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError), server, client:
            while data := server.recv(65536):
                client.sendall(data)

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError, struct.error), server, client, client.makefile("rb") as stream:
            introduction = True  # the first frame opens the session, and has no header
            while True:
                (length,) = struct.unpack("!i", stream.read(4))
                frame = stream.read(length)
                number, request = struct.unpack_from("!ii", frame)
                if not introduction and request in self.NEW_REQUESTS:
                    self.refused.append(request)
                    client.sendall(struct.pack("!iiqi", 16, number, 0, self.UNIMPLEMENTED))
                    return
                introduction = False
                server.sendall(struct.pack("!i", length) + frame)
