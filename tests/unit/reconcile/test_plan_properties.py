"""plan() under random edits, crashes and failures at random moments; World asserts the invariants on every step."""

from hypothesis import given, settings
from hypothesis import strategies as st

from axiond.reconcile import actions as do
from axiond.reconcile.plan import plan
from axiond.reconcile.residency import residency

from .world import S, World, keys_of, model, target

MODELS = st.sampled_from(["a", "b", "c"])
SPECS = st.builds(
    lambda name, digest, gib, replicas, lazy, priority, stay_s, idle_s, pin: model(
        name,
        digest,
        gib=gib,
        replicas=replicas,
        is_lazy=lazy,
        priority=priority,
        drain_grace_s=5,
        min_resident_s=stay_s,
        idle_unload_s=idle_s,
        is_pinned=pin,
    ),
    MODELS,
    st.sampled_from(["d1", "d2", "d3", "bad1", "bad2"]),
    st.integers(1, 4),
    st.integers(1, 2),
    st.booleans(),
    st.integers(-1, 1),
    st.sampled_from([0.0, 3.0, 50.0, None]),
    st.sampled_from([None, None, 20.0]),
    st.sampled_from([False, False, False, True]),
)
MANIFESTS = st.lists(SPECS, max_size=3, unique_by=lambda m: m.name)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("edit"), MANIFESTS),
        st.tuples(st.just("rounds"), st.integers(1, 4)),
        st.tuples(st.just("arrive"), st.integers(1, 4)),
        st.tuples(st.just("crash"), st.integers(0, 5)),
        st.tuples(st.just("later"), st.integers(1, 20)),
        st.tuples(st.just("ask"), MODELS),
        st.tuples(st.just("busy"), st.tuples(MODELS, st.integers(0, 2))),
    ),
    max_size=25,
)


def crash(world, index):
    running = sorted(key for key, v in world.observed.engines.items() if v.state in (S.READY, S.DRAINING))
    if running:
        key = running[index % len(running)]
        is_draining = world.observed.engines[key].state is S.DRAINING
        changes = {} if is_draining else {"failures": 1, "retry_at": world.now + 1, "reason": "crashed"}
        world.set_state(key, S.STOPPED if is_draining else S.BACKOFF, **changes)


def play(world, steps):  # noqa: C901  one case a step
    for what, how in steps:
        match what:
            case "edit":
                world.want(target(max(world.targets, default=0) + 1, *how))
            case "rounds":
                for _ in range(how):
                    world.round()
            case "arrive":
                for _ in range(how):
                    world.arrive()
            case "crash":
                crash(world, how)
            case "later":
                world.now += how
            case "ask":
                world.ask(how)
            case "busy":
                world.occupy(*how)


def unanswered(world):
    """Models that somebody waits for although they could be loaded."""
    lazy = residency(world.desired, world.observed, world.now)
    failed = {key.model for key, view in world.observed.engines.items() if view.state is S.FAILED}
    asked = {name for name, demand in world.observed.demand.items() if demand.oldest_s is not None}
    return (asked & {m.name for m in world.desired.models.values() if m.is_lazy}) - failed - lazy.refused.keys()


@settings(max_examples=400, deadline=None)
@given(MANIFESTS, STEPS, st.sampled_from([4, 6, 10, 1000]))
def test_whatever_happens_it_settles_and_then_a_good_manifest_is_served_in_full(first, steps, budget_gib):
    world = World(budget_gib=budget_gib, broken={"bad1", "bad2"})
    world.want(target(1, *first))
    play(world, steps)
    for name in "abc":
        world.occupy(name, 0)
    world.settle()
    assert plan(world.desired, world.observed, world.now) == ()
    assert not unanswered(world)

    good = target(max(world.targets) + 1, model("a", "final", gib=2), model("b", "final", gib=2))
    world.want(good)
    world.settle()
    assert world.observed.serving == good
    assert world.routed() == {key for m in good.models.values() for key in keys_of(m)}
    assert set(world.observed.engines) == world.routed()


@settings(max_examples=200, deadline=None)
@given(MANIFESTS, STEPS)
def test_a_bad_candidate_is_started_at_most_once_a_generation(first, steps):
    world = World(broken={"bad1", "bad2"})
    world.want(target(1, *first))
    world.settle()
    for what, how in steps:
        if what == "edit":
            served = world.observed.serving.models
            world.want(target(max(world.targets) + 1, *how))
            world.log.clear()
            world.settle()
            fresh = [m for m in how if m.digest in world.broken and m.name in {n.name for n in how} - set(served)]
            for m in fresh:
                for key in keys_of(m):
                    assert sum(isinstance(a, do.Start) and a.key == key for a in world.log) <= 1
