"""`clientlb demo`: a small fleet of real servers, real traffic, and what happens when servers die, slow down and leave.

General layout: `server` is the program of one server process, `fleet` starts and stops those processes, `traffic` makes
the calls and counts what a caller sees, `watching` reads what the balancer tells, `story` says what happens when and
what came of it, `screen` shows it.
This module only reads the command line: httpx, grpc and rich are imported when the demo runs.
"""

from __future__ import annotations

import argparse
import asyncio
from importlib.util import find_spec

from clientlb.cli.arguments import at_least


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "demo",
        help="start six servers, call them, and see what happens when they die, slow down and leave",
        description="Starts four HTTP and two gRPC servers on loopback, sends calls through clientlb, kills a server,"
        " makes one slow, adds one and stops one. The last line of output is JSON; exit status 1 if any call failed.",
    )
    command.add_argument(
        "--registry",
        metavar="URL",
        help="where the servers register: consul://…, zookeeper://… or dir://… (default: a fresh temporary folder)",
    )
    command.add_argument(
        "--seconds", type=at_least(5), default=18.0, metavar="S", help="how long the traffic lasts (default 18)"
    )
    command.add_argument(
        "--rate", type=at_least(1), default=150.0, metavar="N", help="calls per second of each kind (default 150)"
    )
    command.add_argument("--json-only", action="store_true", help="print nothing but the line of JSON")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the demo; returns the exit status."""
    flavour = next((name for name in ("httpx", "httpx2") if find_spec(name)), None)
    if flavour is None or find_spec("grpc") is None:
        raise ImportError("the demo makes HTTP and gRPC calls: pip install 'clientlb[httpx,grpc,cli]'")
    from clientlb.cli.demo.screen import make_screen
    from clientlb.cli.demo.story import tell

    try:
        return asyncio.run(
            tell(
                registry=options.registry,
                flavour=flavour,
                seconds=options.seconds,
                rate=options.rate,
                screen=make_screen(silent=options.json_only),
            )
        )
    except asyncio.CancelledError:  # SIGTERM: everything was taken down in order
        return 143
