import pytest

from axiond.manifest.spec import ModelSpec
from axiond.reconcile.claims import about_to_start, can_follow, core_claims
from axiond.reconcile.state import EngineKey, Observed, SourceState, SourceView
from axiond.resources.cores import Claim, Slot
from tests.unit.reconcile.world import GIB, S, model, target, view

OLD, NEW, SECOND = EngineKey("a", "old"), EngineKey("a", "new"), EngineKey("a", "new", 1)
PLAIN, NAMED = ModelSpec(source="s"), ModelSpec(source="s", cores="0-1")
TWO_WORKERS = ModelSpec(source="s", engine_args={"tensor-parallel-size": 2})
SLOT = Slot("a")


@pytest.mark.parametrize(
    ("engines", "starting", "specs", "claims"),
    [
        ({}, (), {}, ()),
        ({NEW: S.READY}, (), {NEW: PLAIN}, (Claim(SLOT),)),
        ({NEW: S.READY}, (SECOND,), {NEW: PLAIN, SECOND: PLAIN}, (Claim(SLOT), Claim(Slot("a", 1)))),
        ({OLD: S.READY}, (NEW,), {OLD: PLAIN, NEW: NAMED}, (Claim(SLOT, named=frozenset({0, 1})),)),
        ({NEW: S.STOPPING}, (), {NEW: PLAIN}, (Claim(SLOT),)),
        ({NEW: S.BACKOFF}, (), {NEW: PLAIN}, (Claim(SLOT),)),
        ({NEW: S.FAILED}, (), {NEW: PLAIN}, ()),
        ({NEW: S.STARTING}, (), {NEW: TWO_WORKERS}, (Claim(SLOT, is_fixed=True),)),
        ({NEW: S.BACKOFF}, (NEW,), {NEW: TWO_WORKERS}, (Claim(SLOT),)),
        ({OLD: S.READY}, (NEW,), {OLD: TWO_WORKERS, NEW: PLAIN}, (Claim(SLOT, is_fixed=True),)),
        ({OLD: S.READY}, (), {}, (Claim(SLOT, is_fixed=True),)),
    ],
    ids=[
        "none", "one", "a second replica", "a change", "on its way out", "crashed", "given up", "several workers", "several workers again",
        "a change of several workers", "adopted without a manifest",
    ],
)  # fmt: skip
def test_who_shares_the_cores(engines, starting, specs, claims):
    """Old and new share a slot, which is as the new one's manifest says; whoever cannot be moved keeps its cores."""
    assert core_claims({key: view(key, state) for key, state in engines.items()}, starting, specs.get) == claims


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, True),
        ({"engine_args": {"tensor-parallel-size": 2}}, False),
        ({"kernels": "off"}, False),
        ({"kernels": {"w4a8": "off"}}, True),
    ],
    ids=["plain", "several workers", "stock", "with some kernels"],
)
def test_who_can_move_while_it_runs(fields, expected):
    assert can_follow(ModelSpec(source="s", **fields)) is expected


@pytest.mark.parametrize(
    ("source", "gib", "is_lazy", "expected"),
    [
        (SourceState.READY, 4, False, True),
        (SourceState.FETCHING, 4, False, False),
        (SourceState.READY, 400, False, False),
        (SourceState.READY, 4, True, False),
    ],
    ids=["ready", "on its way", "no room", "not asked for"],
)
def test_who_will_need_cores_soon(source, gib, is_lazy, expected):
    wanted = model("a", gib=gib, is_lazy=is_lazy)
    observed = Observed(sources={"src": SourceView(source)}, budget_bytes=10 * GIB)
    assert about_to_start(target(1, wanted), observed, 0.0) == ((NEW,) if expected else ())
