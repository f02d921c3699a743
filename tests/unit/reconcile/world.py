"""A world in memory for plan(): applies actions as a faultless executor would, and lets what is on its way arrive."""

from collections.abc import Iterable
from dataclasses import replace

from axiond.reconcile import actions as do
from axiond.reconcile.memory import taken_bytes
from axiond.reconcile.plan import next_wake_s, plan
from axiond.reconcile.slots import is_current
from axiond.reconcile.state import (
    TRANSITIONS,
    Demand,
    EngineKey,
    EngineState,
    EngineView,
    ModelTarget,
    Observed,
    SourceState,
    SourceView,
    Target,
)
from axiond.resources.estimate import Prediction

GIB = 2**30
S = EngineState


def model(name="m", digest="new", source="src", gib=4, **rest):
    return ModelTarget(name=name, digest=digest, source=source, fixed_bytes=gib * GIB, **rest)


def keys_of(m):
    return tuple(EngineKey(m.name, m.digest, replica) for replica in range(m.replicas))


def target(generation, *models):
    return Target(generation, {m.name: m for m in models})


def view(key, state, generation=1, **rest):
    prediction = Prediction(fixed_bytes=rest.pop("gib", 4) * GIB)
    return EngineView(key=key, state=state, since=0.0, generation=generation, prediction=prediction, **rest)


class World:
    """*broken* engines fail whenever they start; *budget_gib* bounds what may run at once."""

    def __init__(self, serving=None, engines: Iterable[EngineView] = (), published=None, budget_gib=1000, broken=frozenset()):
        self.now = 100.0
        self.broken = set(broken)
        self.log: list[do.Action] = []
        self.rejected: list[int] = []
        self.targets = {serving.generation: serving} if serving else {}
        self.observed = Observed(
            engines={v.key: v for v in engines},
            sources={"src": SourceView(SourceState.READY)},
            serving=serving,
            published=published,
            budget_bytes=budget_gib * GIB,
        )

    def want(self, desired: Target) -> None:
        self.targets[desired.generation] = self.desired = desired

    def set_state(self, key: EngineKey, state: EngineState, **changes) -> None:
        old = self.observed.engines[key]
        assert state in TRANSITIONS[old.state], f"{key}: {old.state} -> {state}"
        self._engines({**self.observed.engines, key: replace(old, state=state, since=self.now, **changes)})

    def apply(self, action: do.Action) -> None:  # noqa: C901  one case an action
        self.log.append(action)
        engines = dict(self.observed.engines)
        match action:
            case do.Fetch(source):
                self.observed = replace(self.observed, sources={**self.observed.sources, source: SourceView(SourceState.READY)})
            case do.Drop(source):
                kept = {name: view for name, view in self.observed.sources.items() if name != source}
                self.observed = replace(self.observed, sources=kept)
            case do.Start(key, _, generation, prediction):
                if key in engines:
                    self.set_state(key, S.STARTING, prediction=prediction)
                else:
                    self._engines({**engines, key: EngineView(key, S.STARTING, self.now, generation, prediction=prediction)})
            case do.Publish(routing):
                for keys in routing.endpoints.values():
                    assert all(engines[key].state is S.READY for key in keys), f"routed to an engine that is not ready: {routing}"
                self.observed = replace(self.observed, published=routing, serving=self.targets[routing.generation])
            case do.Drain(key, cause):
                assert key not in self.routed(), f"drained while routed: {key}"
                if cause == "room":
                    model = self.desired.models[key.model]
                    assert not model.is_pinned, f"pinned and unloaded: {key}"
                    assert self.now >= engines[key].since + (model.min_resident_s or 0), f"unloaded when just loaded: {key}"
                self.set_state(key, S.DRAINING)
            case do.Resume(key):
                self.set_state(key, S.READY)
            case do.Stop(key):
                assert key not in self.routed(), f"stopped while routed: {key}"
                if is_current(key, self.desired) and engines[key].state is S.DRAINING:
                    assert not engines[key].in_flight, f"unloaded while busy: {key}"
                self.set_state(key, S.STOPPING)
            case do.GiveUp(key):
                self.set_state(key, S.FAILED)
            case do.Forget(key):
                if engines[key].state is not S.STOPPED:
                    self.set_state(key, S.STOPPED)
                self._engines({k: v for k, v in self.observed.engines.items() if k != key})
            case do.Reject(generation):
                self.rejected.append(generation)
                self.desired = self.observed.serving

    def routed(self) -> set[EngineKey]:
        published = self.observed.published
        return {key for keys in published.endpoints.values() for key in keys} if published else set()

    def arrive(self) -> bool:
        """Let the first thing that is on its way arrive; False when nothing is."""
        for key, old in sorted(self.observed.engines.items()):
            if old.state is S.STARTING and key.digest in self.broken:
                self.set_state(key, S.BACKOFF, failures=old.failures + 1, retry_at=self.now + 1, reason="broken")
                return True
            if old.state is S.STARTING:
                self.set_state(key, S.READY)
                return True
            if old.state is S.STOPPING:
                self.set_state(key, S.STOPPED)
                return True
        waiting = [v.retry_at for v in self.observed.engines.values() if v.state is S.BACKOFF and v.retry_at > self.now]
        if waiting:
            self.now = min(waiting)
            return True
        if (wake_s := next_wake_s(self.observed, self.desired, self.now)) is not None:
            self.now += wake_s
            return True
        return False

    def ask(self, name: str) -> None:
        """A request comes for a model; `round()` answers it once there is an engine."""
        self._demand(name, Demand(1, self.now, self.now))

    def occupy(self, name: str, count: int) -> None:
        """Let *count* requests run in each engine of a model that can take any."""
        engines = {
            key: replace(view, in_flight=count) if key.model == name and view.state in (S.READY, S.DRAINING) else view
            for key, view in self.observed.engines.items()
        }
        self._engines(engines)

    def _answer(self) -> None:
        published = self.observed.published
        for name in [name for name in self.observed.demand if published and published.endpoints.get(name)]:
            self._demand(name, Demand(last_used_s=max(self.observed.demand[name].last_used_s, self.observed.demand[name].oldest_s or 0)))

    def _demand(self, name: str, demand: Demand) -> None:
        self.observed = replace(self.observed, demand={**self.observed.demand, name: demand})

    def round(self) -> tuple[do.Action, ...]:
        actions = plan(self.desired, self.observed, self.now)
        for action in actions:
            self.apply(action)
        held = (taken_bytes(v, self.observed) for v in self.observed.engines.values() if v.state in HOLDING)
        assert sum(held) <= self.observed.budget_bytes
        self._answer()
        return actions

    def settle(self, most_rounds=200) -> None:
        """Run rounds until nothing is planned and nothing is on its way."""
        for _ in range(most_rounds):
            if not self.round() and not self.arrive():
                return
        raise AssertionError(f"does not settle: {self.log[-8:]}")

    def _engines(self, engines) -> None:
        self.observed = replace(self.observed, engines=engines)


HOLDING = {S.STARTING, S.READY, S.DRAINING, S.STOPPING}
