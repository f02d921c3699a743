"""plan(): one cell for every pair of states, then the stories."""

import itertools
from dataclasses import replace

import pytest

from axiond.reconcile import actions as do
from axiond.reconcile.plan import next_wake_s, plan, without_room
from axiond.reconcile.state import Demand, EngineKey, EngineState, Observed, Published, SourceState, SourceView, Target
from axiond.resources.estimate import Prediction
from axiond.resources.measured import Measured
from axiond.resources.sums import REMEDY

from .world import GIB, S, World, keys_of, model, target, view

NEW, OLD = EngineKey("m", "new"), EngineKey("m", "old")
STATES = (None, *EngineState)
CELLS = list(itertools.product(STATES, STATES, ("none", "old", "new"), ("overlap", "stop-first")))


def cell(new_state, old_state, routed, room):
    """A world in which the manifest went from *old* to *new*, caught at any moment."""
    before, after = target(1, model(digest="old")), target(2, model(digest="new"))
    engines = [view(key, state) for key, state in ((NEW, new_state), (OLD, old_state)) if state]
    ready = {NEW: new_state is S.READY, OLD: old_state is S.READY}
    routes = {"none": (), "old": (OLD,) if ready[OLD] else (), "new": (NEW,) if ready[NEW] else ()}[routed]
    serving = after if routed == "new" else before
    both_live = all(state in (S.STARTING, S.READY, S.DRAINING, S.STOPPING) for state in (new_state, old_state))
    budget_gib = 8 if room == "overlap" or both_live else 4
    world = World(serving, engines, Published(serving.generation, {"m": routes}), budget_gib)
    world.targets |= {1: before, 2: after}
    world.want(after)
    return world


def cell_id(parts):
    return "-".join(str(part) if part else "absent" for part in parts)


@pytest.mark.parametrize("parts", CELLS, ids=cell_id)
def test_every_cell_ends_with_the_wanted_engine_routed_and_then_plans_nothing(parts):
    """Also on the way: only ready engines are routed, and what is routed is neither drained nor stopped (World asserts both)."""
    world = cell(*parts)
    world.settle()
    assert world.routed() == {NEW}
    assert {key: v.state for key, v in world.observed.engines.items()} == {NEW: S.READY}
    assert plan(world.desired, world.observed, world.now) == ()


def test_there_are_384_cells():
    assert len(CELLS) == 384


@pytest.mark.parametrize("parts", [parts for parts in CELLS if parts[2] != "new"], ids=cell_id)
def test_every_cell_survives_a_candidate_that_never_starts(parts):
    """The old engine serves in the end if it was the serving generation; a bad spec is started at most once a generation."""
    world = cell(*parts)
    already_runs = parts[0] in (S.READY, S.DRAINING)
    world.broken = {"new"}
    world.settle()
    if already_runs:
        assert world.routed() == {NEW}
        return
    assert world.rejected == [2]
    assert world.routed() == {OLD}
    assert sum(isinstance(action, do.Start) and action.key == NEW for action in world.log) <= 1
    assert set(world.observed.engines) == {OLD}


def served(*models, generation=1, **rest):
    """A world that serves these models."""
    goal = target(generation, *models)
    keys = [key for m in models for key in keys_of(m)]
    routing = Published(generation, {m.name: keys_of(m) for m in models})
    return World(goal, [view(key, S.READY) for key in keys], routing, **rest)


def starts(world):
    return [action.key for action in world.log if isinstance(action, do.Start)]


def test_first_boot_publishes_before_anything_runs_so_that_requests_can_wait():
    world = World()
    world.want(target(1, model("a"), model("b")))
    actions = world.round()
    assert actions[0] == do.Publish(Published(1, {"a": (), "b": ()}))
    assert starts(world) == [EngineKey("a", "new"), EngineKey("b", "new")]


def test_a_changed_alias_publishes_and_starts_nothing():
    world = served(model())
    world.want(target(2, model()))
    world.settle()
    assert world.log == [do.Publish(Published(2, {"m": (NEW,)}))]


def test_an_edit_of_two_models_is_published_whole():
    """The model that is ready first waits for the other."""
    world = served(model("a", "old"), model("b", "old"))
    world.want(target(2, model("a"), model("b")))
    world.round()
    world.set_state(EngineKey("a", "new"), S.READY)
    assert world.round() == ()
    world.set_state(EngineKey("b", "new"), S.READY)
    routing = Published(2, {"a": (EngineKey("a", "new"),), "b": (EngineKey("b", "new"),)})
    assert world.round()[0] == do.Publish(routing)


def test_one_bad_model_rejects_the_whole_edit():
    world = served(model("a", "old"), model("b", "old"), broken={"bad"})
    world.want(target(2, model("a"), model("b", "bad")))
    world.settle()
    assert world.rejected == [2]
    assert world.routed() == {EngineKey("a", "old"), EngineKey("b", "old")}
    assert set(world.observed.engines) == world.routed()


def test_a_b_a_takes_a_back_out_of_draining():
    world = served(model(digest="old"))
    world.want(target(2, model(digest="new")))
    world.round()
    world.set_state(NEW, S.READY)
    world.round()
    assert world.observed.engines[OLD].state is S.DRAINING
    world.want(target(3, model(digest="old")))
    world.settle()
    assert do.Resume(OLD) in world.log
    assert starts(world) == [NEW]
    assert world.routed() == {OLD}


def test_where_only_one_fits_the_old_one_stops_first_and_returns_if_the_new_one_fails():
    world = served(model(digest="old"), budget_gib=4, broken={"new"})
    world.want(target(2, model(digest="new")))
    world.settle()
    assert starts(world) == [NEW, OLD]
    assert world.routed() == {OLD}
    assert next(action for action in world.log if isinstance(action, do.Publish)) == do.Publish(Published(1, {"m": ()}))


def test_what_fits_is_proven_before_anything_has_to_stop():
    world = served(model("a", "old", gib=1), model("big", "old", gib=6), budget_gib=11, broken={"bad"})
    world.want(target(2, model("a", "bad", gib=1), model("big", "new", gib=6)))
    world.settle()
    assert world.rejected == [2]
    assert not any(isinstance(action, do.Drain) for action in world.log)


def test_a_model_that_takes_the_place_of_a_removed_one_waits_for_its_memory():
    world = served(model("a", "old"), budget_gib=4)
    world.want(target(2, model("b", "new")))
    world.settle()
    assert world.routed() == {EngineKey("b", "new")}
    assert world.rejected == []


def test_what_cannot_fit_at_all_is_rejected_with_the_sum_and_stops_nothing():
    world = served(model("a", "old"), budget_gib=4)
    world.want(target(2, model("a", "new", gib=6)))
    world.settle()
    lack = "does not fit: 2.0 GiB more than the memory budget of 4.0 GiB"
    assert world.log == [do.Reject(2, "a", f"{lack}\n  a: 6.0 GiB: processes 6.0\n  together: 6.0 GiB\n{REMEDY}")]


def test_a_removed_model_is_drained_then_stopped_then_forgotten():
    world = served(model("a"), model("b"))
    world.want(target(2, model("a")))
    world.settle()
    gone = EngineKey("b", "new")
    assert world.log[1:] == [do.Drain(gone, "change", "replaced or removed"), do.Stop(gone, "drained"), do.Forget(gone)]


def test_draining_waits_for_requests_and_then_for_the_grace():
    engines = {NEW: view(NEW, S.READY), OLD: view(OLD, S.DRAINING, in_flight=2)}
    goal = target(2, model(drain_grace_s=30))
    observed = Observed(engines, {"src": SourceView(SourceState.READY)}, goal, Published(2, {"m": (NEW,)}))
    assert plan(goal, observed, now=29.0) == ()
    assert next_wake_s(observed, goal, now=29.0) == pytest.approx(1.0)
    assert plan(goal, observed, now=30.0) == (do.Stop(OLD, "drain grace is over with 2 requests running"),)


def test_a_crashed_engine_of_the_serving_generation_is_retried_then_given_up():
    world = served(model())
    world.want(world.observed.serving)
    world.broken = {"new"}
    world.set_state(NEW, S.BACKOFF, failures=1, retry_at=world.now + 1)
    world.settle()
    assert starts(world) == [NEW] * 4
    assert world.observed.engines[NEW].state is S.FAILED
    assert world.rejected == []


def test_a_changed_manifest_tries_a_failed_engine_again():
    world = served(model("a"), model("m"))
    world.set_state(NEW, S.FAILED)
    world.want(target(2, model("a", "newer"), model("m")))
    world.settle()
    assert world.routed() == {EngineKey("a", "newer"), NEW}


def test_replicas_scale_without_touching_the_first():
    world = served(model(replicas=1))
    world.want(target(2, model(replicas=3)))
    world.settle()
    assert [key.replica for key in starts(world)] == [1, 2]
    assert len(world.routed()) == 3
    world.want(target(3, model(replicas=1)))
    world.settle()
    assert world.routed() == {NEW}


def test_one_replica_down_leaves_the_others_routed():
    world = served(model(replicas=2))
    world.want(world.observed.serving)
    world.set_state(EngineKey("m", "new", 1), S.BACKOFF, failures=1, retry_at=1e9)
    world.round()
    assert world.routed() == {NEW}


def test_a_lazy_model_starts_when_it_is_demanded():
    world = World()
    world.want(target(1, model(is_lazy=True)))
    world.settle()
    assert starts(world) == []
    world.observed = Observed(**{**_fields(world.observed), "demand": {"m": Demand(1, 0.0, 0.0)}})
    world.settle()
    assert world.routed() == {NEW}


def test_a_lazy_model_that_runs_is_replaced_like_any_other():
    world = served(model(digest="old", is_lazy=True))
    world.want(target(2, model(digest="new", is_lazy=True)))
    world.settle()
    assert world.routed() == {NEW}


def test_a_source_that_cannot_be_had_rejects_the_candidate():
    world = served(model(digest="old"))
    world.observed = Observed(
        **{**_fields(world.observed), "sources": {**world.observed.sources, "gone": SourceView(SourceState.FAILED, "no such folder")}}
    )
    world.want(target(2, model(digest="new", source="gone")))
    world.settle()
    assert world.log == [do.Reject(2, "m", "no such folder"), do.Drop("gone")]


def test_a_source_of_the_serving_generation_is_tried_again_when_due():
    goal = target(1, model(source="flaky"))
    observed = Observed(
        sources={"flaky": SourceView(SourceState.FAILED, "refused", retry_at=5.0)}, serving=goal, published=Published(1, {"m": ()})
    )
    assert plan(goal, observed, now=4.0) == ()
    assert next_wake_s(observed, goal, now=4.0) == pytest.approx(1.0)
    assert plan(goal, observed, now=5.0) == (do.Fetch("flaky"),)


def test_a_shared_source_is_fetched_once():
    goal = target(1, model("a", source="s"), model("b", source="s"))
    actions = plan(goal, Observed(serving=goal, published=Published(1, {"a": (), "b": ()})), 0.0)
    assert actions == (do.Fetch("s"),)


def test_memory_counts_the_weights_once_they_are_here():
    goal = target(1, model(gib=2))
    observed = Observed(
        sources={"src": SourceView(SourceState.READY, weight_bytes=3 * GIB)}, serving=goal, published=Published(1, {"m": ()})
    )
    assert plan(goal, observed, 0.0) == (do.Start(NEW, "src", 1, Prediction(weights_bytes=3 * GIB, fixed_bytes=2 * GIB)),)


def test_an_overtaken_candidate_is_stopped_while_it_starts():
    world = served(model(digest="old"))
    world.want(target(2, model(digest="new")))
    world.round()
    world.want(target(3, model(digest="newer")))
    actions = world.round()
    assert do.Stop(NEW, "no longer wanted") in actions
    world.settle()
    assert world.routed() == {EngineKey("m", "newer")}


def test_priority_starts_first():
    goal = Target(1, {m.name: m for m in (model("a"), model("z", priority=9))})
    observed = Observed(sources={"src": SourceView(SourceState.READY)}, serving=goal, published=Published(1, {"a": (), "z": ()}))
    assert [action.key.model for action in plan(goal, observed, 0.0)] == ["z", "a"]


def with_sources(world, **states):
    sources = world.observed.sources | {name: SourceView(state) for name, state in states.items()}
    return Observed(**_fields(world.observed) | {"sources": sources})


def _fields(observed):
    return {name: getattr(observed, name) for name in observed.__dataclass_fields__}


def test_a_serving_engine_that_crashes_during_a_change_comes_back_before_it_ends():
    """The candidate is still being fetched; requests need the old engine."""
    world = served(model(digest="old"))
    world.observed = with_sources(world, slow=SourceState.FETCHING)
    world.want(target(2, model(digest="new", source="slow")))
    world.set_state(OLD, S.BACKOFF, failures=1, retry_at=world.now)
    world.round()
    assert starts(world) == [OLD]
    world.set_state(OLD, S.READY)
    world.round()
    assert world.routed() == {OLD}


def test_nothing_has_to_stop_while_another_model_is_still_fetched():
    world = served(model("a", "old"), budget_gib=8)
    world.observed = with_sources(world, slow=SourceState.FETCHING)
    world.want(target(2, model("a", "new", gib=6), model("z", "new", source="slow", gib=1)))
    assert world.round() == ()


def test_a_candidate_that_cannot_fit_as_a_whole_stops_nothing():
    world = served(model("a", "old"), budget_gib=8)
    world.want(target(2, model("a", "new", gib=6), model("z", "new", gib=6)))
    world.settle()
    (rejection,) = world.log
    assert isinstance(rejection, do.Reject)
    assert rejection.reason.startswith("does not fit: 4.0 GiB more than the memory budget of 8.0 GiB\n  a: 6.0 GiB")


def test_memory_of_an_engine_that_will_run_again_is_not_given_away():
    a, b = model("a", priority=1), model("b")
    world = World(budget_gib=6)
    world.want(target(1, a, b))
    world.settle()
    world.set_state(EngineKey("a", "new"), S.BACKOFF, failures=1, retry_at=world.now + 1)
    assert not any(isinstance(action, do.Start) for action in world.round())
    world.settle()
    assert world.routed() == {EngineKey("a", "new")}


def test_what_fits_once_another_has_been_loaded_waits_and_is_not_without_room():
    world = World(budget_gib=10)
    world.observed = replace(world.observed, predictions={"new": Prediction(measured=Measured(4 * GIB, 6 * GIB, 4 * GIB, 10.0))})
    world.want(target(1, model("a"), model("b")))
    while not world.observed.engines:
        world.round()
    assert [view.key.model for view in world.observed.engines.values()] == ["a"]
    assert without_room(world.desired, world.observed, world.now) == {}
    world.settle()
    assert {key.model for key in world.routed()} == {"a", "b"}


def outgrown(replicas=1, budget_gib=8):
    world = served(model("a", replicas=replicas), budget_gib=budget_gib)
    grown = {key: replace(view, used_bytes=5 * GIB, ceiling_bytes=4 * GIB) for key, view in world.observed.engines.items()}
    world.observed = replace(world.observed, engines=grown)
    world.want(world.observed.serving)
    return world


def test_replicas_that_have_outgrown_their_ceiling_are_replaced_one_at_a_time():
    world = outgrown(replicas=2, budget_gib=10)
    while world.round() or world.arrive():
        assert world.routed()
    assert {view.used_bytes for view in world.observed.engines.values()} == {0}


def test_an_engine_beyond_its_ceiling_stays_where_its_like_would_not_fit_even_without_it():
    world = outgrown()
    world.observed = replace(world.observed, predictions={"new": Prediction(measured=Measured(4 * GIB, 9 * GIB, 4 * GIB, 10.0))})
    assert world.round() == ()


def test_a_source_that_nothing_names_is_dropped():
    world = served(model())
    world.observed = with_sources(world, typo=SourceState.FETCHING)
    world.want(world.observed.serving)
    assert world.round() == (do.Drop("typo"),)
