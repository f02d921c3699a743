"""The loop and the executor around engines in memory, in virtual time."""

import asyncio
from dataclasses import replace

import pytest

from axiond.errors import ManifestError, Place, Problem
from axiond.reconcile.state import EngineState
from tests.fakes.asking import lease

from .engines import GIB, START_S, bench

pytestmark = pytest.mark.looptime


def source(folder):
    return {"source": f"/models/{folder}"}


async def test_first_manifest_is_fetched_started_published_and_kept():
    async with bench() as b:
        number = b.submit(a={})
        report = await b.settled(number)
        assert report.is_realised
        assert b.fetched == ["/models/a"]
        assert b.reconciler.router.table.generation == 1
        assert b.engine("a").calls == ["start"]
        assert b.realised == [1]


async def test_a_request_that_comes_before_the_engine_waits_for_it():
    async with bench() as b:
        b.submit(a={})
        await asyncio.sleep(0)
        leased = asyncio.create_task(lease(b.reconciler.router, "a"))
        with await leased as held:
            assert held.endpoint.key.model == "a"
        assert asyncio.get_running_loop().time() == pytest.approx(1 + START_S, abs=0.5)


async def test_live_edit_takes_no_time_and_touches_no_engine():
    async with bench() as b:
        await b.settled(b.submit(a={}))
        engine, before = b.engine("a"), asyncio.get_running_loop().time()
        await b.settled(b.submit(a={"aliases": ["b"]}))
        assert asyncio.get_running_loop().time() == before
        assert b.reconciler.router.table.names["b"] == "a"
        assert b.engine("a") is engine
        assert len(b.engines) == 1


async def test_changed_engine_starts_beside_the_old_which_drains_on_its_leases():
    async with bench() as b:
        await b.settled(b.submit(a={}))
        old = b.engine("a")
        running = await lease(b.reconciler.router, "a")
        number = b.submit(a={"max_num_seqs": 2})
        await b.settled(number)
        assert b.engine("a") is not old
        assert "stop" not in old.calls
        with running:
            pass
        await asyncio.sleep(0.1)
        assert "stop" in old.calls


async def test_engine_that_dies_at_start_rolls_back_and_says_why():
    async with bench() as b:
        await b.settled(b.submit(a={}))
        old = b.engine("a")
        report = await b.settled(b.submit(a=source("broken")))
        assert not report.is_realised
        assert report.is_accepted
        assert "exited with code 1" in report.message
        assert b.engine("a") is old
        assert b.reconciler.rejection.tail == ("Traceback", "ValueError: no")
        assert b.condition("RolledBack").status == "True"
        assert sum(engine.folder.name == "broken" for engine in b.engines) == 1
        assert b.realised == [1]


async def test_the_same_bad_manifest_is_tried_again_only_when_asked():
    async with bench() as b:
        await b.settled(b.submit(a={}))
        bad = b.submit(a=source("broken"))
        await b.settled(bad)
        assert b.submit(a=source("broken")) == bad
        await b.settled(b.submit(a=source("broken"), again=True))
        assert sum(engine.folder.name == "broken" for engine in b.engines) == 2


async def test_missing_source_rolls_back():
    async with bench() as b:
        await b.settled(b.submit(a={}))
        report = await b.settled(b.submit(a=source("missing")))
        assert report.message == "a: no such folder"
        assert b.engine("a").folder.name == "a"


async def test_refused_manifest_changes_nothing_and_is_said_until_it_is_mended():
    async with bench() as b:
        await b.settled(b.submit(a={}))
        table = b.reconciler.router.table
        error = ManifestError([Problem(Place("axiond.toml", 3, 1), "cut")])
        number = b.reconciler.refuse(error)
        report = await b.settled(number)
        assert (report.is_accepted, report.is_realised, report.message) == (False, False, "axiond.toml:3:1: cut")
        assert b.reconciler.router.table == table
        assert b.condition("Accepted").status == "False"
        assert b.condition("Degraded").status == "True"
        await b.settled(b.submit(a={}))
        assert b.condition("Accepted").status == "True"
        assert b.condition("Degraded").status == "False"
        assert len(b.engines) == 1


async def test_crash_restarts_with_backoff_and_tells_requests_when():
    async with bench() as b:
        await b.settled(b.submit(a={}))
        await asyncio.sleep(100)
        b.engine("a").crash()
        await asyncio.sleep(0.01)
        pool = b.reconciler.router.table.pools["a"]
        assert (pool.endpoints, pool.is_coming, pool.reason) == ((), False, "was killed by SIGKILL")
        assert pool.retry_after_s == 1
        await asyncio.sleep(1.1 + START_S)
        assert b.engine("a").calls == ["start"]
        assert len(b.engines) == 2


async def test_crash_loop_gives_up_until_the_manifest_changes():
    async with bench() as b:
        b.submit(a=source("broken"))
        await asyncio.sleep(600)
        (record,) = b.reconciler.executor.engines.values()
        assert record.state is EngineState.FAILED
        assert len(b.engines) == 5
        assert b.condition("Degraded").message == "a: exited with code 1"
        assert (await b.settled(b.submit(a={}))).is_realised


async def test_change_during_a_change_is_not_lost():
    async with bench() as b:
        await b.settled(b.submit(a={}))
        b.submit(a={"max_num_seqs": 2})
        await asyncio.sleep(START_S / 2)
        report = await b.settled(b.submit(a={"max_num_seqs": 3}))
        assert report.is_realised
        assert b.reconciler.router.table.pools["a"].spec.max_num_seqs == 3
        await asyncio.sleep(10)
        assert len(b.reconciler.executor.engines) == 1


async def test_stop_first_holds_requests_and_serves_them_with_the_new_engine():
    async with bench(budget_bytes=5 * GIB) as b:
        await b.settled(b.submit(a={}))
        number = b.submit(a={"max_num_seqs": 2})
        await asyncio.sleep(1)
        leased = asyncio.create_task(lease(b.reconciler.router, "a"))
        await asyncio.sleep(0)
        assert b.reconciler.router.queued("a") == 1
        with await leased as held:
            assert held.pool.spec.max_num_seqs == 2
        assert (await b.settled(number)).is_realised


async def test_stop_first_that_fails_serves_the_held_requests_with_the_old_spec():
    async with bench(budget_bytes=5 * GIB) as b:
        await b.settled(b.submit(a={}))
        b.submit(a={**source("broken"), "max_num_seqs": 2})
        await asyncio.sleep(2)
        with await lease(b.reconciler.router, "a") as held:
            assert held.pool.spec.max_num_seqs is None
        assert b.condition("RolledBack").status == "True"
        assert [engine.folder.name for engine in b.engines] == ["a", "broken", "a"]


async def test_daemon_field_is_accepted_and_said_to_need_a_restart():
    async with bench() as b:
        await b.settled(b.submit(a={}))
        report = await b.settled(b.submit(a={}, server={"listen": "127.0.0.1:9999"}))
        assert report.is_realised
        assert b.condition("Degraded").message == "a restart of axiond is needed for server.listen"


async def test_lazy_model_loads_at_the_first_request():
    async with bench() as b:
        await b.settled(b.submit(a={"load": "lazy"}))
        assert b.engines == []
        with await lease(b.reconciler.router, "a") as held:
            assert held.endpoint.key.model == "a"


async def test_busy_is_said_around_a_reload_and_only_then():
    async with bench() as b:
        await b.settled(b.submit(a={}))
        b.rounds.clear()
        await b.settled(b.submit(a={"max_num_seqs": 2}))
        busy = [is_busy for _, is_busy, _ in b.rounds]
        assert busy[0]
        assert not busy[-1]
        assert b.rounds[-1][0] == "generation 2, engines ready: 1"


async def test_a_waiter_whose_deadline_passes_hears_that_it_is_not_over():
    async with bench() as b:
        report = await b.reconciler.settled(b.submit(a={}), timeout_s=START_S / 2)
        assert report.message == "still converging"


async def test_shutdown_in_the_middle_of_a_start_stops_the_engine():
    async with bench() as b:
        b.submit(a={})
        await asyncio.sleep(START_S / 2)
    assert b.engines[0].calls == ["start", "stop"]


async def test_followers_hear_state_changes_in_order():
    async with bench() as b, b.events.follow() as arrivals:
        b.submit(a={})
        heard = []
        async for event in arrivals:
            heard.append(event.name)
            if event.name == "engine.changed_state":
                break
        assert heard.index("manifest.was_accepted") < heard.index("source.fetch_progressed") < heard.index("engine.was_started")


async def test_not_up_until_one_model_is_served():
    async with bench() as b:
        b.submit(a=source("broken"))
        await asyncio.sleep(600)
        assert not any(is_up for _, _, is_up in b.rounds)
        assert b.rounds[-1][0] == "generation 1, engines ready: 0; a: exited with code 1"
        await b.settled(b.submit(a=source("broken"), c={}))
        assert b.rounds[-1][1:] == (False, True)


async def test_engine_that_gets_ready_in_the_moment_it_is_stopped_is_stopped():
    async with bench() as b:
        await b.settled(b.submit(a={}))
        b.submit(a={"max_num_seqs": 2})
        await asyncio.sleep(START_S)
        await b.settled(b.submit(a={}))
        await asyncio.sleep(10)
        assert b.engines[1].calls == ["start", "stop"]
        assert len(b.reconciler.executor.engines) == 1


async def test_drained_engine_that_dies_in_the_moment_it_is_stopped_is_no_error():
    async with bench() as b:
        await b.settled(b.submit(a={}))
        old = b.engine("a")
        with await lease(b.reconciler.router, "a"):
            await b.settled(b.submit(a={"max_num_seqs": 2}))
        old.crash()
        await asyncio.sleep(10)
        assert len(b.reconciler.executor.engines) == 1


@pytest.mark.parametrize("where", ["start", "fetch"])
async def test_bug_in_one_engine_or_source_costs_neither_the_daemon_nor_the_others(where, monkeypatch):
    async def raise_it(*_):
        raise ZeroDivisionError("a bug")

    async with bench() as b:
        await b.settled(b.submit(a={}))
        if where == "start":
            monkeypatch.setattr("tests.component.engines.FakeEngine.start", raise_it)
        else:
            b.reconciler.executor._world = replace(b.reconciler.executor._world, fetch=raise_it)
        report = await b.settled(b.submit(a=source("other")))
        assert "ZeroDivisionError" in report.message
        with await lease(b.reconciler.router, "a") as held:
            assert held.pool.spec.source == "/models/a"


async def test_reload_that_is_not_waited_for_does_not_say_that_it_is_realised():
    async with bench() as b:
        await b.settled(b.submit(a={}))
        report = b.reconciler.outcome(b.submit(a={"max_num_seqs": 2}))
        assert (report.is_accepted, report.is_realised, report.message) == (True, False, "accepted, and not in force yet")


async def test_engine_that_once_failed_still_has_its_requests_held_in_a_later_swap():
    async with bench(budget_bytes=5 * GIB) as b:
        await b.settled(b.submit(a={}))
        b.engine("a").crash()
        await asyncio.sleep(START_S + 2)
        b.submit(a={"max_num_seqs": 2})
        await asyncio.sleep(1)
        with await lease(b.reconciler.router, "a") as held:
            assert held.pool.spec.max_num_seqs == 2


async def test_fetch_of_a_model_that_is_gone_from_the_manifest_is_ended():
    async with bench() as b:
        await b.settled(b.submit(a={}))
        b.submit(a={}, b={})
        await asyncio.sleep(0.5)
        (bringing,) = [record.bringing for key, record in b.reconciler.executor.sources.items() if key.source == "/models/b"]
        await b.settled(b.submit(a={}))
        await asyncio.sleep(0)
        assert bringing.cancelled()
        assert [key.source for key in b.reconciler.executor.sources] == ["/models/a"]
