"""Hedging of decorated functions: threads for functions, tasks for coroutines, and nothing that is left behind."""

import asyncio
import gc
import threading
import time

import pytest

from clientlb import HedgeOptions, Options, RetryOptions, Services
from clientlb.crew import MOST, Crew
from clientlb.testing import ManualDiscovery

HEDGED = RetryOptions(hedge=HedgeOptions(delay=0.02))


@pytest.fixture
def services():
    discovery = ManualDiscovery({"orders": [f"127.0.0.1:{port}" for port in (1, 2, 3)]})
    with Services(discovery, options=Options(retry=HEDGED)) as services:
        yield services
        assert services.stats()["orders"].in_flight == 0


def hedge_threads():
    return [thread for thread in threading.enumerate() if thread.name == "clientlb-hedge"]


def wait_until(condition, seconds=30.0):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it never became true"
        time.sleep(0.01)


def test_a_slow_function_is_overtaken(services):
    slow, asked = threading.Event(), []

    @services.balanced("orders", idempotent=True)
    def ask(endpoint):
        asked.append(endpoint)
        if len(asked) == 1:
            slow.wait(30)
            return "slow"
        return "fast"

    assert ask() == "fast"
    assert len(set(asked)) == 2
    slow.set()
    assert services.stats()["orders"].hedges == 1
    wait_until(lambda: not hedge_threads())


def test_a_fast_function_has_no_hedge(services):
    @services.balanced("orders", idempotent=True, retry=RetryOptions(hedge=HedgeOptions(delay=10.0)))
    def ask(endpoint):
        return endpoint

    for _ in range(100):
        ask()
    assert services.stats()["orders"].hedges == 0


def test_what_is_not_idempotent_runs_once_and_in_the_thread_of_the_caller(services):
    @services.balanced("orders")
    def ask(endpoint):
        time.sleep(0.1)
        return threading.current_thread()

    assert ask() is threading.current_thread()


def test_when_all_fail_the_last_error_is_raised_with_its_history(services):
    @services.balanced("orders", idempotent=True, retry=RetryOptions(hedge=HedgeOptions(delay=0.02)))
    def ask(endpoint):
        time.sleep(0.1)
        raise ConnectionResetError("again")

    with pytest.raises(ConnectionResetError) as caught:
        ask()
    assert "attempt 2 at 127.0.0.1" in caught.value.__notes__[0]


async def test_a_slow_coroutine_is_overtaken_and_cancelled(services):
    asked, cancelled = [], []

    @services.balanced("orders", idempotent=True)
    async def ask(endpoint):
        asked.append(endpoint)
        if len(asked) == 1:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                cancelled.append(endpoint)
                raise
        return "fast"

    assert await ask() == "fast"
    assert cancelled == asked[:1]
    assert len(asyncio.all_tasks()) == 1


async def test_what_the_overtaken_one_raises_at_its_end_is_no_complaint_of_asyncio(services):
    complaints, asked = [], []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))

    @services.balanced("orders", idempotent=True)
    async def ask(endpoint):
        asked.append(endpoint)
        if len(asked) == 1:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                raise OSError("it could not be closed") from None
        return "fast"

    assert await ask() == "fast"
    gc.collect()
    assert complaints == []


def test_a_thread_that_cannot_be_started_leaves_nothing_behind(services, monkeypatch):
    asked = []

    @services.balanced("orders", idempotent=True)
    def ask(endpoint):
        asked.append(endpoint)
        return "answer"

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            ask()
    assert ask() == "answer"
    assert len(asked) == 1, "the call that could not be made is not made later"


async def test_a_caller_that_is_cancelled_leaves_no_attempt_behind(services):
    running, both = set(), asyncio.Event()

    @services.balanced("orders", idempotent=True)
    async def ask(endpoint):
        running.add(endpoint)
        if len(running) == 2:
            both.set()
        try:
            await asyncio.sleep(30)
        finally:
            running.discard(endpoint)

    task = asyncio.create_task(ask())
    await both.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not running
    assert len(asyncio.all_tasks()) == 1


async def test_a_failure_is_forgiven_while_another_attempt_runs(services):
    asked, both = [], asyncio.Event()

    @services.balanced("orders", idempotent=True)
    async def ask(endpoint):
        asked.append(endpoint)
        if len(asked) == 1:
            await both.wait()
            raise ConnectionResetError
        both.set()
        await asyncio.sleep(0.3)
        return "done"

    assert await ask() == "done"
    figures = services.stats()["orders"]
    assert (figures.calls, figures.failures, figures.hedges, figures.retries) == (1, 0, 1, 0)


class TestCrew:
    def test_threads_are_used_again_and_go_when_there_is_no_work(self):
        crew = Crew()
        seen = {crew.send(threading.current_thread).result() for _ in range(50)}
        assert len(seen) <= 3
        wait_until(lambda: not any(thread.is_alive() for thread in seen))
        assert crew.send(lambda: "again").result() == "again"
        crew.close()

    def test_errors_are_those_of_the_future(self):
        crew = Crew()
        future = crew.send(lambda: 1 / 0)
        assert isinstance(future.exception(), ZeroDivisionError)
        crew.close()

    def test_it_ends_what_can_be_ended_and_waits_for_that(self):
        wait_until(lambda: not hedge_threads())  # those of other tests have a second
        crew, ended = Crew(), threading.Event()
        begun = threading.Event()
        future = crew.send(lambda: (begun.set(), ended.wait(30)), ended.set)
        begun.wait(10)
        crew.close()
        assert future.done()
        assert not hedge_threads()
        assert crew.full

    def test_it_says_when_it_has_enough(self):
        crew, gate = Crew(), threading.Event()
        futures = [crew.send(lambda: gate.wait(30)) for _ in range(MOST)]
        assert crew.full
        gate.set()
        for future in futures:
            future.result(30)
        wait_until(lambda: not crew.full)
        crew.close()

    def test_nothing_is_lost_under_pressure(self):
        crew = Crew()
        done = []
        for round_ in range(200):
            futures = [crew.send(lambda round_=round_, number=number: (round_, number)) for number in range(5)]
            done += [future.result(10) for future in futures]
        assert len(done) == len(set(done)) == 1000
        crew.close()
