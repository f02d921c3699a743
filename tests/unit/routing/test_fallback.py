"""Which of the models that were decided on answers a request, and why not the one before."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from axiond.engine.engine import Endpoint
from axiond.errors import QueueError, RequestError
from axiond.manifest.routes import Failure
from axiond.manifest.spec import ModelSpec
from axiond.reconcile.state import EngineKey
from axiond.routing.decision import ANY_FAILURE
from axiond.routing.router import Router
from axiond.routing.table import Pool, RouteTable
from axiond.routing.ticket import Asked, Lease, Ticket

pytestmark = pytest.mark.looptime

NAMES = ("a", "b", "c")
NONE: frozenset[Failure] = frozenset()
ERROR: frozenset[Failure] = frozenset({"error"})
OVERLOAD: frozenset[Failure] = frozenset({"overload"})


def pool(model: str, state: str) -> Pool:
    lazy = state in ("cold", "cold-broken")
    spec = ModelSpec.model_validate({"source": "/m", "max_in_flight": 1, "load": "lazy" if lazy else "eager"})
    endpoints = (Endpoint(EngineKey(model, "d"), model),) if state in ("free", "busy", "full") else ()
    coming = {"coming": 5.0, "slow": 50.0}
    return Pool(
        model, spec, endpoints, is_coming=state in coming, is_lazy=lazy, reason="it broke" if "broken" in state else "",
        ready_in_s=coming.get(state),
    )  # fmt: skip


def site(**states: str) -> Router:
    """A router whose models are so: busy ones have room in their queues, full ones none."""
    router = Router(lambda: None)
    pools = {model: pool(model, state) for model, state in states.items()}
    router.publish(RouteTable(1, pools, {model: model for model in pools}, max_queue=1))
    for model, state in states.items():
        for _ in range({"busy": 1, "full": 2}.get(state, 0)):
            router.lease(asked(model, client="before"))
    return router


def asked(*models: str, on: frozenset[Failure] = ANY_FAILURE, **fields: Any) -> Asked:
    return Asked(models[0], 0.0, models=models, fallback_on=on, **{"client": "me", **fields})


@pytest.mark.parametrize(
    ("states", "on", "outcome", "passed"),
    [
        pytest.param(("free", "free"), ANY_FAILURE, "a", {}, id="the-first-answers"),
        pytest.param(("busy", "free"), ANY_FAILURE, ("a",), {}, id="a-busy-one-is-waited-for"),
        pytest.param(("full", "free"), ANY_FAILURE, "b", {"a": "overload"}, id="a-full-one-is-passed"),
        pytest.param(("full", "free"), ERROR, 429, {}, id="a-full-one-refuses-if-not-to-be-passed"),
        pytest.param(("full", "busy"), ANY_FAILURE, ("b",), {"a": "overload"}, id="the-second-is-waited-for"),
        pytest.param(("full", "full", "free"), OVERLOAD, "c", {"a": "overload", "b": "overload"}, id="two-are-full"),
        pytest.param(("full", "full"), ANY_FAILURE, 429, {"a": "overload", "b": "overload"}, id="all-are-full"),
        pytest.param(("broken", "free"), ANY_FAILURE, "b", {"a": "error"}, id="a-broken-one-is-passed"),
        pytest.param(("broken", "free"), OVERLOAD, 503, {}, id="a-broken-one-refuses-if-not-to-be-passed"),
        pytest.param(("broken", "cold"), ANY_FAILURE, ("b",), {"a": "error", "b": "error"}, id="the-second-is-loaded"),
        pytest.param(("broken", "full"), ERROR, 503, {"a": "error"}, id="no-way-on"),
        pytest.param(("coming", "free"), ANY_FAILURE, "b", {"a": "error"}, id="one-that-is-coming-is-not-waited-for"),
        pytest.param(("coming", "free"), NONE, ("a",), {}, id="but-is-if-not-to-be-passed"),
        pytest.param(("coming", "busy", "free"), ANY_FAILURE, ("a", "b"), {"a": "error"}, id="whichever-is-first"),
        pytest.param(("coming", "cold"), ANY_FAILURE, ("a",), {"a": "error", "b": "error"}, id="nothing-is-loaded-for-nothing"),
        pytest.param(("coming", "full", "free"), ANY_FAILURE, "c", {"a": "error", "b": "overload"}, id="not-there-and-full"),
        pytest.param(("cold", "free"), ANY_FAILURE, "b", {"a": "error"}, id="a-cold-one-is-woken-and-passed"),
        pytest.param(("cold", "free"), OVERLOAD, ("a",), {}, id="a-cold-one-is-waited-for"),
        pytest.param(("cold-broken", "free"), ANY_FAILURE, "b", {"a": "error"}, id="a-cold-one-that-does-not-fit"),
    ],
)  # fmt: skip
async def test_who_answers(
    states: tuple[str, ...], on: frozenset[Failure], outcome: str | tuple[str, ...] | int, passed: dict[str, str]
) -> None:
    """A name: leased at once; names: waited for; a number: refused with that status."""
    models = NAMES[: len(states)]
    router, request = site(**dict(zip(models, states, strict=True))), asked(*models, on=on)
    if isinstance(outcome, int):
        with pytest.raises(RequestError) as caught:
            router.lease(request)
        assert (caught.value.status, request.passed) == (outcome, passed)
        assert len(passed) < 2 or all(f"`{model}`" in caught.value.message for model in models)
    else:
        found = router.lease(request)
        assert (found.pool.model if isinstance(found, Lease) else found.models, request.passed) == (outcome, passed)


@pytest.mark.parametrize(("state", "outcome"), [("cold", ("a",)), ("coming", ("a",)), ("broken", "b"), ("full", "b"), ("free", "a")])
async def test_a_patient_request_waits_for_a_model_on_its_way(state: str, outcome: str | tuple[str, ...]) -> None:
    """How long that takes was weighed when the models were scored."""
    found = site(a=state, b="free").lease(asked("a", "b", is_patient=True))
    assert (found.pool.model if isinstance(found, Lease) else found.models) == outcome


@pytest.mark.parametrize(
    ("states", "woken"),
    [
        pytest.param(("cold", "free"), {"a"}, id="the-first-though-another-answers"),
        pytest.param(("broken", "cold"), {"b"}, id="the-second-if-the-first-cannot"),
        pytest.param(("cold", "cold"), {"a"}, id="one-only"),
        pytest.param(("coming", "cold"), set(), id="none-while-another-is-coming"),
        pytest.param(("busy", "cold"), set(), id="none-for-a-busy-one"),
        pytest.param(("full", "cold"), {"b"}, id="the-second-for-an-overload"),
    ],
)
async def test_which_models_are_woken(states: tuple[str, ...], woken: set[str]) -> None:
    models = NAMES[: len(states)]
    router = site(**dict(zip(models, states, strict=True)))
    router.lease(asked(*models))
    demand = router.demand()
    assert {model for model, state in zip(models, states, strict=True) if state == "cold" and demand[model].oldest_s is not None} == woken


@pytest.mark.parametrize(
    ("state", "limits", "told"),
    [
        pytest.param("slow", {"max_wait_s": 40.0}, "lets it wait 40 s", id="longer-than-the-route-lets"),
        pytest.param("slow", {"patience_s": 40.0}, "leaves 40 s", id="longer-than-the-client-waits"),
        pytest.param("slow", {"max_wait_s": 60.0, "patience_s": 60.0}, "", id="in-time"),
        pytest.param("busy", {"max_wait_s": 0.001}, "", id="not-known"),
    ],
)
async def test_a_turn_that_comes_too_late_is_overload(state: str, limits: dict[str, float], told: str) -> None:
    if told:
        with pytest.raises(QueueError, match=told):
            site(a=state).lease(asked("a", **limits))
    request = asked("a", "b", on=OVERLOAD, **limits)
    found = site(a=state, b="free").lease(request)
    assert isinstance(found, Lease) == bool(told)
    assert request.passed == ({"a": "overload"} if told else {})


async def test_who_waits_for_a_busy_model_takes_the_next_when_it_breaks() -> None:
    router = site(a="busy", b="free")
    request = asked("a", "b")
    ticket = router.lease(request)
    assert isinstance(ticket, Ticket)
    router.publish(replace(router.table, pools={**router.table.pools, "a": pool("a", "broken")}))
    lease = await ticket.wait(0)
    assert lease is not None
    assert (lease.pool.model, request.passed) == ("b", {"a": "error"})


async def test_what_was_decided_holds_while_any_of_it_is_there() -> None:
    """Then the name tells, as if the request came now."""
    router = site(a="busy", b="busy", c="free")
    ticket = router.lease(Asked("a", 0.0, models=("b",)))
    assert isinstance(ticket, Ticket)
    pools = router.table.pools
    router.publish(replace(router.table, names={"a": "c", "b": "b", "c": "c"}))
    assert ticket.models == ("b",)
    router.publish(RouteTable(2, {"c": pools["c"]}, {"a": "c", "c": "c"}))
    lease = await ticket.wait(0)
    assert lease is not None
    assert lease.pool.model == "c"


async def test_no_place_is_given_twice_for_one_request() -> None:
    """Its turn in one queue ends its wait in the others."""
    router = site(a="coming", b="busy")
    ticket = router.lease(asked("a", "b"))
    assert isinstance(ticket, Ticket)
    assert (router.queued("a"), router.queued("b")) == (1, 1)
    router.publish(replace(router.table, pools={**router.table.pools, "a": pool("a", "free")}))
    lease = await asyncio.wait_for(ticket.wait(1), 1)
    assert lease is not None
    assert (lease.pool.model, router.queued("a"), router.queued("b")) == ("a", 0, 0)
