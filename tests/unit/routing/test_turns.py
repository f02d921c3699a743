"""Requests that wait for their turn: order, places, limits, refusals and estimates, in virtual time."""

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from axiond.engine.engine import Endpoint
from axiond.errors import QueueError, RequestError
from axiond.manifest.spec import ModelSpec, Route, Weighted
from axiond.reconcile.state import EngineKey
from axiond.routing.choose import slots
from axiond.routing.router import DISTRUST_S, Router
from axiond.routing.table import Pool, RouteTable
from axiond.routing.ticket import Asked, Lease, Place, Ticket

pytestmark = pytest.mark.looptime

A, B, OTHER = EngineKey("m", "d"), EngineKey("m", "d", 1), EngineKey("other", "d")


def pool(*keys: EngineKey, model: str = "m", most: int = 1, load: str = "eager", **fields: Any) -> Pool:
    spec = ModelSpec.model_validate({"source": "/m", "max_in_flight": most, "load": load})
    return Pool(model, spec, tuple(Endpoint(key, model) for key in keys), is_lazy=load == "lazy", **fields)


def table(*pools: Pool, routes: tuple[Route, ...] = (), **fields: Any) -> RouteTable:
    return RouteTable(
        1, {each.model: each for each in pools}, {each.model: each.model for each in pools}, {r.name: r for r in routes}, **fields
    )


@dataclass
class Desk:
    """Asks a router, and keeps the books of what it said."""

    router: Router = field(default_factory=lambda: Router(lambda: None))
    leases: dict[str, Lease] = field(default_factory=dict)
    tickets: dict[str, Ticket] = field(default_factory=dict)
    refused: dict[str, RequestError] = field(default_factory=dict)

    def ask(self, name: str, model: str = "m", **fields: Any) -> None:
        """As client *name*[0]."""
        found = self.router.lease(Asked(model, 0.0, name[0], **fields))
        if isinstance(found, Lease):
            self.leases[name] = found
        else:
            self.tickets[name] = found

    async def look(self) -> None:
        """Take what has been granted or refused."""
        for name, ticket in list(self.tickets.items()):
            try:
                lease = await ticket.wait(0)
            except RequestError as error:
                self.refused[name] = error
                del self.tickets[name]
            else:
                if lease is not None:
                    self.leases[name] = lease
                    del self.tickets[name]

    async def end(self, name: str) -> str:
        """End a request; return who got in for it."""
        before = set(self.leases)
        self.router.release(self.leases.pop(name))
        await self.look()
        return " ".join(set(self.leases) - before)

    def leave(self, name: str) -> None:
        self.tickets.pop(name).__exit__(None, None, None)

    def places(self) -> dict[str, int]:
        return {name: ticket.place().position for name, ticket in self.tickets.items()}


@pytest.fixture
async def desk() -> Desk:
    return Desk()


@pytest.mark.parametrize(
    ("fields", "most"),
    [
        pytest.param({}, 128, id="as-vllm-on-a-cpu"),
        pytest.param({"max_num_seqs": 4}, 4, id="as-many-as-in-a-step"),
        pytest.param({"max_num_seqs": 4, "max_in_flight": 6}, 6, id="as-told"),
        pytest.param({"chunked_prefill": {"max_num_batched_tokens": 64}}, 64, id="no-more-than-tokens-in-a-step"),
    ],
)
def test_an_engine_has_so_many_at_a_time(fields: dict[str, Any], most: int) -> None:
    assert slots(ModelSpec.model_validate({"source": "/m", **fields})) == most


async def test_a_full_engine_is_waited_for_in_turns(desk: Desk) -> None:
    desk.router.publish(table(pool(A)))
    for name in ("a0", "a1", "a2", "a3", "b1"):
        desk.ask(name)
    assert (list(desk.leases), desk.places()) == (["a0"], {"a1": 1, "a2": 3, "a3": 4, "b1": 2})
    assert [await desk.end(name) for name in ("a0", "a1", "b1", "a2", "a3")] == ["a1", "b1", "a2", "a3", ""]
    assert (desk.router.in_flight(A), desk.router.queued("m")) == (0, 0)


async def test_a_newcomer_does_not_pass_those_that_wait(desk: Desk) -> None:
    desk.router.publish(table(pool(A)))
    for name in ("a0", "b1"):
        desk.ask(name)
    desk.router.publish(table(pool(A, most=2)))
    await desk.look()
    desk.ask("c2")
    assert (list(desk.leases), desk.places()) == (["a0", "b1"], {"c2": 1})


async def test_who_leaves_lets_the_others_move_up_at_once(desk: Desk) -> None:
    desk.router.publish(table(pool(A)))
    for name in ("a0", "a1", "b1", "c1"):
        desk.ask(name)
    desk.leave("a1")
    assert (desk.places(), desk.router.queued("m")) == ({"b1": 1, "c1": 2}, 2)
    assert await desk.end("a0") == "b1"


async def test_who_leaves_in_the_step_it_was_let_in_lets_the_next_in(desk: Desk) -> None:
    desk.router.publish(table(pool(A)))
    for name in ("a0", "a1", "b1"):
        desk.ask(name)
    desk.router.release(desk.leases.pop("a0"))
    desk.leave("a1")
    await desk.look()
    assert (list(desk.leases), desk.router.in_flight(A)) == (["b1"], 1)


async def test_replicas_fill_evenly_and_then_the_queue(desk: Desk) -> None:
    desk.router.publish(table(pool(A, B, most=2)))
    for number in range(5):
        desk.ask(f"a{number}")
    assert (desk.router.in_flight(A), desk.router.in_flight(B), desk.places()) == (2, 2, {"a4": 1})


async def test_what_is_no_work_for_the_scheduler_needs_no_turn(desk: Desk) -> None:
    desk.router.publish(table(pool(A)))
    for name in ("a0", "a1"):
        desk.ask(name)
    desk.ask("t", is_light=True)
    assert (set(desk.leases), desk.router.in_flight(A)) == ({"a0", "t"}, 2)
    assert await desk.end("t") == ""
    assert await desk.end("a0") == "a1"


async def test_a_retry_needs_no_turn(desk: Desk) -> None:
    desk.router.publish(table(pool(A, B)))
    for name in ("a0", "a1", "b2"):
        desk.ask(name)
    with desk.router.lease(Asked("m", 0.0), failed=[A]) as lease:
        assert isinstance(lease, Lease)
        assert (lease.endpoint.key, desk.router.in_flight(B)) == (B, 2)
    await desk.look()
    assert desk.places() == {"b2": 1}


async def test_a_failed_engine_gets_no_other_for_a_moment(desk: Desk) -> None:
    """Or a dead one would eat the whole queue before the table says that it is dead."""
    desk.router.publish(table(pool(A)))
    for name in ("a0", "a1", "a2"):
        desk.ask(name)
    desk.router.distrust(A)
    assert await desk.end("a0") == ""
    await asyncio.sleep(DISTRUST_S + 0.01)
    await desk.look()
    assert list(desk.leases) == ["a1"]


async def test_those_that_waited_for_a_load_are_let_in_by_turns(desk: Desk) -> None:
    desk.router.publish(table(pool(is_coming=True)))
    for name in ("a0", "a1", "a2", "b0", "c0"):
        desk.ask(name)
    desk.router.publish(table(pool(A, most=3)))
    await desk.look()
    assert (set(desk.leases), desk.places()) == ({"a0", "b0", "c0"}, {"a1": 1, "a2": 2})


async def test_turns_survive_new_tables(desk: Desk) -> None:
    desk.router.publish(table(pool(A)))
    for name in ("a0", "a1", "a2", "b1", "b2", "c1"):
        desk.ask(name)
    before = desk.places()
    desk.router.publish(table(pool(A), max_queue=1))
    assert desk.places() == before
    desk.router.publish(table(pool(is_coming=True)))
    assert desk.places() == before


async def test_who_waits_follows_its_name_to_another_model(desk: Desk) -> None:
    desk.router.publish(table(pool(is_coming=True), pool(OTHER, model="other")))
    desk.ask("a0")
    moved = replace(desk.router.table, names={"m": "other", "other": "other"})
    desk.router.publish(moved)
    await desk.look()
    assert (desk.leases["a0"].endpoint.key, desk.router.queued("m")) == (OTHER, 0)


async def test_who_waits_is_told_when_its_model_is_gone(desk: Desk) -> None:
    desk.router.publish(table(pool(A), pool(OTHER, model="other")))
    for name in ("a0", "a1"):
        desk.ask(name)
    desk.router.publish(table(pool(OTHER, model="other")))
    await desk.look()
    assert desk.refused["a1"].code == "model_not_found"


async def test_a_route_waits_for_whichever_model_is_free_first(desk: Desk) -> None:
    route = Route(name="r", models=(Weighted(model="m"),), fallback=("other",))
    desk.router.publish(table(pool(is_coming=True), pool(OTHER, model="other"), routes=(route,)))
    for name in ("a1", "a2"):
        desk.ask(name, "r")
    assert (desk.places(), desk.router.queued("m"), desk.router.queued("other")) == ({"a2": 1}, 1, 1)
    desk.ask("b0", "other")
    assert await desk.end("a1") == "a2"
    assert (desk.leases["a2"].pool.model, desk.router.queued("m"), desk.router.queued("other")) == ("other", 0, 1)


async def test_a_full_model_wakes_no_other(desk: Desk) -> None:
    route = Route(name="r", models=(Weighted(model="m"),), fallback=("other",))
    desk.router.publish(table(pool(A), pool(model="other", load="lazy"), routes=(route,)))
    desk.ask("a0", "r")
    desk.ask("a1", "r")
    assert (desk.router.queued("other"), desk.router.demand()["other"].oldest_s) == (0, None)


async def test_a_full_queue_refuses_and_says_when_to_come_again(desk: Desk) -> None:
    desk.router.publish(table(pool(A), max_queue=2))
    desk.ask("a0")
    await asyncio.sleep(4)
    await desk.end("a0")
    for name in ("a1", "a2", "a3"):
        desk.ask(name)
    await asyncio.sleep(1)
    with pytest.raises(QueueError, match="2 requests already wait") as caught:
        desk.ask("a4")
    error = caught.value
    assert (error.status, error.reason, error.position, error.retry_after_s) == (429, "full", 3, 11)
    assert error.estimate_s == pytest.approx(11)


async def test_no_client_can_fill_the_queue_for_all(desk: Desk) -> None:
    desk.router.publish(table(pool(A), max_queue=3))
    for name in ("a0", "a1", "a2", "a3", "b1"):
        desk.ask(name)
    await desk.look()
    assert (desk.places(), desk.refused["a3"].status) == ({"a1": 1, "b1": 2, "a2": 3}, 429)
    desk.ask("c1")
    await desk.look()
    assert desk.places() == {"a1": 1, "b1": 2, "c1": 3}
    for client in "abcd":
        with pytest.raises(QueueError):
            desk.ask(client)
    assert desk.places() == {"a1": 1, "b1": 2, "c1": 3}


@pytest.mark.parametrize(
    ("patience_s", "code"),
    [
        pytest.param(7.0, "deadline_unreachable", id="too-short"),
        pytest.param(9.0, None, id="long-enough"),
        pytest.param(None, None, id="none"),
    ],
)
async def test_a_deadline_that_cannot_be_met_is_refused_at_once(desk: Desk, patience_s: float | None, code: str | None) -> None:
    desk.router.publish(table(pool(A)))
    desk.ask("a0")
    await asyncio.sleep(4)
    await desk.end("a0")
    for name in ("a1", "a2"):
        desk.ask(name)
    if code is None:
        desk.ask("b1", patience_s=patience_s)
        assert desk.tickets["b1"].place() == Place(2, pytest.approx(8))
    else:
        with pytest.raises(QueueError) as caught:
            desk.ask("b1", patience_s=patience_s)
        assert (caught.value.status, caught.value.code, caught.value.position) == (504, code, 2)
        assert desk.router.queued("m") == 1


async def test_nothing_is_refused_for_what_is_not_known(desk: Desk) -> None:
    desk.router.publish(table(pool(A)))
    for name in ("a0", "a1"):
        desk.ask(name, patience_s=0.001)
    assert desk.tickets["a1"].place() == Place(1, None)
    assert desk.router.outlook_s("m") is None


@pytest.mark.parametrize(
    ("timeout_s", "patience_s", "keys", "status", "code", "told"),
    [
        pytest.param(3.0, None, (), 503, "queue_timeout", "not ready within 3 s: it loads", id="load"),
        pytest.param(3.0, 9.0, (A,), 503, "queue_timeout", "had no room within 3 s", id="room"),
        pytest.param(3.0, 2.0, (A,), 504, "deadline_exceeded", "X-Request-Timeout has passed", id="deadline"),
    ],
)
async def test_the_time_that_is_over_first_is_told(
    desk: Desk, timeout_s: float, patience_s: float | None, keys: tuple[EngineKey, ...], status: int, code: str, told: str
) -> None:
    desk.router.publish(table(pool(*keys, is_coming=True, reason="it loads", retry_after_s=9), queue_timeout_s=timeout_s))
    for name in ("a0", "a1"):
        desk.ask(name, patience_s=patience_s)
    ticket = desk.tickets["a1"]
    assert await ticket.wait(ticket.most_s) is None
    assert asyncio.get_running_loop().time() == pytest.approx(patience_s if status == 504 else timeout_s, abs=0.01)
    error = ticket.late()
    assert isinstance(error, QueueError)
    assert (error.status, error.code, error.position, error.retry_after_s) == (status, code, 2 - len(keys), 9)
    assert told in error.message


async def test_a_load_is_counted_down_and_then_not_known(desk: Desk) -> None:
    desk.router.publish(table(pool(is_coming=True, ready_in_s=20.0)))
    desk.ask("a0")
    assert desk.tickets["a0"].place().estimate_s == 20
    await asyncio.sleep(15)
    assert desk.tickets["a0"].place().estimate_s == pytest.approx(5)
    await asyncio.sleep(6)
    assert desk.tickets["a0"].place().estimate_s is None


async def test_light_requests_teach_nothing(desk: Desk) -> None:
    desk.router.publish(table(pool(A)))
    desk.ask("t", is_light=True)
    await asyncio.sleep(5)
    await desk.end("t")
    for name in ("a0", "a1"):
        desk.ask(name)
    assert desk.tickets["a1"].place().estimate_s is None


POOLS = {
    "none": pool(),
    "coming": pool(is_coming=True),
    "lazy": pool(load="lazy"),
    "one": pool(A),
    "two": pool(A, B, most=2),
    "broken": pool(reason="it broke"),
}
STEPS = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from("abc")),
    st.tuples(st.just("end"), st.integers(0, 20)),
    st.tuples(st.just("leave"), st.integers(0, 20)),
    st.tuples(st.just("publish"), st.sampled_from(list(POOLS))),
    st.tuples(st.just("look"), st.none()),
)


class Books(Desk):
    """Counts what became of every request."""

    asked = ended = turned_away = 0

    async def do(self, step: str, what: Any) -> None:
        if step == "ask":
            self.asked += 1
            try:
                self.ask(f"{what}{self.asked}")
            except RequestError:
                self.turned_away += 1
        elif step == "publish":
            self.router.publish(table(POOLS[what], max_queue=4))
        elif step == "look":
            await self.look()
        elif names := list(self.leases if step == "end" else self.tickets):
            self.ended += 1
            name = names[what % len(names)]
            if step == "leave":
                self.leave(name)
            else:
                self.router.release(self.leases.pop(name))

    def balance(self) -> int:
        return len(self.leases) + len(self.tickets) + len(self.refused) + self.ended + self.turned_away


@settings(max_examples=200, deadline=None)
@given(st.lists(STEPS, max_size=60))
def test_every_request_ends_once_and_every_count_comes_back(steps: list[tuple[str, Any]]) -> None:
    """Granted, refused, gone or still waiting: never two of them, and never lost; no more wait and run than may."""

    async def run() -> None:
        books = Books()
        router = books.router
        router.publish(table(POOLS["coming"], max_queue=4))
        for step, what in steps:
            await books.do(step, what)
            assert router.queued("m") <= 4
            assert all(router.in_flight(key) <= 2 for key in (A, B))
        await books.look()
        assert (books.balance(), sum(map(router.in_flight, (A, B)))) == (books.asked, len(books.leases))
        assert sorted(books.places().values()) == list(range(1, len(books.tickets) + 1))
        for name in list(books.tickets):
            books.leave(name)
        for name in list(books.leases):
            await books.end(name)
        assert (router.queued("m"), *map(router.in_flight, (A, B))) == (0, 0, 0)

    asyncio.run(run())


async def test_new_tables_keep_the_order_of_requests_that_also_wait_elsewhere(desk: Desk) -> None:
    """A model that is loading changes the table again and again; those that would take its fallback do not overtake there."""
    route = Route(name="r", models=(Weighted(model="m"),), fallback=("other",))
    loading = table(pool(is_coming=True), pool(OTHER, model="other"), routes=(route,))
    desk.router.publish(loading)
    for name, model in (("a", "other"), ("b", "r"), ("c", "other"), ("d", "r")):
        desk.ask(name, model)
    desk.router.publish(loading)
    assert await desk.end("a") == "b"
    desk.router.publish(loading)
    assert await desk.end("b") == "c"


async def test_a_request_that_was_refused_is_no_demand_for_ever(desk: Desk) -> None:
    desk.router.publish(table(pool(load="lazy", reason="does not fit"), queue_timeout_s=60))
    for _ in range(2):
        with pytest.raises(RequestError):
            desk.ask("a")
        assert desk.router.demand()["m"].oldest_s == asyncio.get_running_loop().time()
        await asyncio.sleep(60)
        assert desk.router.demand()["m"].oldest_s is None
