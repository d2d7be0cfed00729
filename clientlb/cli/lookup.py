"""`clientlb resolve`, `watch` and `explain`: what a registry says, and what a balancer makes of it."""

from __future__ import annotations

import argparse
import json
import logging
import queue
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager

from clientlb.cli import journals
from clientlb.cli.arguments import count, seconds
from clientlb.discovery import open_discovery
from clientlb.endpoint import Endpoint
from clientlb.errors import DiscoveryError
from clientlb.services import Services

News = tuple[Endpoint, ...] | Exception


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the three commands to the parser."""
    for run, summary in (
        (resolve, "print the endpoints of a service once; exit status 1 if there are none"),
        (watch, "print the endpoints of a service and every change of them, until Ctrl-C"),
        (explain, "say for each endpoint of a service whether it may be picked, and why"),
    ):
        command = commands.add_parser(run.__name__, help=summary, description=summary.capitalize() + ".")
        command.add_argument(
            "url",
            metavar="URL",
            help="the registry: consul://127.0.0.1:8500, zookeeper://h1:2181,h2:2181/services,"
            " dns://{service}.internal:8080, dns+srv://_grpc._tcp.{service}.internal, dir:///run/registry,"
            " file:///etc/services.json, static://10.0.0.1:80,10.0.0.2:80",
        )
        command.add_argument("service", metavar="SERVICE", type=_name, help="name of the service")
        command.add_argument("--json", action="store_true", help="print JSON")
        if run is not watch:
            command.add_argument(
                "--timeout", type=seconds, default=5.0, metavar="S", help="seconds to wait for an answer (default 5)"
            )
        if run is explain:
            command.add_argument(
                "--journal", metavar="FILE", help="say also what the processes that write this journal made of it"
            )
            command.add_argument(
                "--picks", type=count, default=5, metavar="N", help="picks of the journal to show (default 5)"
            )
        command.set_defaults(run=run)


def _name(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("the name of a service is not empty")
    return text


def resolve(options: argparse.Namespace) -> int:
    """Print the endpoints once."""
    with _news_of(options.url, options.service) as news:
        try:
            found = news.get(timeout=options.timeout)
        except queue.Empty:
            raise DiscoveryError(f"the registry gave no answer within {options.timeout:g} s") from None
    if isinstance(found, Exception):
        raise found
    if options.json:
        print(json.dumps([endpoint.as_json() for endpoint in found], indent=2))
    else:
        _print_table(found)
    if not found:
        print(f"clientlb: nobody is registered as {options.service!r}", file=sys.stderr)
    return 0 if found else 1


def watch(options: argparse.Namespace) -> int:
    """Print the endpoints, and every change, until Ctrl-C."""
    known: dict[tuple[str, str, int], Endpoint] = {}
    first = True
    with _news_of(options.url, options.service) as news:
        try:
            while True:
                item = news.get()
                if isinstance(item, Exception):
                    _print_event(options.json, "error", str(item) or type(item).__name__)
                    continue
                now = {endpoint.key: endpoint for endpoint in item}
                for key in known.keys() - now.keys():
                    _print_event(options.json, "-", known[key])
                for key, endpoint in now.items():
                    if known.get(key) != endpoint:
                        _print_event(options.json, "~" if key in known else "+", endpoint)
                if first and not now:
                    _print_event(options.json, "empty", "nobody is registered")
                known, first = now, False
        except KeyboardInterrupt:
            return 0


def explain(options: argparse.Namespace) -> int:
    """Print what a balancer knows once the first list arrived."""
    recordings = None if options.journal is None else journals.read(options.journal, options.service)
    with _warnings_shown(), Services(options.url) as services:
        balancer = services[options.service]
        deadline = time.monotonic() + options.timeout
        # the end of an outage at the start is worth waiting for; a registry that named nobody has answered
        while not balancer.wait(0.05) and balancer.updated_at is None and time.monotonic() < deadline:
            pass
        explanation = balancer.explanation()
    if options.json:
        journal = {} if recordings is None else {"journal": journals.as_json(recordings, options.picks)}
        print(json.dumps(explanation.as_json() | journal, indent=2))
    else:
        print(explanation)
        if recordings is not None:
            print(journals.text(options.journal, recordings, options.picks))
    return 0 if explanation.endpoints else 1


@contextmanager
def _news_of(url: str, service: str) -> Iterator[queue.SimpleQueue[News]]:
    """Watch a service; what the registry says arrives in the queue."""
    with closing(open_discovery(url)) as discovery, closing(discovery.resolver(service)) as resolver, _warnings_shown():
        mailbox = _Mailbox()
        resolver.start(mailbox)
        yield mailbox.news


@contextmanager
def _warnings_shown() -> Iterator[None]:
    """Print what discovery warns of, such as instances that cannot be read: a list does not say what it lacks."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("clientlb: %(message)s"))
    logger = logging.getLogger("clientlb.discovery")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Mailbox:
    """A listener that hands everything on to the thread that waits."""

    def __init__(self) -> None:
        self.news: queue.SimpleQueue[News] = queue.SimpleQueue()

    def update(self, endpoints: Iterable[Endpoint]) -> None:
        self.news.put(tuple(endpoints))

    def error(self, error: Exception) -> None:
        self.news.put(error if isinstance(error, DiscoveryError) else DiscoveryError(str(error) or repr(error)))


def _print_table(endpoints: Iterable[Endpoint]) -> None:
    rows = [(endpoint.address, _attributes(endpoint)) for endpoint in sorted(endpoints, key=lambda it: it.key)]
    width = max((len(address) for address, _ in rows), default=0)
    for address, attributes in rows:
        print(f"{address:<{width}}  {attributes}".rstrip())


def _attributes(endpoint: Endpoint) -> str:
    words = [] if endpoint.id == endpoint.address else [f"id={endpoint.id}"]
    words += [f"weight={endpoint.weight:g}"] if endpoint.weight != 1.0 else []
    words += ["tls"] if endpoint.secure else []
    words += [f"zone={endpoint.zone}"] if endpoint.zone else []
    words += [f"version={endpoint.version}"] if endpoint.version else []
    return " ".join([*words, *(f"{key}={value}" for key, value in sorted(endpoint.metadata.items()))])


def _print_event(as_json: bool, kind: str, about: Endpoint | str) -> None:
    if as_json:
        names = {"+": "added", "-": "removed", "~": "changed"}
        what = {"endpoint": about.as_json()} if isinstance(about, Endpoint) else {"message": about}
        line = json.dumps({"time": round(time.time(), 3), "event": names.get(kind, kind), **what})
    else:
        text = f"{about.address}  {_attributes(about)}".rstrip() if isinstance(about, Endpoint) else about
        line = f"{time.strftime('%H:%M:%S')} {kind if isinstance(about, Endpoint) else '!'} {text}"
    print(line, flush=True)
