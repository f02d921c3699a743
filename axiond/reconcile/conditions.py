"""The state of things in six sentences, as Kubernetes words them. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from axiond.reconcile.plan import wanted_keys, without_room
from axiond.reconcile.residency import residency
from axiond.reconcile.slots import is_current
from axiond.reconcile.state import FAILING, HOLDS_MEMORY, EngineKey, EngineState, Observed, SourceState, Target
from axiond.report import Condition, ConditionType, RejectionReport

Statement = tuple[Literal["True", "False", "Unknown"], str, str]


@dataclass(frozen=True, slots=True)
class Facts:
    """What the conditions are read off: *refusal* is why the newest manifest was not accepted, *lack* what is done without."""

    desired: Target
    observed: Observed
    now_s: float
    newest_generation: int
    refusal: str = ""
    rejection: RejectionReport | None = None
    restart_fields: tuple[str, ...] = ()
    lack: str = ""


def unsettled(desired: Target, observed: Observed, now: float) -> tuple[str, ...]:
    """
    What is still on its way, in words.

    An engine that has failed once is not waited for, nor a lazy model, unless it changes while it is loaded.
    """
    waiting, homeless = [], without_room(desired, observed, now)
    for key in wanted_keys(desired, observed, now):
        if desired.models[key.model].is_lazy and not _replaces(key, observed):
            continue
        view = observed.engines.get(key)
        source = observed.sources.get(desired.models[key.model].source)
        if view is None and (key in homeless or (source and source.state is SourceState.FAILED)):
            continue
        if view is None:
            waiting.append(f"{key.model}: fetching {source.reason}" if source and source.reason else f"{key.model}: about to start")
        elif view.state is not EngineState.READY and not view.is_troubled:
            waiting.append(f"{key.model}: engine is {view.state}")
    if observed.serving is None or observed.serving.generation != desired.generation:
        waiting = waiting or ["about to publish"]
    return tuple(waiting)


def _replaces(key: EngineKey, observed: Observed) -> bool:
    return any(old.model == key.model and old.digest != key.digest and view.state in HOLDS_MEMORY for old, view in observed.engines.items())


def troubles(observed: Observed, now: float) -> tuple[str, ...]:
    """What is wrong with the engines of the serving generation."""
    if observed.serving is None:
        return ()
    lacking = {key.model: reason for key, reason in without_room(observed.serving, observed, now).items()}
    found = [f"{model}: {reason}" for model, reason in {**lacking, **residency(observed.serving, observed, now).refused}.items()]
    for model in observed.serving.models.values():
        for key, view in observed.engines.items():
            if key.model == model.name and view.state in FAILING and is_current(key, observed.serving):
                found.append(f"{key.model}: {view.reason}")
        source = observed.sources.get(model.source)
        if source and source.state is SourceState.FAILED:
            found.append(f"{model.name}: {source.reason}")
    return tuple(dict.fromkeys(found))


def unserved(observed: Observed) -> tuple[str, ...]:
    """Eager models of the serving generation without an engine that takes requests."""
    if observed.serving is None or observed.published is None:
        return ("nothing is published yet",)
    endpoints = observed.published.endpoints
    return tuple(name for name, model in observed.serving.models.items() if not model.is_lazy and not endpoints.get(name))


def statements(facts: Facts) -> Mapping[ConditionType, Statement]:
    """Say every condition."""
    moving = unsettled(facts.desired, facts.observed, facts.now_s)
    wrong = troubles(facts.observed, facts.now_s)
    missing = unserved(facts.observed)
    restart = ", ".join(facts.restart_fields)
    degraded = [*wrong, *([facts.lack] if facts.lack else [])]
    if facts.refusal:
        degraded.append("the newest manifest was refused; the last good one is served")
    if restart:
        degraded.append(f"a restart of axiond is needed for {restart}")
    rejection = facts.rejection
    return {
        ConditionType.ACCEPTED: ("False", "ManifestInvalid", facts.refusal) if facts.refusal else ("True", "ManifestValid", ""),
        ConditionType.PLANNED: ("False", "Rejected", rejection.reason) if rejection else ("True", "Planned", ""),
        ConditionType.PROGRESSING: ("True", "Converging", "; ".join(moving)) if moving else ("False", "Settled", ""),
        ConditionType.READY: ("False", "EnginesMissing", ", ".join(missing)) if missing else ("True", "AllServed", ""),
        ConditionType.DEGRADED: ("True", "Trouble", "; ".join(degraded)) if degraded else ("False", "AsDesired", ""),
        ConditionType.ROLLED_BACK: ("True", "CandidateFailed", f"generation {rejection.generation}: {rejection.model}: {rejection.reason}")
        if rejection
        else ("False", "NoRollback", ""),
    }


def conditions(before: Iterable[Condition], facts: Facts, now: datetime) -> tuple[Condition, ...]:
    """Say every condition, keeping the time of those whose status did not change."""
    known = {condition.type: condition for condition in before}
    return tuple(
        Condition(
            type=kind,
            status=status,
            reason=reason,
            message=message,
            observed_generation=facts.newest_generation,
            last_transition_time=known[kind].last_transition_time if kind in known and known[kind].status == status else now,
        )
        for kind, (status, reason, message) in statements(facts).items()
    )
