"""Probes against real servers in other processes: what they bring, what they cost when nobody answers, what is left."""

import os
import socket
import threading
import time
from collections import Counter
from functools import partial
from queue import Queue

import grpc
import httpx
import pytest

import clientlb
import clientlb.grpc
import clientlb.httpx
from clientlb import ConfigurationError, Endpoint, Options
from clientlb.node import Node
from clientlb.policy import Prequal
from clientlb.probing import HttpProbe
from clientlb.probing.grpc import GrpcProbe
from clientlb.testing import ManualDiscovery
from tests.servers.process import open_descriptors, wait_until

KINDS = {"asgi": HttpProbe, "wsgi": HttpProbe, "grpc": GrpcProbe, "grpc.aio": GrpcProbe}
PATIENT = 2.0
"""Seconds for an answer where a test runs beside others on a busy machine."""


def ours():
    return [thread for thread in threading.enumerate() if thread.name.startswith("clientlb-probe")]


def sockets():
    return open_descriptors("socket")


def answer_of(probe, endpoint):
    """Ask until there is an answer."""
    answers, node = Queue(), Node(endpoint)

    def answered():
        probe.ask(node, lambda *load: answers.put(load))
        time.sleep(0.02)
        return not answers.empty()

    wait_until(answered, 20, "the answer to a probe")
    return answers.get()


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_says_how_loaded_it_is(serve, kind):
    (endpoint,) = serve(kind, 0.3)
    with KINDS[kind](timeout=PATIENT) as probe:
        assert answer_of(probe, endpoint) == (0, 0.0)
        with calling(kind, endpoint) as call:
            over = threading.Event()

            def work():
                while not over.is_set():
                    call()

            threads = [threading.Thread(target=work) for _ in range(3)]
            for thread in threads:
                thread.start()
            try:
                wait_until(lambda: answer_of(probe, endpoint)[0] == 3, 30, "three in flight")
            finally:
                over.set()
            for thread in threads:
                thread.join()
        wait_until(lambda: answer_of(probe, endpoint)[0] == 0, 30, "nothing in flight")
        assert answer_of(probe, endpoint)[1] >= 0.3


class calling:
    """Calls one server directly."""

    def __init__(self, kind, endpoint):
        self.kind, self.endpoint = kind, endpoint

    def __enter__(self):
        if "grpc" in self.kind:
            self.channel = grpc.insecure_channel(self.endpoint.address)
            return partial(self.channel.unary_unary("/probing.Orders/Get"), b"", timeout=20)
        self.channel = httpx.Client(trust_env=False, timeout=20)
        return partial(self.channel.get, f"http://{self.endpoint}/")

    def __exit__(self, *_):
        self.channel.close()


def shares(kind, endpoints, probe, calls):
    """How the calls of four threads through Prequal are shared out."""
    discovery = ManualDiscovery()
    with clientlb.Services(discovery, options=Options(policy=partial(Prequal, probe))) as services:
        balancer = services["orders"]
        discovery.set("orders", endpoints)
        if "grpc" in kind:
            channel = clientlb.grpc.channel("orders", services)
            call = partial(channel.unary_unary("/probing.Orders/Get"), b"", timeout=20)
        else:
            channel = clientlb.httpx.Client(services, timeout=20)
            call = partial(channel.get, "http://orders/")

        def work():
            for _ in range(calls // 4):
                call()

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        channel.close()
        counted = {each.endpoint: each.calls for each in balancer.stats().endpoints}
    assert sum(counted.values()) == calls
    return [counted[endpoint.address] / calls for endpoint in endpoints]


@pytest.mark.parametrize("kind", KINDS)
def test_the_slow_one_of_four_gets_less_than_its_share(serve, kind):
    endpoints = serve(kind, 0.3, 0.03, 0.03, 0.03)
    with KINDS[kind](timeout=PATIENT) as probe:
        assert shares(kind, endpoints, probe, 400)[0] < 0.17  # a quarter would be its share


@pytest.mark.parametrize("kind", ["asgi-mute", "grpc-mute"])
def test_servers_that_do_not_answer_cost_nothing_but_randomness(serve, kind):
    endpoints = serve(kind, 0.01, 0.01, 0.01, 0.01)
    with KINDS[kind.removesuffix("-mute")]() as probe:
        found = shares(kind, endpoints, probe, 400)
        assert min(found) > 0.12
        pauses = [line.not_before for line in probe._lines.values()]
    assert len(pauses) == 4
    assert min(pauses) > 0


@pytest.mark.parametrize("make", [HttpProbe, GrpcProbe])
def test_nothing_is_left_after_close(serve, make):
    (endpoint,) = serve("asgi" if make is HttpProbe else "grpc.aio", 0.01)
    before = sockets()
    for _ in range(3):
        probe = make(timeout=PATIENT)
        assert not ours(), "threads start with the first question"
        answer_of(probe, endpoint)
        assert ours()
        probe.close()
        probe.close()
        assert not ours()
        probe.ask(Node(endpoint), lambda *_: pytest.fail("asked after close"))
        assert not ours()
    wait_until(lambda: len(sockets()) <= len(before) + (make is GrpcProbe), 30, "sockets are closed")


def test_a_connection_is_kept(serve):
    (endpoint,) = serve("asgi", 0.01)
    with HttpProbe(timeout=PATIENT) as probe:
        answer_of(probe, endpoint)
        (line,) = probe._lines.values()
        connection = line.connection.sock
        answer_of(probe, endpoint)
        assert line.connection.sock is connection


def test_what_the_queue_cannot_take_is_dropped_and_a_silent_server_holds_up_nobody():
    with socket.create_server(("127.0.0.1", 0)) as mute, HttpProbe(timeout=0.3, threads=1, backlog=2) as probe:
        port = mute.getsockname()[1]
        nodes = [Node(Endpoint(f"127.0.0.{number}", port)) for number in range(1, 9)]
        for node in nodes[:1] * 5 + nodes:
            probe.ask(node, lambda *_: pytest.fail("nobody answers"))
        under_way = [line for line in probe._lines.values() if line.busy]
        assert len(under_way) <= 1 + probe.backlog
        wait_until(lambda: not any(line.busy for line in probe._lines.values()), 20, "all gave up")
        assert Counter(line.failures for line in under_way) == {1: len(under_way)}


def test_one_that_fails_is_asked_less_and_less():
    class Failing(HttpProbe):
        asked = 0

        def load(self, connection):
            self.asked += 1
            raise OSError("no")

    with Failing() as probe:
        node = Node(Endpoint("127.0.0.1", 9))

        def ask():
            probe.ask(node, lambda *_: None)
            (line,) = probe._lines.values()
            wait_until(lambda: not line.busy)
            return line

        for _ in range(10):
            line = ask()
        assert probe.asked == 3
        line.not_before = 0.0
        began = time.monotonic()
        assert ask().not_before >= began + 2.0
        assert probe.asked == 4


def test_what_a_connection_cost_is_given_back_when_nobody_asks_any_more():
    class Answering(HttpProbe):
        dropped = 0

        def load(self, connection):
            return 1, 0.01

        def disconnect(self, connection):
            self.dropped += 1

    with Answering() as probe:
        answer_of(probe, Endpoint("127.0.0.1", 9))
        for line in probe._lines.values():
            line.asked_at -= 1000.0
        probe._tidied_at -= 1000.0
        answer_of(probe, Endpoint("127.0.0.1", 10))
        wait_until(lambda: probe.dropped == 1)
        assert [key[1] for key in probe._lines] == [10]


def test_an_answer_that_nobody_can_take_ends_no_thread():
    class Answering(HttpProbe):
        def load(self, connection):
            return 1, 0.01

    with Answering(threads=1) as probe:
        endpoint = Endpoint("127.0.0.1", 9)
        probe.ask(Node(endpoint), lambda *_: 1 / 0)
        assert answer_of(probe, endpoint) == (1, 0.01)


def test_a_forked_child_asks_on_threads_of_its_own(serve):
    (endpoint,) = serve("wsgi", 0.01)
    with HttpProbe(timeout=PATIENT) as probe:
        answer_of(probe, endpoint)
        probe._lock.acquire()  # as if another thread were asking
        child = os.fork()
        if not child:
            try:
                assert not ours()
                assert not probe._lines
                assert answer_of(probe, endpoint)[0] == 0
                probe.close()
                assert not ours()
                os._exit(0)
            finally:
                os._exit(1)
        probe._lock.release()
        assert os.waitpid(child, 0)[1] == 0
        assert answer_of(probe, endpoint)[0] == 0


@pytest.mark.parametrize("setting", [{"timeout": 0}, {"timeout": float("inf")}, {"threads": 0}, {"backlog": 0}])
@pytest.mark.parametrize("make", [HttpProbe, GrpcProbe])
def test_settings_are_checked(make, setting):
    with pytest.raises(ConfigurationError, match=next(iter(setting))):
        make(**setting)


def test_the_path_is_checked():
    with pytest.raises(ConfigurationError, match="path is 'load'"):
        HttpProbe("load")
