"""residency(): which lazy models are held, one sentence a case; then whole traces in virtual time."""

import math
from dataclasses import replace

import pytest

from axiond.reconcile.residency import UNKNOWN_LOAD_S, Leaving, Waiting, residency
from axiond.reconcile.state import (
    Demand,
    EngineKey,
    EngineState,
    EngineView,
    ModelTarget,
    Observed,
    SourceKey,
    SourceState,
    SourceView,
    Target,
)
from axiond.resources.estimate import Prediction
from axiond.resources.measured import Measured

NOW = 1000.0
SOURCE = SourceKey("/m")
S = EngineState


class Case:
    """Models of one unit of memory each unless said otherwise; loads take 10 s, and so long has a waiting model patience."""

    def __init__(self, room=1):
        self.models, self.engines, self.demand, self.predictions = {}, {}, {}, {}
        self.room, self.sources = room, {SOURCE: SourceView(SourceState.READY)}

    def model(self, name, size=1, load_s=10.0, is_lazy=True, peak=0, **fields):
        self.models[name] = ModelTarget(name, name, SOURCE, is_lazy=is_lazy, **fields)
        measured = Measured(size, peak or size, size, load_s)
        self.predictions[name] = Prediction(fixed_bytes=size, measured=measured)
        return self

    def up(self, name, ago=500.0, used=400.0, state=S.READY, replica=0, **fields):
        key = EngineKey(name, name, replica)
        self.engines[key] = EngineView(key, state, NOW - ago, 1, prediction=self.predictions[name], **fields)
        self.demand.setdefault(name, Demand(last_used_s=NOW - used))
        return self

    def asked(self, name, ago=1.0, queued=1):
        self.demand[name] = Demand(queued, NOW - ago, NOW - ago)
        return self

    def decide(self, now=NOW):
        observed = Observed(self.engines, self.sources, None, None, self.demand, self.room, self.predictions)
        return residency(Target(1, self.models), observed, now)


def two(**fields):
    """A is up for long, B is not."""
    return Case().model("a", **fields).model("b").up("a")


HELD = {
    "nobody-asks": (two(), {"a": 1}),
    "idle-makes-room": (two().asked("b"), {"b": 1}),
    "room-for-both": (Case(room=2).model("a").model("b").up("a").asked("b"), {"a": 1, "b": 1}),
    "busy-stays": (Case().model("a").model("b").up("a", in_flight=1).asked("b"), {"a": 1}),
    "busy-is-closed-when-patience-ends": (Case().model("a").model("b").up("a", in_flight=1).asked("b", ago=10), {"b": 1}),
    "busy-but-up-too-shortly": (Case().model("a").model("b").up("a", ago=9, in_flight=1).asked("b", ago=99), {"a": 1}),
    "with-a-queue-is-busy": (two().asked("a").asked("b"), {"a": 1}),
    "just-loaded-stays": (Case().model("a").model("b").up("a", ago=4, used=4).asked("b", ago=99), {"a": 1}),
    "min-resident-is-declared": (Case().model("a", min_resident_s=600).model("b").up("a").asked("b", ago=99), {"a": 1}),
    "min-resident-of-none": (Case().model("a", min_resident_s=0).model("b").up("a", ago=0, used=0).asked("b"), {"b": 1}),
    "loading-stays": (Case().model("a").model("b").up("a", state=S.STARTING).asked("b", ago=99), {"a": 1}),
    "pinned-stays": (two(is_pinned=True).asked("b", ago=99), {"a": 1}),
    "idle-too-long": (two(idle_unload_s=300), {}),
    "idle-not-so-long": (two(idle_unload_s=500), {"a": 1}),
    "idle-unload-counts-from-ready": (Case().model("a", idle_unload_s=300).up("a", ago=200, used=math.inf), {"a": 1}),
    "idle-unload-spares-the-busy": (Case().model("a", idle_unload_s=300).up("a", in_flight=1), {"a": 1}),
    "pinned-and-idle": (two(idle_unload_s=300, is_pinned=True), {}),
    "lowest-priority-goes": (
        Case(room=2).model("a", priority=1).model("b").model("c").up("a", used=900).up("b", used=20).asked("c"),
        {"a": 1, "c": 1},
    ),
    "longest-unused-goes": (Case(room=2).model("a").model("b").model("c").up("a", used=400).up("b", used=20).asked("c"), {"b": 1, "c": 1}),
    "quickest-to-reload-goes": (
        Case(room=2).model("a", load_s=100).model("b").model("c").up("a", used=400).up("b", used=300).asked("c"),
        {"a": 1, "c": 1},
    ),
    "idle-goes-before-busy": (
        Case(room=2).model("a", priority=9).model("b").model("c").up("a").up("b", in_flight=1).asked("c", ago=99),
        {"b": 1, "c": 1},
    ),
    "no-more-go-than-must": (
        Case(room=4).model("a").model("b", size=3).model("c", size=3).up("a", used=900).up("b").asked("c"),
        {"a": 1, "c": 1},
    ),
    "several-go-for-a-large-one": (Case(room=2).model("a").model("b").model("c", size=2).up("a").up("b").asked("c"), {"c": 1}),
    "priority-is-first": (Case().model("a").model("b", priority=1).asked("a", ago=5).asked("b"), {"b": 1}),
    "first-come-of-equals": (Case().model("a").model("b").asked("a").asked("b", ago=2), {"b": 1}),
    "patience-beats-priority": (Case().model("a").model("b", priority=1).asked("a", ago=10).asked("b"), {"a": 1}),
    "small-ones-pass-before-patience-ends": (
        Case(room=2).model("a").model("b", size=2).model("c").up("a", in_flight=1).asked("b", ago=5).asked("c"),
        {"a": 1, "c": 1},
    ),
    "small-ones-do-not-pass-after": (
        Case(room=2).model("a").model("b", size=2).model("c").up("a", ago=4, used=4).asked("b", ago=50).asked("c"),
        {"a": 1},
    ),
    "eager-keeps-its-room": (Case().model("a", is_lazy=False).model("b").asked("b", ago=99), {}),
    "eager-takes-its-room": (Case().model("a", is_lazy=False).model("b").up("b"), {}),
    "eager-waits-for-the-just-loaded": (Case().model("a", is_lazy=False).model("b").up("b", ago=4), {"b": 1}),
    "eager-does-not-displace-the-pinned": (Case().model("a", is_lazy=False).model("b", is_pinned=True).up("b"), {"b": 1}),
    "failed-eager-takes-none": (Case().model("a", is_lazy=False).model("b").up("a", state=S.FAILED).asked("b"), {"b": 1}),
    "leaving-is-not-held": (Case().model("a").model("b").up("a", state=S.DRAINING).asked("b"), {"b": 1}),
    "leaving-comes-back-if-nobody-needs-its-room": (Case().model("a").up("a", state=S.DRAINING, used=5), {"a": 1}),
    "leaving-does-not-come-back-when-idle": (Case().model("a", idle_unload_s=300).up("a", state=S.DRAINING), {}),
    "stopping-is-gone": (Case().model("a").up("a", state=S.STOPPING), {}),
    "failing-rests": (two().up("b", state=S.BACKOFF, failures=1, retry_at=NOW + 1).asked("b"), {"a": 1}),
    "failing-is-tried-again": (two().up("b", state=S.BACKOFF, failures=1, retry_at=NOW).asked("b"), {"b": 1}),
    "failed-for-good": (two().up("b", state=S.FAILED).asked("b"), {"a": 1}),
    "replicas": (Case(room=3).model("a", replicas=2).asked("a"), {"a": 2}),
    "as-many-replicas-as-fit": (Case(room=3).model("a", replicas=4).model("b", is_lazy=False).asked("a"), {"a": 2}),
    "load-peak-needs-room-too": (Case(room=3).model("a", size=2).model("b", size=1, peak=2).up("a").asked("b"), {"b": 1}),
    "what-is-seen-of-a-load-counts-once": (
        Case(room=9).model("a", size=4, peak=6, is_lazy=False).model("b", size=3).up("a", state=S.STARTING, used_bytes=6).up("b"),
        {"b": 1},
    ),
    "grown-beyond-the-budget": (Case(room=2).model("a").model("b").up("a", used_bytes=2).up("b", used=5), {"b": 1}),
}


@pytest.mark.parametrize(("case", "held"), HELD.values(), ids=HELD)
def test_held(case, held):
    assert case.decide().held == held


def test_a_source_is_fetched_before_anything_goes():
    case = two().asked("b", ago=99)
    case.sources = {}
    assert case.decide().held == {"a": 1, "b": 1}
    assert case.decide().leaving == {}


def test_what_leaves_says_why():
    assert two().asked("b").decide().leaving == {"a": Leaving("room", "makes room for b")}
    assert two(idle_unload_s=300).decide().leaving == {"a": Leaving("idle", "idle for 300 s")}


WAITING = {
    "busy": (Case().model("a").model("b").up("a", in_flight=1).asked("b"), Waiting("a has requests", NOW + 9)),
    "just-loaded": (Case().model("a").model("b").up("a", ago=4).asked("b"), Waiting("a was just loaded", NOW + 1)),
    "loading": (Case().model("a").model("b").up("a", state=S.STARTING).asked("b"), Waiting("a is being loaded")),
    "not-first": (Case().model("a").model("b").asked("a", ago=5).asked("b"), Waiting("other models come first: a")),
}


@pytest.mark.parametrize(("case", "why"), WAITING.values(), ids=WAITING)
def test_what_waits_says_what_is_in_the_way(case, why):
    assert case.decide().waiting == {"b": why}


def test_what_can_never_fit_is_refused_with_what_is_in_the_way_whether_asked_for_or_not():
    case = Case(room=2).model("a", is_pinned=True).model("e", is_lazy=False).model("b").up("a")
    assert case.decide().refused == {"b": "does not fit: 0.0 GiB more than the memory budget of 0.0 GiB, beside e, a (pinned)"}
    assert case.asked("b", ago=99).decide().held == {"a": 1}


DUE = {
    "patience": (Case().model("a").model("b").up("a", in_flight=1).asked("b", ago=4), NOW + 6),
    "just-loaded": (Case().model("a").model("b").up("a", ago=3, used=3).asked("b"), NOW + 2),
    "idle": (two(idle_unload_s=450), NOW + 50),
}


@pytest.mark.parametrize(("case", "due_s"), DUE.values(), ids=DUE)
def test_it_knows_when_to_look_again(case, due_s):
    assert case.decide().due_s == due_s
    assert case.decide(due_s - 0.01).held == case.decide().held != case.decide(due_s).held


def test_a_busy_model_that_may_be_idle_some_day_is_looked_at_again():
    assert Case().model("a", idle_unload_s=450).up("a", in_flight=1).decide().due_s == NOW + 450
    assert two().decide().due_s == math.inf


def test_an_unmeasured_model_counts_as_slow():
    case = Case().model("a", load_s=None).model("b").up("a", ago=UNKNOWN_LOAD_S / 2 - 1, used=0).asked("b")
    assert case.decide().held == {"a": 1}
    case.engines = {key: replace(view, since=NOW - UNKNOWN_LOAD_S / 2) for key, view in case.engines.items()}
    assert case.decide().held == {"b": 1}
