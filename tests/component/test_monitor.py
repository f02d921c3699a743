"""What is looked at becomes what decisions are made with; the "engines" are this test's own process."""

import asyncio
import errno
import os

import pytest

from axiond.monitor import LOOK_INTERVALS_S, Monitor, look_again_s
from axiond.reconcile.state import EngineState
from axiond.resources.budget import Room
from axiond.resources.estimate import Prediction
from axiond.resources.measured import Measured

from .engines import GIB, START_S, bench

pytestmark = pytest.mark.looptime


async def looked_at(b, times):
    monitor = Monitor(b.reconciler)
    for _ in range(times):
        await asyncio.sleep(2)
        await monitor.sample()
    return monitor


async def test_an_engine_is_measured_once_it_no_longer_grows():
    async with bench() as b:
        await b.settled(b.submit(a={}))
        engine = b.engine("a")
        engine.pids = (os.getpid(),)
        measured = b.reconciler.memory.measured
        monitor = await looked_at(b, 1)
        assert measured.get(engine.key.digest).ready_bytes == 0
        await asyncio.sleep(2)
        await monitor.sample()
        found = measured.get(engine.key.digest)
        assert found.ready_bytes > 2**20
        assert found.load_s == pytest.approx(START_S)
        observed = b.reconciler.observe()
        assert observed.predictions[engine.key.digest].load_s == found.load_s
        assert observed.engines[engine.key].used_bytes == monitor.samples[engine.key].memory.bytes
        assert b.reconciler.memory.used_bytes == monitor.samples[engine.key].memory.own_bytes


async def test_a_want_of_descriptors_is_no_end_of_it(monkeypatch):
    async with bench() as b:
        monitor = Monitor(b.reconciler)
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", fail)
            patch.setattr("builtins.open", fail)
            running = asyncio.create_task(monitor.run())
            await asyncio.sleep(60)
        assert not running.done()
        running.cancel()


def fail(*_arguments, **_options):
    raise OSError(errno.EMFILE, "Too many open files")


async def test_an_engine_beyond_its_ceiling_is_recycled_new_before_old():
    async with bench() as b:
        await b.settled(b.submit(a={"memory_ceiling": "64MiB"}))
        old = b.engine("a")
        old.pids = (os.getpid(),)
        b.reconciler.executor.engines[old.key].used_bytes = 65 * 2**20
        async with asyncio.timeout(600):
            while b.engine("a") is old:
                await asyncio.sleep(1)
                b.reconciler.look_at_memory()
        assert b.engine("a").key.digest == old.key.digest


async def test_one_that_had_to_end_says_why_and_comes_back():
    async with bench() as b:
        await b.settled(b.submit(a={}))
        engine = b.engine("a")
        engine.pids = (os.getpid(), 2**30)
        b.reconciler.executor.sacrifice(engine.key, "took too much")
        engine.crash()
        await asyncio.sleep(0.1)
        record = b.reconciler.executor.engines[engine.key]
        assert (record.state, record.reason) == (EngineState.BACKOFF, "took too much")
        await asyncio.sleep(60)
        assert (record.state, record.doom) == (EngineState.READY, "")


async def test_one_that_has_no_processes_yet_is_not_waited_for_as_if_it_were_ending():
    async with bench() as b:
        await b.settled(b.submit(a={}))
        engine = b.engine("a")
        engine.pids = (os.getpid(),)  # its host
        b.reconciler.executor.sacrifice(engine.key, "had to end")
        assert not b.reconciler.executor.engines[engine.key].doom


async def test_one_that_took_all_memory_until_it_ended_is_expected_to_take_as_much_as_before_it_grew():
    async with bench(4 * GIB) as b:
        await b.settled(b.submit(a={}))
        engine, measured = b.engine("a"), b.reconciler.memory.measured
        measured.put(engine.key.digest, Measured(GIB, GIB, 5 * GIB, START_S))
        engine.crash()
        await asyncio.sleep(60)
        assert b.reconciler.executor.engines[engine.key].state is EngineState.BACKOFF
        await looked_at(b, 1)
        assert measured.get(engine.key.digest) == Measured(GIB, GIB, GIB, START_S)
        await asyncio.sleep(START_S + 1)
        assert b.reconciler.executor.engines[engine.key].state is EngineState.READY


async def test_what_an_engine_grew_to_beyond_its_ceiling_is_not_expected_of_the_next():
    async with bench() as b:
        await b.settled(b.submit(a={}))
        engine, measured = b.engine("a"), b.reconciler.memory.measured
        record = b.reconciler.executor.engines[engine.key]
        record.is_measured, record.prediction = True, Prediction(fixed_bytes=2**20)
        measured.put(engine.key.digest, Measured(2**20, 2**20, 2**30, START_S))
        engine.pids = (os.getpid(),)
        await looked_at(b, 1)
        assert measured.get(engine.key.digest).most_bytes == 2**20


@pytest.mark.parametrize(("free_gib", "expected_s"), [(60, LOOK_INTERVALS_S[1]), (1.25, 0.5), (0.1, LOOK_INTERVALS_S[0])])
def test_the_less_memory_is_left_the_sooner_it_is_looked_at_again(free_gib, expected_s):
    assert look_again_s(Room(64 * GIB, int(free_gib * GIB), 64 * GIB)) == expected_s
