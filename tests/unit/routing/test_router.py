import asyncio
from dataclasses import replace

import pytest

from axiond.engine.engine import Endpoint
from axiond.errors import RequestError
from axiond.manifest.spec import ModelSpec, Route, Weighted
from axiond.reconcile.state import EngineKey
from axiond.routing.router import Router
from axiond.routing.table import Pool, RouteTable
from tests.fakes.asking import lease

OLD, NEW = EngineKey("m", "old"), EngineKey("m", "new")


def table(*keys: EngineKey, is_coming: bool = False, is_lazy: bool = False, max_queue: int = 8, queue_timeout_s: float = 60) -> RouteTable:
    spec = ModelSpec(source="/m", load="lazy" if is_lazy else "eager")
    reason = "" if is_lazy else "it broke"
    pool = Pool("m", spec, tuple(Endpoint(key, "m") for key in keys), is_coming, is_lazy, reason, retry_after_s=7)
    return RouteTable(1, {"m": pool}, {"m": "m"}, max_queue=max_queue, queue_timeout_s=queue_timeout_s)


class Calls:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
def changes() -> Calls:
    return Calls()


@pytest.fixture
def router(changes: Calls) -> Router:
    return Router(changes)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_last_release_of_an_engine_is_announced(router: Router, changes: Calls) -> None:
    router.publish(table(OLD))
    with await lease(router):
        with await lease(router):
            assert router.in_flight(OLD) == 2
        assert (router.in_flight(OLD), changes.count) == (1, 0)
    assert (router.in_flight(OLD), changes.count) == (0, 1)


async def test_a_lease_outlives_the_table_it_was_taken_from(router: Router) -> None:
    router.publish(table(OLD))
    with await lease(router) as had:
        router.publish(table(NEW))
        assert (had.endpoint.key, router.in_flight(OLD)) == (OLD, 1)
        with await lease(router) as later:
            assert later.endpoint.key == NEW


@pytest.mark.parametrize("routed_next", [pytest.param(NEW, id="swap-succeeded"), pytest.param(OLD, id="swap-failed")])
async def test_held_requests_go_in_order_to_whatever_is_routed_next(router: Router, routed_next: EngineKey) -> None:
    router.publish(table(is_coming=True))
    order: list[int] = []

    async def ask(number: int) -> EngineKey:
        with await lease(router) as had:
            order.append(number)
            return had.endpoint.key

    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(ask(number)) for number in range(5)]
        await settle()
        assert router.queued("m") == 5
        router.publish(table(is_coming=True))
        await settle()
        assert router.queued("m") == 5
        router.publish(table(routed_next))
    assert ([task.result() for task in asked], order) == ([routed_next] * 5, [0, 1, 2, 3, 4])
    assert (router.queued("m"), router.in_flight(routed_next)) == (0, 0)


async def test_a_held_request_is_refused_once_nothing_is_coming(router: Router) -> None:
    router.publish(table(is_coming=True))
    waiting = asyncio.create_task(lease(router))
    await settle()
    router.publish(table())
    with pytest.raises(RequestError, match="it broke") as caught:
        await waiting
    assert (caught.value.status, caught.value.code, caught.value.retry_after_s) == (503, "model_unavailable", 7)


async def test_a_full_queue_refuses(router: Router) -> None:
    router.publish(table(is_coming=True, max_queue=1))
    waiting = asyncio.create_task(lease(router))
    await settle()
    with pytest.raises(RequestError) as caught:
        await lease(router)
    assert (caught.value.status, caught.value.code, caught.value.retry_after_s) == (429, "queue_full", 7)
    waiting.cancel()


async def test_waiting_ends_at_its_deadline(router: Router) -> None:
    router.publish(table(is_coming=True, queue_timeout_s=0.01))
    with pytest.raises(RequestError, match=r"not ready within 0\.01 s: it broke") as caught:
        await lease(router)
    assert (caught.value.status, caught.value.code, router.queued("m")) == (503, "queue_timeout", 0)


@pytest.mark.parametrize("is_published_first", [False, True], ids=["while-waiting", "in-the-step-it-was-woken"])
async def test_a_cancelled_waiter_leaves_nothing_behind(router: Router, is_published_first: bool) -> None:
    router.publish(table(is_coming=True))
    waiting = asyncio.create_task(lease(router))
    await settle()
    if is_published_first:
        router.publish(table(OLD))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (router.queued("m"), router.in_flight(OLD)) == (0, 0)


async def test_a_lazy_model_is_asked_for_until_its_requests_have_an_engine(router: Router, changes: Calls) -> None:
    router.publish(table(is_lazy=True))
    waiting = [asyncio.create_task(lease(router)) for _ in range(2)]
    await settle()
    demand = router.demand()["m"]
    assert (demand.queued, demand.oldest_s is not None, changes.count) == (2, True, 1)
    router.publish(table(OLD, is_lazy=True))
    for had in await asyncio.gather(*waiting):
        had.__exit__(None, None, None)
    assert (router.demand()["m"].oldest_s, router.demand()["m"].queued) == (None, 0)


async def test_a_lazy_model_that_broke_is_not_waited_for(router: Router) -> None:
    broken = table(is_lazy=True)
    router.publish(replace(broken, pools={"m": replace(broken.pools["m"], reason="it broke")}))
    with pytest.raises(RequestError, match="it broke"):
        await lease(router)


async def test_a_failed_engine_is_left_out_and_others_are_not_waited_for(router: Router) -> None:
    router.publish(table(OLD, NEW))
    with await lease(router, failed={OLD}) as had:
        assert had.endpoint.key == NEW
    router.publish(replace(table(is_coming=True)))
    with pytest.raises(RequestError) as caught:
        await lease(router, failed={OLD})
    assert caught.value.code == "engine_failed"


async def test_a_fallback_answers_while_the_lazy_model_is_woken(router: Router, changes: Calls) -> None:
    lazy = Pool("lazy", ModelSpec(source="/l", load="lazy"), is_lazy=True)
    ready = Pool("ready", ModelSpec(source="/r"), (Endpoint(NEW, "ready"),))
    route = Route(name="r", models=(Weighted(model="lazy"),), fallback=("ready",))
    router.publish(RouteTable(1, {"lazy": lazy, "ready": ready}, {"lazy": "lazy", "ready": "ready"}, {"r": route}))
    with await lease(router, "r") as had:
        demand = router.demand()["lazy"]
        assert (had.pool.model, demand.queued, demand.oldest_s is not None, changes.count) == ("ready", 0, True, 1)
    router.publish(replace(router.table, pools={"lazy": replace(lazy, endpoints=(Endpoint(NEW, "lazy"),))}))
    assert router.demand()["lazy"].oldest_s is None


async def test_a_copy_counts_in_its_engine_and_keeps_no_model_loaded(router: Router) -> None:
    router.publish(table(OLD))
    used_s = router.demand()["m"].last_used_s
    await asyncio.sleep(0.001)
    copy = router.lease_spare("m")
    assert copy
    assert router.in_flight(OLD) == 1
    router.release(copy)
    assert (router.in_flight(OLD), router.demand()["m"].last_used_s) == (0, used_s)
    with await lease(router):
        assert router.demand()["m"].last_used_s > used_s
