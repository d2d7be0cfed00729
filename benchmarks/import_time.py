"""What importing clientlb costs a program that starts: a new Python that imports it, against one that does not.

The time is that of the processor, user and system, from start to end of the process, so that other programs cost
nothing but the cache that they use. Every figure is a median of per-round differences, the sides alternating.

    bare_ms              a Python that does nothing
    clientlb_ms          `import clientlb` above that
    services_ms          `import clientlb`, and the first use of `clientlb.Services`, above that
    FLAVOUR.added_ms     `clientlb.FLAVOUR` above the library that it wraps: httpx, httpx2, grpc
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable

import common

PROGRAMS = {
    "bare": "pass",
    "clientlb": "import clientlb",
    "services": "import clientlb; clientlb.Services",
    **{name: f"import {name}" for name in ("httpx", "httpx2", "grpc")},
    **{f"clientlb.{name}": f"import clientlb.{name}" for name in ("httpx", "httpx2", "grpc")},
}


def run(program: str) -> Callable[[], float]:
    """What measures one program: milliseconds of processor time."""

    def measure() -> float:
        process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if status:
            common.refuse(f"{program!r} ended with exit status {process.returncode}")
        return (used.ru_utime + used.ru_stime) * 1e3

    return measure


def main() -> None:
    arguments = common.arguments(__doc__)
    rounds = 9 if arguments.quick else 31
    sides = {name: run(program) for name, program in PROGRAMS.items()}
    for side in sides.values():
        side()  # the bytecode is on the disk, and the disk's pages in memory
    measured = common.alternate(sides, rounds)

    def above(name: str, base: str) -> float:
        return statistics.median(mine - other for mine, other in zip(measured[name], measured[base], strict=True))

    report = common.Report("import_time", packages=("httpx", "httpx2", "grpcio", "tenacity"))
    report.add("bare_ms", statistics.median(measured["bare"]))
    report.add("clientlb_ms", above("clientlb", "bare"), target=40)
    report.add("services_ms", above("services", "bare"))
    for name in ("httpx", "httpx2", "grpc"):
        report.add(
            f"{name}.added_ms", above(f"clientlb.{name}", name), anchor=f"{above(name, 'bare'):.0f}: {name} itself"
        )
    report.print(arguments.json)


if __name__ == "__main__":
    main()
