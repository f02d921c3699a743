"""What engines take of the memory budget. Pure."""

from collections.abc import Collection

from axiond.reconcile.state import HOLDS_MEMORY, EngineKey, EngineState, EngineView, ModelTarget, Observed, Target
from axiond.resources.estimate import Prediction
from axiond.resources.sums import Needs


def held_bytes(observed: Observed, wanted: Collection[EngineKey]) -> int:
    """Memory that is taken: by engines that run, and by wanted ones that are about to run again."""
    return sum(
        taken_bytes(view, observed)
        for key, view in observed.engines.items()
        if view.state in HOLDS_MEMORY or (view.state is EngineState.BACKOFF and key in wanted)
    )


def settled_bytes(observed: Observed, wanted: Collection[EngineKey]) -> int:
    """As `held_bytes()`, once those that load now are ready."""
    loading = [view for view in observed.engines.values() if view.state is EngineState.STARTING]
    steady = [observed.predictions.get(view.key.digest, view.prediction).steady_bytes for view in loading]
    return held_bytes(observed, wanted) + sum(steady) - sum(taken_bytes(view, observed) for view in loading)


def taken_bytes(view: EngineView, observed: Observed) -> int:
    """What an engine takes of the budget: its load peak until it is ready, then what it holds, or more if it was seen to."""
    prediction = observed.predictions.get(view.key.digest, view.prediction)
    if view.state is EngineState.STARTING:
        return max(prediction.peak_bytes, view.used_bytes)
    return max(prediction.steady_bytes, view.used_bytes)


def needed_bytes(model: ModelTarget, count: int, observed: Observed) -> tuple[int, int]:
    """What the first *count* engines of *model* take once all are ready, and what starting one of them takes on top; 0 if none has to."""
    prediction = prediction_of(model, observed)
    more_bytes = prediction.peak_bytes - prediction.steady_bytes
    running: dict[int, int] = {}
    is_starting = False
    for key, view in observed.engines.items():
        if key.model != model.name or key.digest != model.digest or key.replica >= count:
            continue
        if view.state is EngineState.FAILED:
            running.setdefault(key.replica, 0)
        elif view.state in (EngineState.STARTING, EngineState.READY, EngineState.DRAINING):
            loading_bytes = more_bytes if view.state is EngineState.STARTING else 0
            running[key.replica] = max(running.get(key.replica, 0), prediction.steady_bytes, view.used_bytes - loading_bytes)
            is_starting |= view.state is EngineState.STARTING
    missing = count - len(running)
    extra = more_bytes if missing or is_starting else 0
    return sum(running.values()) + missing * prediction.steady_bytes, extra


def load_seconds(model: ModelTarget, observed: Observed) -> float | None:
    """How long a start of *model* took last; None if none was measured."""
    known = observed.predictions.get(model.digest)
    return known.load_s if known else None


def eager_needs(desired: Target, observed: Observed) -> Needs:
    """What the models take that are always loaded, as far as it is known; what is not counts nothing."""
    return {model.name: (model.replicas, prediction_of(model, observed)) for model in desired.models.values() if not model.is_lazy}


def prediction_of(model: ModelTarget, observed: Observed) -> Prediction:
    """What one engine of *model* is expected to take; roughly, as long as its checkpoint is not known."""
    if known := observed.predictions.get(model.digest):
        return known
    source = observed.sources.get(model.source)
    return Prediction(weights_bytes=source.weight_bytes if source else 0, fixed_bytes=model.fixed_bytes)
