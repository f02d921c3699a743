"""What requests are told while a model has no engine."""

import pytest

from axiond.manifest.spec import Manifest, ModelSpec
from axiond.reconcile.generation import Generation
from axiond.reconcile.state import Demand, EngineKey, EngineState, EngineView, Observed, Published, SourceKey, SourceState, SourceView
from axiond.reconcile.tables import route_table
from axiond.resources.estimate import predict
from axiond.resources.sums import lack_of_memory

from .world import keys_of

GIB = 2**30
M = SourceKey("/m")
READY_SOURCE = {M: SourceView(SourceState.READY, weight_bytes=GIB)}
EXPECTED_BYTES = GIB + predict(ModelSpec(source="/m"), None).expected_bytes


def outlook(*, load="eager", views=(), sources=READY_SOURCE, demand=(), budget_gib=100):
    generation = Generation.of(1, "e", Manifest.model_validate({"models": {"m": {"source": "/m", "load": load}}}))
    (key,) = keys_of(generation.target.models["m"])
    engines = {view.key: view for view in (EngineView(key, since=0, generation=1, **fields) for fields in views)}
    observed = Observed(
        engines, sources, generation.target, Published(1, {"m": ()}), {name: Demand(1, 9.0, 9.0) for name in demand}, int(budget_gib * GIB)
    )
    pool = route_table(generation, Published(1, {"m": ()}), observed, lambda _: None, 10.0, 0).pools["m"]
    return pool.is_coming, pool.reason, pool.retry_after_s


STARTING, BACKOFF, FAILED = EngineState.STARTING, EngineState.BACKOFF, EngineState.FAILED
FETCHING = {M: SourceView(SourceState.FETCHING, "downloading 40 % of 93 MB")}
GONE = {M: SourceView(SourceState.FAILED, "no such folder", retry_at=14.2)}
CASES = {
    "first-start": ({"views": [{"state": STARTING}]}, (True, "engine is starting", 5)),
    "absent": ({}, (True, "engine has not started yet", 5)),
    "fetching": ({"sources": FETCHING}, (True, "fetching the model: downloading 40 % of 93 MB", 5)),
    "crashed": ({"views": [{"state": BACKOFF, "failures": 1, "retry_at": 13.0, "reason": "was killed"}]}, (False, "was killed", 3)),
    "restarting": ({"views": [{"state": STARTING, "failures": 1, "reason": "again"}]}, (False, "again", 60)),
    "given-up": ({"views": [{"state": FAILED, "failures": 5, "reason": "no"}]}, (False, "no", 60)),
    "no-source": ({"sources": GONE}, (False, "no such folder", 4)),
    "no-memory": ({"budget_gib": 2}, (False, lack_of_memory(EXPECTED_BYTES - 2 * GIB, 2 * GIB), 60)),
    "lazy": ({"load": "lazy"}, (False, "", 5)),
    "lazy-demanded": ({"load": "lazy", "demand": ["m"]}, (True, "engine has not started yet", 5)),
    "lazy-crashed": ({"load": "lazy", "views": [{"state": FAILED, "failures": 5, "reason": "no"}]}, (False, "no", 60)),
}


@pytest.mark.parametrize(("situation", "expected"), CASES.values(), ids=CASES)
def test_outlook(situation, expected):
    assert outlook(**situation) == expected


def test_table_carries_names_routes_and_keys():
    raw = {
        "server": {"api_keys": ["k"], "max_queue": 3, "queue_timeout_s": 9},
        "models": {"m": {"source": "/m", "aliases": ["x"], "lora": {"ad": "/ad"}}},
        "routes": [{"name": "r", "models": [{"model": "m"}]}],
    }
    generation = Generation.of(7, "e", Manifest.model_validate(raw))
    table = route_table(generation, Published(7), Observed(), lambda key: EngineKey, 0.0, 5)
    assert (table.generation, table.created, table.max_queue, table.queue_timeout_s) == (7, 5, 3, 9)
    assert table.names == {"m": "m", "x": "m", "ad": "m"}
    assert set(table.routes) == {"r"}
    assert table.api_keys == {"k"}
