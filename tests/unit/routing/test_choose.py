import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axiond.engine.engine import Endpoint
from axiond.errors import RequestError
from axiond.manifest.routes import Match
from axiond.manifest.spec import Manifest, ModelSpec, Route, Weighted
from axiond.reconcile.state import EngineKey
from axiond.routing.choose import Load, candidates, engine_name, pick
from axiond.routing.rules import Rules
from axiond.routing.table import Pool, RouteTable

SPEC = ModelSpec(source="/m", lora={"poet": "/poet"})


def pool(model: str, count: int = 1) -> Pool:
    keys = [EngineKey(model, "d", replica) for replica in range(count)]
    return Pool(model, SPEC, tuple(Endpoint(key, f"engine-{model}", adapters=("poet",)) for key in keys))


def route(name: str, *shares: tuple[str, float], fallback: tuple[str, ...] = ()) -> Route:
    return Route(name=name, models=tuple(Weighted(model=model, weight=weight) for model, weight in shares), fallback=fallback)


ROUTES = (
    route("split", ("a", 3), ("b", 1), fallback=("c", "a")),
    route("nothing-first", ("a", 0), ("b", 1)),
    route("gone", ("removed", 1), fallback=("c",)),
    route("all-gone", ("removed", 1)),
)
TABLE = RouteTable(
    generation=1,
    pools={model: pool(model) for model in "abc"},
    names={"a": "a", "b": "b", "c": "c", "alias": "a", "poet": "b", "dangling": "removed"},
    routes={route.name: route for route in ROUTES},
)


@pytest.mark.parametrize(
    ("requested", "draw", "models"),
    [
        pytest.param("a", 0.0, ("a",), id="exact"),
        pytest.param("alias", 0.0, ("a",), id="alias"),
        pytest.param("poet", 0.0, ("b",), id="adapter"),
        pytest.param("split", 0.0, ("a", "c"), id="first-share"),
        pytest.param("split", 0.7499, ("a", "c"), id="first-share-end"),
        pytest.param("split", 0.75, ("b", "c", "a"), id="second-share"),
        pytest.param("nothing-first", 0.0, ("b",), id="weight-0-is-never-drawn"),
        pytest.param("gone", 0.5, ("c",), id="fallback-of-a-removed-model"),
    ],
)
def test_a_name_leads_to_models_in_order(requested: str, draw: float, models: tuple[str, ...]) -> None:
    assert candidates(TABLE, requested, draw) == models


@given(st.floats(0, 1, exclude_max=True), st.lists(st.floats(0, 1e6), min_size=1, max_size=5).filter(any))
def test_any_draw_chooses_a_model_with_weight(draw: float, weights: list[float]) -> None:
    shares = [(str(index), weight) for index, weight in enumerate(weights)]
    table = RouteTable(generation=1, pools={name: pool(name) for name, _ in shares}, routes={"r": route("r", *shares)})
    assert dict(shares)[candidates(table, "r", draw)[0]] > 0


@pytest.mark.parametrize("requested", ["all-gone", "dangling", "x" * 100_000])
def test_an_unknown_name_is_404(requested: str) -> None:
    with pytest.raises(RequestError) as caught:
        candidates(TABLE, requested, 0.0)
    assert (caught.value.status, caught.value.code, caught.value.param) == (404, "model_not_found", "model")
    assert len(caught.value.message) < 400


def test_an_unknown_name_is_told_the_nearest_among_many_quickly() -> None:
    names = {f"family-{index}/model-{index * 7}": "a" for index in range(10_000)}
    table = RouteTable(generation=1, pools=TABLE.pools, names=names)
    started = time.perf_counter()
    with pytest.raises(RequestError, match="`family-1234/model-8638`"):
        candidates(table, "family-1234/model-863", 0.0)
    assert time.perf_counter() - started < 0.5


def test_only_names_that_requests_may_use_are_told() -> None:
    """Not the name of a route with conditions, but the names that it asks for."""
    when = Match(model=("assistant",), language=("es",))
    manifest = Manifest(models={"qx": SPEC}, routes=(Route(name="assistence", when=when, models=(Weighted(model="qx"),)),))
    routes = {route.name: route for route in manifest.routes}
    for rules, told in ((None, "GET /v1/models"), (Rules.of(manifest), "Did you mean `assistant`[?]")):
        with pytest.raises(RequestError, match=told) as caught:
            candidates(RouteTable(1, {"qx": pool("qx")}, {"qx": "qx"}, routes, rules=rules), "assistence", 0.0)
        assert caught.value.message.count("assistence") == 1


def test_before_the_first_generation_a_request_may_come_again() -> None:
    with pytest.raises(RequestError) as caught:
        candidates(RouteTable(), "a", 0.0)
    assert (caught.value.status, caught.value.retry_after_s) == (503, 5)


def test_pick_takes_the_engine_with_the_fewest_requests() -> None:
    three = pool("a", 3)
    first, second, third = three.endpoints
    loads = {first.key: Load(2, {1: 0.0}), second.key: Load(1, {1: 0.0}), third.key: Load(1)}
    assert pick(three, {}) is first
    assert pick(three, loads) is second
    assert pick(three, loads, exclude={second.key}) is third
    assert pick(three, {}, exclude={first.key, second.key, third.key}) is None
    assert pick(three, loads, most=1) is third
    assert pick(three, loads, exclude={third.key}, most=1) is None


@pytest.mark.parametrize(("requested", "sent"), [("a", "engine-a"), ("alias", "engine-a"), ("engine-a", "engine-a"), ("poet", "poet")])
def test_an_engine_is_asked_by_its_own_name_or_by_an_adapters(requested: str, sent: str) -> None:
    assert engine_name(TABLE.pools["a"], TABLE.pools["a"].endpoints[0], requested) == sent
