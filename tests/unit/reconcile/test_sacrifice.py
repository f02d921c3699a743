"""Which engine ends at once when memory is all but gone."""

import pytest

from axiond.reconcile.sacrifice import sacrifice
from axiond.reconcile.state import EngineState, Observed

from .world import GIB, keys_of, model, target, view

READY, STARTING, STOPPING, FAILED = EngineState.READY, EngineState.STARTING, EngineState.STOPPING, EngineState.FAILED
EAGER, LAZY, PINNED = model("eager"), model("lazy", is_lazy=True), model("pinned", is_lazy=True, is_pinned=True)
DESIRED = target(1, EAGER, LAZY, PINNED)


def engine(of, state=READY, used_gib=4.0, **rest):
    (key,) = keys_of(of)
    return view(key, state, used_bytes=int(used_gib * GIB), **rest)


@pytest.mark.parametrize(
    ("engines", "expected"),
    [
        ([], None),
        ([engine(EAGER, used_gib=6), engine(LAZY)], "eager"),
        ([engine(EAGER, used_gib=6), engine(LAZY, used_gib=7)], "lazy"),
        ([engine(EAGER, used_gib=4.5), engine(LAZY, used_gib=1)], "lazy"),
        ([engine(EAGER), engine(PINNED), engine(LAZY)], "lazy"),
        ([engine(EAGER, in_flight=1), engine(PINNED)], "pinned"),
        ([engine(LAZY, STARTING, used_gib=9), engine(EAGER)], "lazy"),
        ([engine(LAZY, STOPPING), engine(EAGER, used_gib=9)], None),
        ([engine(LAZY, FAILED, used_gib=9)], None),
    ],
    ids=["none", "grew", "grew-most", "within-tolerance", "least-loss", "idle-first", "while-loading", "one-is-stopping", "already-gone"],
)
def test_who_goes(engines, expected):
    found = sacrifice(DESIRED, Observed(engines={one.key: one for one in engines}))
    assert (found[0].model if found else None) == expected


def test_what_nobody_wants_any_more_goes_before_what_is_wanted():
    old = model("lazy", digest="old", is_lazy=True)
    found = sacrifice(DESIRED, Observed(engines={one.key: one for one in (engine(old), engine(LAZY))}))
    assert found
    assert found[0].digest == "old"


def test_the_reason_has_the_figures():
    found = sacrifice(DESIRED, Observed(engines={one.key: one for one in [engine(EAGER, used_gib=6)]}))
    assert found
    assert found[1] == "took 6.0 GiB where 4.0 were expected, and memory ran out"
