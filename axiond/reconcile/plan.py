"""
Decide what to do next. Pure: no clock, disk, random or log line.

A candidate generation is published as a whole, once every engine that it changes is ready; until then the serving
generation keeps the requests. A candidate that cannot be realised is rejected, and the same `plan()` with the serving
generation as desired is the rollback.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from axiond.reconcile.actions import Action, Drain, Drop, Fetch, Forget, GiveUp, Publish, Reject, Resume, Start, Stop
from axiond.reconcile.backoff import MOST_FAILURES
from axiond.reconcile.memory import eager_needs, held_bytes, prediction_of, settled_bytes, taken_bytes
from axiond.reconcile.residency import Residency, residency
from axiond.reconcile.slots import is_current, ready_engines, recycle_due_s, wanted_engines
from axiond.reconcile.state import (
    FAILING,
    HOLDS_MEMORY,
    LEAVING,
    EngineKey,
    EngineState,
    EngineView,
    ModelTarget,
    Observed,
    Published,
    SourceKey,
    SourceState,
    Target,
)
from axiond.resources.estimate import together_bytes
from axiond.resources.sums import lack_of_memory, refusal

COMING_OR_GOING = LEAVING | {EngineState.STARTING}


def plan(desired: Target, observed: Observed, now: float) -> tuple[Action, ...]:
    """
    Return the actions that bring *observed* one step nearer to *desired*; empty when there is nothing to do.

    Args:
        desired: the candidate generation, or the serving one after a rejection.
        observed: what this round sees; `observed.serving` is the last good generation.
        now: loop time in seconds.
    """
    view = _Round(desired, observed, now)
    if rejection := view.rejection():
        return (rejection,)
    starts = tuple(view.starts())
    if view.over_budget:
        return (view.over_budget,)
    routing = view.routing()
    publish = (Publish(routing),) if routing != observed.published else ()
    routed = {key for keys in routing.endpoints.values() for key in keys}
    return (*publish, *view.upkeep(routing, routed), *starts, *view.drops())


def next_wake_s(observed: Observed, desired: Target, now: float) -> float | None:
    """
    Seconds until time alone makes something due; None when only an event can.

    *now* must be the time that `plan()` was given: what was due by then was planned, or is not wanted.
    """
    due = [view.retry_at for view in observed.engines.values() if view.state is EngineState.BACKOFF]
    due += [view.retry_at for view in observed.sources.values() if view.state is SourceState.FAILED]
    for view in observed.engines.values():
        if view.state is EngineState.DRAINING:
            due.append(view.since + _grace_s(view.key, desired, observed.serving))
        if (recycle_s := recycle_due_s(view)) is not None:
            due.append(recycle_s)
    due.append(residency(desired, observed, now).due_s)
    return min((at - now for at in due if now < at < math.inf), default=None)


def wanted_keys(desired: Target, observed: Observed, now: float) -> tuple[EngineKey, ...]:
    """Engines that *desired* needs now, by priority."""
    return _wanted_keys(desired, residency(desired, observed, now), observed, now)


def _wanted_keys(desired: Target, lazy: Residency, observed: Observed, now: float) -> tuple[EngineKey, ...]:
    models = sorted(desired.models.values(), key=lambda model: (-model.priority, model.name))
    counts = ((model, lazy.held.get(model.name, 0) if model.is_lazy else model.replicas) for model in models)
    return tuple(key for model, count in counts for key in wanted_engines(model, count, observed, now))


def without_room(desired: Target, observed: Observed, now: float) -> Mapping[EngineKey, str]:
    """Wanted engines that memory has no place for, and why; empty while something is leaving that may make room."""
    wanted = wanted_keys(desired, observed, now)
    holding = {key: view for key, view in observed.engines.items() if view.state in HOLDS_MEMORY}
    if any(key not in wanted or view.state in LEAVING for key, view in holding.items()):
        return {}
    used = settled_bytes(observed, wanted)
    found = {}
    for key in wanted:
        source = observed.sources.get(desired.models[key.model].source)
        if key in observed.engines or source is None or source.state is not SourceState.READY:
            continue
        estimate = prediction_of(desired.models[key.model], observed)
        if used + estimate.peak_bytes > observed.budget_bytes:
            found[key] = lack_of_memory(used + estimate.peak_bytes - observed.budget_bytes, observed.budget_bytes)
        else:
            used += estimate.steady_bytes
    return found


def _grace_s(key: EngineKey, desired: Target, serving: Target | None) -> float:
    """How long the requests of an engine may delay its end: a change has a limit, unloading and recycling wait for the last one."""
    if is_current(key, desired):
        return math.inf
    targets = (desired, serving) if serving else (desired,)
    return max((target.models[key.model].drain_grace_s for target in targets if key.model in target.models), default=0.0)


@dataclass(slots=True)
class _Round:
    desired: Target
    observed: Observed
    now: float
    serving: Target = field(init=False)
    lazy: Residency = field(init=False)
    wanted: tuple[EngineKey, ...] = field(init=False)
    serving_keys: frozenset[EngineKey] = field(init=False)
    gating: frozenset[EngineKey] = field(init=False)
    yielding: set[EngineKey] = field(init=False, default_factory=set)
    over_budget: Reject | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.serving = self.observed.serving or self.desired
        self.lazy = residency(self.desired, self.observed, self.now)
        self.wanted = _wanted_keys(self.desired, self.lazy, self.observed, self.now)
        self.serving_keys = frozenset(key for model in self.serving.models.values() for key in self._serving_engines(model))
        is_candidate = self.serving.generation != self.desired.generation
        self.gating = frozenset(filter(self._is_gating, self.wanted)) if is_candidate else frozenset()

    def _serving_engines(self, model: ModelTarget) -> tuple[EngineKey, ...]:
        """Engines that the serving generation needs until the flip: those that take requests, and those that are to."""
        if not self._is_held(model):
            return ()
        count = min(self.lazy.held.get(model.name, 0), model.replicas) if model.is_lazy else model.replicas
        wanted = wanted_engines(model, count, self.observed, self.now)
        is_to_load = not model.is_lazy or self.desired.models[model.name].digest == model.digest if count else False
        return (*ready_engines(model, self.observed), *(key for key in wanted if is_to_load or key in self.observed.engines))

    def _is_held(self, model: ModelTarget) -> bool:
        """Whether *model* may have engines; a lazy one that the desired generation no longer names keeps what it has."""
        return not model.is_lazy or model.name in self.lazy.held or model.name not in self.desired.models

    def _is_gating(self, key: EngineKey) -> bool:
        """Whether the flip waits for this engine: it is new, and no lazy model that would only be loaded."""
        is_new, is_lazy = key not in self.serving_keys, self.desired.models[key.model].is_lazy
        return is_new and (not is_lazy or any(old.model == key.model and self.state(old) in HOLDS_MEMORY for old in self.serving_keys))

    def state(self, key: EngineKey) -> EngineState | None:
        view = self.observed.engines.get(key)
        return view.state if view else None

    def rejection(self) -> Reject | None:
        for key in sorted(self.gating):
            view = self.observed.engines.get(key)
            if view and view.state in FAILING and view.generation >= self.desired.generation:
                return Reject(self.desired.generation, key.model, view.reason)
            source = self.observed.sources.get(self.desired.models[key.model].source)
            if source and source.state is SourceState.FAILED:
                return Reject(self.desired.generation, key.model, source.reason)
        if self.gating and (reason := refusal(eager_needs(self.desired, self.observed), self.observed.budget_bytes)):
            return Reject(self.desired.generation, min(self.gating).model, reason)
        return None

    def starts(self) -> Iterator[Action]:
        """
        Fetch and start what is wanted, as far as memory reaches, and crashed engines that serve until the flip.

        What does not fit waits until all else is proven; only then has a serving engine to yield for it.
        """
        used = held_bytes(self.observed, self.wanted)
        fetching: set[SourceKey] = set()
        is_proving = any(self.state(key) is EngineState.STARTING for key in self.gating)
        homeless: tuple[EngineKey, int] | None = None
        for key in (*self.wanted, *self._crashed_until_flip()):
            model = self._model_of(key)
            if not self._may_start(key):
                continue
            if not self._has_source(model):
                is_proving |= key in self.gating
                if self._may_fetch(model) and model.source not in fetching:
                    fetching.add(model.source)
                    yield Fetch(model.source)
                continue
            prediction = prediction_of(model, self.observed)
            view = self.observed.engines.get(key) if key in self.wanted else None
            more = prediction.peak_bytes - (taken_bytes(view, self.observed) if view else 0)
            if used + more <= self.observed.budget_bytes:
                used += more
                is_proving |= key in self.gating
                yield Start(key, model.source, self.desired.generation, prediction)
            elif key in self.gating:
                homeless = homeless or (key, used + more - self.observed.budget_bytes)
            elif key.turn:
                self._retire_older(key, used + more - self.observed.budget_bytes)
        if homeless and not is_proving and not self.lazy.is_short:
            self._make_room(*homeless)

    def drops(self) -> Iterator[Action]:
        """Sources that neither generation names."""
        named = {model.source for target in (self.desired, self.serving) for model in target.models.values()}
        yield from (Drop(source) for source in self.observed.sources if source not in named)

    def _crashed_until_flip(self) -> list[EngineKey]:
        return sorted(key for key in self.serving_keys.difference(self.wanted) if self.state(key) is EngineState.BACKOFF)

    def _retire_older(self, key: EngineKey, needed: int) -> None:
        """Where an engine and its next turn have no room at once, the older one stops first: one at a time, if that is enough."""
        if self.yielding or any(view.state in COMING_OR_GOING for view in self.observed.engines.values()):
            return
        older = [old for old in ready_engines(self._model_of(key), self.observed) if old.replica == key.replica]
        if sum(taken_bytes(self.observed.engines[old], self.observed) for old in older) >= needed:
            self.yielding.update(older)

    def _model_of(self, key: EngineKey) -> ModelTarget:
        target = self.desired if key in self.wanted else self.serving
        return target.models[key.model]

    def _may_start(self, key: EngineKey) -> bool:
        view = self.observed.engines.get(key)
        if view is None:
            return True
        return view.state is EngineState.BACKOFF and self.now >= view.retry_at and view.failures < MOST_FAILURES and key not in self.gating

    def _has_source(self, model: ModelTarget) -> bool:
        source = self.observed.sources.get(model.source)
        return source is not None and source.state is SourceState.READY

    def _may_fetch(self, model: ModelTarget) -> bool:
        source = self.observed.sources.get(model.source)
        return source is None or (source.state is SourceState.FAILED and self.now >= source.retry_at)

    def _make_room(self, key: EngineKey, needed: int) -> None:
        """Choose serving engines that stop so that *key* can start; they are started again if it fails."""
        must = [wanted for wanted in self.wanted if wanted in self.gating or not self._model_of(wanted).is_unloadable]
        total = together_bytes([prediction_of(self._model_of(wanted), self.observed) for wanted in must])
        if total > self.observed.budget_bytes:
            reason = lack_of_memory(total - self.observed.budget_bytes, self.observed.budget_bytes)
            self.over_budget = Reject(self.desired.generation, key.model, reason)
            return
        holding = {k: v for k, v in self.observed.engines.items() if v.state in HOLDS_MEMORY and k not in self.wanted}
        freed = sum(taken_bytes(view, self.observed) for k, view in holding.items() if k not in self.serving_keys)
        order = sorted(
            self.serving_keys & holding.keys(),
            key=lambda k: (self.state(k) is EngineState.READY, k.model != key.model, k),
        )
        for victim in order:
            if freed >= needed:
                break
            freed += taken_bytes(holding[victim], self.observed)
            self.yielding.add(victim)

    def routing(self) -> Published:
        """The routing to have in force: the candidate's once all that it changes is ready, else the serving one's."""
        is_whole = all(self.state(key) is EngineState.READY for key in self.gating)
        target = self.desired if is_whole else self.serving
        endpoints = {
            model.name: tuple(key for key in ready_engines(model, self.observed) if self._is_held(model) and key not in self.yielding)
            for model in target.models.values()
        }
        return Published(target.generation, endpoints)

    def upkeep(self, routing: Published, routed: set[EngineKey]) -> Iterator[Action]:
        """What to do about every engine that there is."""
        kept = set(self.wanted)
        kept |= {key for key, view in self.observed.engines.items() if view.state in FAILING and is_current(key, self.desired)}
        if routing.generation == self.serving.generation:
            kept |= self.serving_keys - self.yielding
        for key, view in sorted(self.observed.engines.items()):
            if action := self._upkeep_of(view, key in kept, key in routed):
                yield action

    def _upkeep_of(self, view: EngineView, is_kept: bool, is_routed: bool) -> Action | None:
        match view.state:
            case EngineState.STARTING if not is_kept:
                return Stop(view.key, "no longer wanted")
            case EngineState.READY if not is_kept and not is_routed:
                return self._drain(view)
            case EngineState.DRAINING:
                return self._drain_step(view, is_kept)
            case EngineState.BACKOFF | EngineState.FAILED if not is_kept or self._has_another_chance(view):
                return Forget(view.key)
            case EngineState.BACKOFF if view.failures >= MOST_FAILURES:
                return GiveUp(view.key)
            case EngineState.STOPPED:
                return Forget(view.key)
            case _:
                return None

    def _drain(self, view: EngineView) -> Action:
        if not is_current(view.key, self.desired):
            return Drain(view.key, "change", "replaced or removed")
        if leaving := self.lazy.leaving.get(view.key.model):
            return Drain(view.key, leaving.cause, leaving.reason)
        return Drain(view.key, "recycle", "has outgrown its memory ceiling")

    def _has_another_chance(self, view: EngineView) -> bool:
        """A manifest that is newer than a failure starts the engine afresh, or would after a rollback."""
        if not is_current(view.key, self.desired):
            return view.state is EngineState.FAILED
        return view.generation < self.desired.generation

    def _drain_step(self, view: EngineView, is_kept: bool) -> Action | None:
        if is_kept:
            return Resume(view.key)
        if view.in_flight == 0:
            return Stop(view.key, "drained")
        if self.now - view.since >= _grace_s(view.key, self.desired, self.serving):
            return Stop(view.key, f"drain grace is over with {view.in_flight} requests running")
        return None
