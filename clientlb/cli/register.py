"""`clientlb register … -- COMMAND`: wraps any server, so that it is found while it serves and leaves before it stops.

    STARTING ──the port or the health URL answers──▶ SERVING ──SIGTERM, SIGINT──▶ LEAVING ──▶ STOPPING ──▶ over
        │                                                                         deregister,     the signal is passed
        └──start_timeout, or a signal──▶ STOPPING                                 propagation     on; SIGKILL in the end

The main thread does nothing but wait for signals, the child's death being one of them. All are blocked and taken one by
one with `sigtimedwait`, so none can arrive at a bad moment. Registration and its self-test have threads of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import enum
import logging
import math
import os
import signal
import ssl
import sys
import threading
import time
import urllib.request
from collections.abc import Callable

from clientlb.cli.arguments import seconds
from clientlb.registration import Registration, register
from clientlb.registration._probe import answers

COMMAND_NOT_FOUND = 127
COMMAND_NOT_EXECUTABLE = 126
NEVER_ANSWERED = 1

_GRACEFUL = frozenset({signal.SIGTERM, signal.SIGINT})
_PASSED_ON = frozenset({signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH})
_TAKEN = _GRACEFUL | _PASSED_ON | {signal.SIGCHLD}
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)

_HEALTH_TIMEOUT = 2.0
_GLANCE = 0.05  # seconds between two looks at what another thread does
_NO_HURRY = 3600.0

_EPILOG = """\
The command runs in a process group of its own, without a keyboard. SIGTERM and Ctrl-C take it out of the registry,
wait for the propagation time, and are passed on; a second one is passed on at once. SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2
and SIGWINCH are passed on as they are. When the command has ended, or --drain-timeout is over, what is left of the
group is killed. The exit status is that of the command (128+n if signal n ended it), 127 or 126 if it cannot be found
or run, 1 if it never answered, 2 if an argument is wrong.

Under systemd, set KillMode=mixed: otherwise the command hears SIGTERM at the same time as we do.

example:
  clientlb register --service orders --port 8080 --to consul://127.0.0.1:8500 --health-url /health -- gunicorn shop:app
"""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    summary = "run a server, and keep it registered for as long as it answers"
    command = commands.add_parser(
        "register",
        help=summary,
        description=summary.capitalize() + ".",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="clientlb register --service NAME --port PORT --to URL [options] -- COMMAND [ARGUMENT ...]",
    )
    required = command.add_argument_group("required")
    required.add_argument("--service", required=True, metavar="NAME", help="name under which clients find the server")
    required.add_argument("--port", required=True, type=_port, help="port on which the command listens")
    required.add_argument(
        "--to", required=True, metavar="URL", help="the registry: consul://…, zookeeper://… or dir:///…"
    )
    entry = command.add_argument_group("what the registry says")
    entry.add_argument("--host", help="address under which clients reach it (default: this machine's)")
    entry.add_argument("--id", help="identity of the instance (default: host, port and a random part)")
    entry.add_argument("--weight", type=float, default=1.0, metavar="W", help="share of the traffic (default 1)")
    entry.add_argument("--zone", help="failure domain (default: $CLIENTLB_ZONE)")
    entry.add_argument("--version", help="version of the software")
    entry.add_argument("--secure", action="store_true", help="the server speaks TLS")
    entry.add_argument(
        "--metadata",
        action="append",
        type=_pair,
        default=[],
        metavar="KEY=VALUE",
        help="anything else; may be repeated",
    )
    entry.add_argument(
        "--ttl", type=seconds, default=10.0, metavar="S", help="a server that vanished is gone after (default 10)"
    )
    life = command.add_argument_group("when it is announced, and how it ends")
    health = life.add_mutually_exclusive_group()
    health.add_argument(
        "--health-url",
        type=_health_url,
        metavar="URL",
        help="it is fit while this answers 200; a path such as /health is asked of 127.0.0.1 and the port",
    )
    health.add_argument(
        "--health-port",
        type=_port,
        metavar="PORT",
        help="it is fit while this port answers (default: --port)",
    )
    life.add_argument(
        "--start-timeout", type=seconds, default=60.0, metavar="S", help="time until it first answers (default 60)"
    )
    life.add_argument(
        "--propagation", type=_pause, default=1.0, metavar="S", help="go on serving when deregistered (default 1)"
    )
    life.add_argument(
        "--drain-timeout", type=_pause, default=20.0, metavar="S", help="SIGKILL so long after SIGTERM (default 20)"
    )
    command.add_argument("command", nargs="+", metavar="COMMAND", help="the server and its arguments, after --")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns its exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # who inherits that it is ignored hears of no death
    signal.pthread_sigmask(signal.SIG_BLOCK, _TAKEN)  # before there is any thread: they all inherit it
    _say_what_happens()
    return Wrapper(options).run()


class Phase(enum.Enum):
    """What the wrapper is at; the picture at the top has the ways from one to the next."""

    STARTING = enum.auto()
    SERVING = enum.auto()
    LEAVING = enum.auto()
    STOPPING = enum.auto()


class Wrapper:
    """Runs one command, and keeps its entry in the registry."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._phase = Phase.STARTING
        self._child = 0
        self._status: int | None = None
        self._verdict: int | None = None  # overrules the status of the child
        self._farewell = signal.SIGTERM
        self._leaving: threading.Thread | None = None
        self._phase_ends: float = time.monotonic() + options.start_timeout
        self._is_started = threading.Event()
        self._has_answered = threading.Event()
        self._check = _health_check(options)

    def run(self) -> int:
        """Start the command and see it through to its end."""
        with self._register() as registration:
            try:
                self._child = _spawn(self._options.command)
            except OSError as error:
                return _cannot_run(self._options.command[0], error)
            self._is_started.set()
            while self._status is None:
                taken = signal.sigtimedwait(_TAKEN, self._pause())
                self._move_on()
                if taken is not None:
                    self._obey(signal.Signals(taken.si_signo), registration)
            self._kill_group()  # what the command left behind
            if self._phase is Phase.STARTING and not self._has_answered.is_set():
                _complain(f"{self._options.command[0]} ended with status {self._status} before {self._what} answered")
        return self._status if self._verdict is None else self._verdict

    def _register(self) -> Registration:
        options = self._options
        return register(
            options.service,
            port=options.port,
            to=options.to,
            host=options.host,
            id=options.id,
            weight=options.weight,
            zone=options.zone,
            version=options.version,
            secure=options.secure,
            metadata=dict(options.metadata),
            ttl=options.ttl,
            propagation=options.propagation,
            self_test=self._test,
            signals=(),
        )

    def _test(self) -> bool:
        """The self-test: is there a command that shall go on, and does it answer?"""
        if not self._is_started.is_set() or self._phase is Phase.STOPPING:
            return False
        self._check()
        self._has_answered.set()
        return True

    @property
    def _what(self) -> str:
        """What has to answer."""
        options = self._options
        return str(options.health_url or f"port {options.health_port or options.port}")

    def _pause(self) -> float:
        if self._phase is Phase.SERVING:
            return _NO_HURRY
        if self._phase is Phase.STOPPING:
            return max(0.0, self._phase_ends - time.monotonic())
        return _GLANCE

    def _obey(self, number: signal.Signals, registration: Registration) -> None:
        if number is signal.SIGCHLD:
            self._reap()
        elif number is signal.SIGINT and signal.getsignal(number) is signal.SIG_IGN:
            pass  # a background job of a shell: Ctrl-C is for somebody else
        elif number in _PASSED_ON:
            self._send(number)
        elif self._phase is Phase.SERVING:
            self._phase, self._farewell = Phase.LEAVING, number
            self._leaving = threading.Thread(target=registration.leave, name="clientlb-leave", daemon=True)
            self._leaving.start()
        elif self._phase is Phase.STOPPING:
            self._send(number)
        else:  # nobody calls it yet, or it is the second time: no waiting
            self._stop(number)

    def _move_on(self) -> None:
        now = time.monotonic()
        if self._phase is Phase.STARTING and self._has_answered.is_set():
            self._phase = Phase.SERVING
        elif self._phase is Phase.STARTING and now >= self._phase_ends:
            options = self._options
            _complain(
                f"{options.command[0]}: {self._what} did not answer within {options.start_timeout:g} s; it is stopped"
            )
            self._verdict = NEVER_ANSWERED
            self._stop(signal.SIGTERM)
        elif self._phase is Phase.LEAVING and self._leaving is not None and not self._leaving.is_alive():
            self._stop(self._farewell)
        elif self._phase is Phase.STOPPING and now >= self._phase_ends:
            _complain(f"{self._options.command[0]} has not ended after {self._options.drain_timeout:g} s: killed")
            self._kill_group()
            self._phase_ends = now + _NO_HURRY

    def _stop(self, number: signal.Signals) -> None:
        self._phase, self._phase_ends = Phase.STOPPING, time.monotonic() + self._options.drain_timeout
        self._send(number)

    def _reap(self) -> None:
        """Collect the dead: our child, and orphans that are ours because we are the first process of a container."""
        while True:
            try:
                dead, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if dead == 0:
                return
            if dead == self._child:
                code = os.waitstatus_to_exitcode(status)
                self._status = code if code >= 0 else 128 - code

    def _send(self, number: signal.Signals) -> None:
        if self._status is None:  # until it is reaped, its number is nobody else's
            os.kill(self._child, number)

    def _kill_group(self) -> None:
        try:
            os.killpg(self._child, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # nobody is left; or whoever is left has changed its user


def _spawn(command: list[str]) -> int:
    """Start the command in a process group of its own, with the signals as a fresh program expects them."""
    actions = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)] if sys.stdin and sys.stdin.isatty() else []
    return os.posix_spawnp(
        command[0],
        command,
        os.environ,
        file_actions=actions,
        setpgroup=0,
        setsigmask=(),
        setsigdef=_IGNORED_BY_PYTHON,
    )


def _cannot_run(command: str, error: OSError) -> int:
    _complain(f"{command}: {'command not found' if isinstance(error, FileNotFoundError) else error.strerror}")
    return COMMAND_NOT_FOUND if isinstance(error, FileNotFoundError) else COMMAND_NOT_EXECUTABLE


def _health_check(options: argparse.Namespace) -> Callable[[], None]:
    """What raises while the server is not fit."""
    if options.health_url is None:
        port = options.health_port or options.port
        return lambda: answers(port, ("127.0.0.1", *((options.host,) if options.host else ()), "::1"))
    url = options.health_url
    if url.startswith("/"):
        url = f"{'https' if options.secure else 'http'}://127.0.0.1:{options.port}{url}"
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it is asked under another name than by clients
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}),  # a neighbour is not asked through a proxy
        urllib.request.HTTPSHandler(context=context),
    )

    def check() -> None:
        with opener.open(url, timeout=_HEALTH_TIMEOUT):
            pass

    return check


def _say_what_happens() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("clientlb: %(message)s"))
    for name, level in (("clientlb", logging.INFO), ("", logging.WARNING)):
        logging.getLogger(name).setLevel(level)
    logging.getLogger().addHandler(handler)


def _complain(text: str) -> None:
    print(f"clientlb: {text}", file=sys.stderr, flush=True)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text[:6]) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; give a number from 1 to 65535")
    return int(text)


def _pause(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no time; give a number of seconds, 0 or more")


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form KEY=VALUE")
    return key, value


def _health_url(text: str) -> str:
    if not text.startswith(("/", "http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a path such as /health nor a URL with http or https")
    return text
