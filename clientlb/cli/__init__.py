"""The command `clientlb`: one parser, one place where errors become a line and an exit status.

General layout: `lookup` has the commands that look into a registry (`resolve`, `watch`, `explain`), `register` the one
that keeps a server in it, `demo` the demo, `simulate` fleets that are not there, `journals`
what a program has recorded (`replay`).
Exit status: 0 all is well, 1 the answer is no (nobody found, a call of the demo failed), 2 it could not be done;
`register` has that of the program that it runs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import clientlb
from clientlb.cli import demo, journals, lookup, register, simulate
from clientlb.errors import ClientLBError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status.

    Args:
        arguments: What follows the command's name; None takes the process's own.
    """
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # `clientlb watch … | head`: who reads us has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the flush at exit complains again
        return 0
    except KeyboardInterrupt:
        return 130
    except (ClientLBError, ImportError) as error:
        print(f"clientlb: {error}", file=sys.stderr)
        return 2
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="clientlb", description="Client-side load balancing: look into a registry, be found in it, or see a demo."
    )
    parser.add_argument("--version", action="version", version=f"clientlb {clientlb.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    demo.add_command(commands)
    lookup.add_commands(commands)
    simulate.add_command(commands)
    journals.add_command(commands)
    register.add_command(commands)
    return parser
