"""Engines of an earlier daemon enter the loop. Engines in memory, virtual time."""

import asyncio
import time
from pathlib import Path

import pytest

from axiond.manifest.spec import ModelSpec
from axiond.reconcile.state import EngineKey, EngineState
from axiond.resources.estimate import Prediction

from .engines import GIB, START_S, FakeEngine, bench

pytestmark = pytest.mark.looptime
AGE_S = 3600.0
HELD = Prediction(fixed_bytes=2 * GIB)


def found(b, model, folder="/models/a", **spec):
    """An engine of an earlier daemon."""
    key = EngineKey(model, ModelSpec(source="/models/" + model, **spec).digest())
    engine = FakeEngine(key, Path(folder))
    b.reconciler.executor.adopt(engine, HELD, time.time() - AGE_S)
    return engine


async def test_a_wanted_engine_serves_without_fetch_or_start():
    async with bench() as b:
        engine = found(b, "a")
        await b.settled(b.submit(a={}))
        assert b.reconciler.router.table.pools["a"].endpoints == (engine.endpoint,)
        assert (engine.calls, b.engines, b.fetched) == (["start"], [], [])
        record = b.reconciler.executor.engines[engine.key]
        assert (record.state, record.reason) == (EngineState.READY, "adopted")
        assert time.time() - record.since_wall == pytest.approx(AGE_S, abs=5)
        assert asyncio.get_running_loop().time() - record.since == pytest.approx(AGE_S, abs=START_S)
        assert b.realised == [1]


async def test_an_unknown_engine_is_stopped_and_never_asked():
    async with bench() as b:
        engine = found(b, "a", max_num_seqs=3)
        await b.settled(b.submit(a={}))
        assert engine.calls == ["stop"]
        assert [running.key for running in b.engines] == [b.engine("a").key]


async def test_an_engine_that_does_not_answer_is_started_afresh_at_once():
    async with bench() as b:
        engine = found(b, "a", folder="/models/broken")
        report = await b.settled(b.submit(a={}))
        assert report.is_realised
        assert b.engine("a") is not engine
        assert asyncio.get_running_loop().time() == pytest.approx(START_S + 1 + START_S, abs=0.5)


async def test_an_adopted_engine_that_crashes_is_started_again():
    async with bench() as b:
        engine = found(b, "a")
        await b.settled(b.submit(a={}))
        engine.crash()
        await asyncio.sleep(60)
        assert b.engine("a") is b.engines[0]


async def test_an_ending_daemon_leaves_its_engines():
    async with bench() as b:
        await b.settled(b.submit(a={}, b={}))
        assert await b.reconciler.executor.leave_all() == 2
        assert [engine.calls for engine in b.engines] == [["start", "leave"]] * 2


async def test_a_lazy_engine_is_not_idle_since_before_anybody_could_ask_for_it():
    async with bench() as b:
        engine = found(b, "a")
        await b.settled(b.submit(a={"load": "lazy", "idle_unload": 600}))
        await asyncio.sleep(500)
        assert b.reconciler.router.table.pools["a"].endpoints == (engine.endpoint,)
        await asyncio.sleep(200)
        assert engine.calls == ["start", "stop"]
