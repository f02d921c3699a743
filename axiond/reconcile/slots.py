"""
Which engine stands for each replica of a model. Pure.

An engine that has outgrown its ceiling is recycled: the next turn of the same replica starts, and takes over.
"""

from axiond.reconcile.state import EngineKey, EngineState, EngineView, ModelTarget, Observed, Target

RECYCLE_AGE_S = 60.0
LOADS_PER_LIFE = 10  # an engine lives for so many times its load, however low its ceiling is


def is_current(key: EngineKey, target: Target) -> bool:
    """Whether *target* has this engine's model as it is, running or not."""
    model = target.models.get(key.model)
    return model is not None and model.digest == key.digest and key.replica < model.replicas


def wanted_engines(model: ModelTarget, count: int, observed: Observed, now: float) -> tuple[EngineKey, ...]:
    """The engines to have of *model*: for each replica its newest turn, or the next one if that is to be recycled."""
    return tuple(_wanted(model, replica, observed, now) for replica in range(count))


def ready_engines(model: ModelTarget, observed: Observed) -> tuple[EngineKey, ...]:
    """The engines of *model* that can take requests, one for each replica at most."""
    newest: dict[int, EngineKey] = {}
    for key in sorted(observed.engines):
        if observed.engines[key].state is EngineState.READY and _is_of(key, model) and key.replica < model.replicas:
            newest[key.replica] = key
    return tuple(newest.values())


def recycle_due_s(view: EngineView) -> float | None:
    """From when an engine is to be replaced by its like; None if it has not outgrown its ceiling."""
    if view.used_bytes <= view.ceiling_bytes or view.state not in (EngineState.READY, EngineState.DRAINING, EngineState.STOPPING):
        return None
    if view.state is not EngineState.READY:
        return view.since
    return view.since + max(RECYCLE_AGE_S, LOADS_PER_LIFE * (view.prediction.load_s or 0.0))


def _wanted(model: ModelTarget, replica: int, observed: Observed, now: float) -> EngineKey:
    views = [view for key, view in observed.engines.items() if _is_of(key, model) and key.replica == replica]
    alive = [view for view in views if view.state is not EngineState.FAILED]
    if not views:
        return EngineKey(model.name, model.digest, replica)
    newest = max(alive or views, key=lambda view: view.key.turn)
    due_s = recycle_due_s(newest)
    if due_s is None or now < due_s or len(alive) < len(views):
        return newest.key
    return EngineKey(model.name, model.digest, replica, newest.key.turn + 1)


def _is_of(key: EngineKey, model: ModelTarget) -> bool:
    return key.model == model.name and key.digest == model.digest
