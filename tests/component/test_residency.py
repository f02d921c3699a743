"""Lazy models that share the memory of one, with engines in memory and in virtual time."""

import asyncio
from dataclasses import replace

import pytest

from axiond.errors import RequestError
from axiond.manifest.spec import ModelSpec
from axiond.reconcile.state import EngineState
from axiond.report import ConditionType
from axiond.resources.checkpoint import Checkpoint
from axiond.resources.estimate import predict
from axiond.resources.measured import Measured
from tests.fakes.asking import lease

from .engines import GIB, START_S, STOP_S, bench

pytestmark = pytest.mark.looptime
LAZY = {"load": "lazy", "min_resident": 5.0}
ONE = int(1.5 * predict(ModelSpec(source="/m"), Checkpoint(stored_bytes=GIB)).peak_bytes)


def now():
    return asyncio.get_running_loop().time()


def measure(b, load_s=START_S):
    """As if every model had been loaded before."""
    for model in b.reconciler.desired.target.models.values():
        b.reconciler.memory.measured.put(model.digest, Measured(load_s=load_s))


async def use(b, model, for_s=1.0):
    """One request; returns when it was let in."""
    with await lease(b.reconciler.router, model):
        began = now()
        await asyncio.sleep(for_s)
    return began


def states(b):
    return {key.model: record.state for key, record in b.reconciler.executor.engines.items()}


async def test_an_idle_model_makes_room_and_nothing_is_wrong_then():
    async with bench(ONE) as b:
        await b.settled(b.submit(a=LAZY, b=LAZY))
        await use(b, "a")
        await asyncio.sleep(10)
        before = now()
        assert await use(b, "b") == pytest.approx(before + 1 + STOP_S + START_S, abs=0.1)
        assert states(b) == {"b": EngineState.READY}
        assert b.reconciler.is_settled
        assert b.condition(ConditionType.DEGRADED).status == "False"
        assert b.condition(ConditionType.READY).status == "True"


async def test_a_running_request_is_never_cut_off_and_the_queue_is_served_together():
    """The model in use is closed when the waiting one has lost patience, 10 s as its load took; it is drained, however long that takes."""
    async with bench(ONE) as b:
        await b.settled(b.submit(a=LAZY, b=LAZY))
        measure(b)
        await use(b, "b")
        await asyncio.sleep(10)
        long = asyncio.create_task(use(b, "a", for_s=90.0))
        await asyncio.sleep(30)
        asked = now()
        waiting = [asyncio.create_task(use(b, "b")) for _ in range(3)]
        await asyncio.sleep(5)
        before = now()
        assert await use(b, "a") == pytest.approx(before, abs=0.1)
        await asyncio.sleep(10)
        after = asyncio.create_task(use(b, "a"))
        await asyncio.sleep(1)
        assert states(b) == {"a": EngineState.DRAINING}
        assert not after.done()
        await long
        began = {round(await task, 1) for task in waiting}
        assert len(began) == 1
        assert began.pop() > asked + 60
        assert await after > asked + 70
        assert [engine.key.model for engine in b.engines] == ["b", "a", "b", "a"]


async def test_an_idle_model_is_unloaded_in_time_and_loads_again():
    async with bench() as b:
        await b.settled(b.submit(a=LAZY | {"idle_unload": 60}))
        await use(b, "a")
        await asyncio.sleep(59)
        assert states(b) == {"a": EngineState.READY}
        await asyncio.sleep(1 + STOP_S + 0.1)
        assert states(b) == {}
        assert b.reconciler.router.table.pools["a"].reason == ""
        await use(b, "a")
        assert states(b) == {"a": EngineState.READY}


async def test_what_is_pinned_is_in_the_way_and_requests_are_told_so():
    async with bench(ONE) as b:
        await b.settled(b.submit(a=LAZY | {"pin": True}, b=LAZY))
        await use(b, "a")
        with pytest.raises(RequestError, match=r"does not fit: .* beside a \(pinned\)") as caught:
            await use(b, "b")
        assert caught.value.status == 503
        assert states(b) == {"a": EngineState.READY}


async def test_a_lazy_model_that_changes_while_it_is_unloaded_does_not_load():
    async with bench() as b:
        await b.settled(b.submit(a=LAZY))
        report = await b.settled(b.submit(a=LAZY | {"max_num_seqs": 4}))
        assert report.is_realised
        assert b.engines == []


async def test_a_reload_ends_while_models_come_and_go():
    async with bench(ONE) as b:
        await b.settled(b.submit(a=LAZY, b=LAZY))
        loading = asyncio.create_task(use(b, "a"))
        await asyncio.sleep(3)
        before = now()
        assert (await b.settled(b.submit(a=LAZY | {"aliases": ["x"]}, b=LAZY))).is_realised
        assert now() == pytest.approx(before, abs=0.1)
        await loading


async def test_requests_know_when_a_model_will_be_ready():
    async with bench(ONE) as b:
        await b.settled(b.submit(a=LAZY))
        assert b.reconciler.router.outlook_s("a") is None
        measure(b, load_s=8.0)
        loading = asyncio.create_task(use(b, "a"))
        await asyncio.sleep(4)
        assert b.reconciler.router.outlook_s("a") == pytest.approx(5.0, abs=0.1)  # the source took 1 s
        await loading
        assert b.reconciler.router.outlook_s("a") == 0


async def test_a_lazy_model_that_crashed_is_started_again_for_the_next_request_only():
    async with bench(ONE) as b:
        await b.settled(b.submit(a=LAZY))
        await use(b, "a")
        b.engine("a").crash()
        await asyncio.sleep(60)
        assert states(b) == {"a": EngineState.BACKOFF}
        await use(b, "a")
        assert states(b) == {"a": EngineState.READY}


async def test_an_engine_that_has_outgrown_its_ceiling_is_replaced_by_its_like_without_losing_a_request():
    async with bench() as b:
        await b.settled(b.submit(a={"memory_ceiling": "1GiB", "drain_grace_s": 1}))
        old = b.engine("a")
        record = b.reconciler.executor.engines[old.key]
        await asyncio.sleep(200)
        long = asyncio.create_task(use(b, "a", for_s=100.0))
        await asyncio.sleep(0)
        record.used_bytes = 2 * GIB
        b.reconciler.look_at_memory()
        await asyncio.sleep(1)
        assert b.engine("a") is old
        await asyncio.sleep(START_S)
        assert b.engine("a").key == replace(old.key, turn=1)
        await asyncio.sleep(50)
        assert record.state is EngineState.DRAINING
        await long
        await asyncio.sleep(STOP_S + 0.1)
        assert list(b.reconciler.executor.engines) == [replace(old.key, turn=1)]
        assert b.condition(ConditionType.DEGRADED).status == "False"


async def test_where_two_have_no_room_the_one_that_has_outgrown_its_ceiling_stops_first():
    async with bench(ONE) as b:
        await b.settled(b.submit(a={"memory_ceiling": "1GiB"}))
        old = b.engine("a")
        await asyncio.sleep(200)
        b.reconciler.executor.engines[old.key].used_bytes = ONE - 1
        b.reconciler.look_at_memory()
        await asyncio.sleep(STOP_S / 2)
        waiting = asyncio.create_task(use(b, "a"))
        await waiting
        assert len(b.engines) == 2
        assert old.calls == ["start", "stop"]
