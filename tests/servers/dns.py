"""A real DNS server, by dnslib: a process of its own on loopback, UDP and TCP, whose answers a test changes at will."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dnslib import QTYPE, RCODE, RR, SOA, DNSError, DNSRecord
from dnslib.server import BaseResolver, DNSHandler, DNSLogger, DNSServer

from tests.servers.process import ServerProcess, free_ports

_PROBE = "ready.test."


class DnsServer(ServerProcess):
    """A nameserver for every name. What it holds is set with `serve`; what it does not hold does not exist."""

    def __init__(self) -> None:
        super().__init__("dns")
        (self.port,) = free_ports(1)
        self.serve()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def serve(
        self, *records: str, fails: Sequence[str] = (), silent: Sequence[str] = (), additional: bool = True
    ) -> None:
        """Hold these records, in the words of zone files (`orders.test. 5 IN A 127.0.0.1`).

        Args:
            records: One line each.
            fails: Names to answer with SERVFAIL.
            silent: Names to which nothing is answered.
            additional: Send the addresses of SRV targets along.
        """
        draft = self.folder / "draft"
        content = {"records": records, "fails": fails, "silent": silent, "additional": additional}
        draft.write_text(json.dumps(content))
        os.replace(draft, self.folder / "content")

    def questions(self) -> list[str]:
        """What was asked, as `orders.test. A udp`."""
        return [line for line in (self.folder / "questions").read_text().splitlines() if _PROBE not in line]

    def command(self) -> list[str]:
        (self.folder / "questions").touch()
        program = "from tests.servers.dns import main; main()"
        root = Path(__file__).parents[2]
        return ["env", f"PYTHONPATH={root}", sys.executable, "-c", program, str(self.folder), str(self.port)]

    def answers(self) -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.socket() as tcp:
            udp.settimeout(0.5)
            udp.sendto(DNSRecord.question(_PROBE).pack(), ("127.0.0.1", self.port))
            tcp.connect(("127.0.0.1", self.port))
            return bool(udp.recv(512))


class _Content(BaseResolver):  # type: ignore[misc]
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def resolve(self, request: DNSRecord, handler: DNSHandler) -> DNSRecord:
        name, type = str(request.q.qname).lower(), QTYPE[request.q.qtype]
        with (self._folder / "questions").open("a") as file:
            file.write(f"{name} {type} {handler.protocol}\n")
        content: Mapping[str, Any] = json.loads((self._folder / "content").read_text())
        records = RR.fromZone("\n".join(content["records"])) if content["records"] else []
        if name in content["silent"]:
            raise DNSError("silent")
        reply = request.reply()
        if name in content["fails"]:
            reply.header.rcode = RCODE.SERVFAIL
            return reply
        here = [record for record in records if str(record.rname).lower() == name]
        found = [record for record in here if QTYPE[record.rtype] == type]
        reply.add_answer(*found)
        if not here:
            reply.header.rcode = RCODE.NXDOMAIN
        if not found:
            reply.add_auth(RR("test.", QTYPE.SOA, ttl=300, rdata=SOA("ns.test.", "root.test.", (1, 60, 60, 60, 300))))
        if type == "SRV" and content["additional"]:
            targets = {str(record.rdata.target) for record in found}
            reply.add_ar(*(record for record in records if str(record.rname) in targets))
        if handler.protocol == "udp" and len(reply.pack()) > 512:
            reply = request.reply()
            reply.header.tc = 1
        return reply


def main() -> None:
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    for tcp in (False, True):
        quiet = DNSLogger(logf=lambda _: None)
        DNSServer(_Content(folder), "127.0.0.1", port, tcp=tcp, logger=quiet).start_thread()
    while True:
        time.sleep(3600)
