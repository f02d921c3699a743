"""What engines take of the memory budget. Pure."""

from collections.abc import Collection

from axiond.reconcile.state import HOLDS_MEMORY, EngineKey, EngineState, EngineView, ModelTarget, Observed
from axiond.resources.estimate import Prediction


def held_bytes(observed: Observed, wanted: Collection[EngineKey]) -> int:
    """Memory that is taken: by engines that run, and by wanted ones that are about to run again."""
    return sum(
        taken_bytes(view, observed)
        for key, view in observed.engines.items()
        if view.state in HOLDS_MEMORY or (view.state is EngineState.BACKOFF and key in wanted)
    )


def taken_bytes(view: EngineView, observed: Observed) -> int:
    """What an engine takes of the budget: its load peak until it is ready, then what it holds, or more if it was seen to."""
    prediction = observed.predictions.get(view.key.digest, view.prediction)
    if view.state is EngineState.STARTING:
        return max(prediction.peak_bytes, view.used_bytes)
    return max(prediction.steady_bytes, view.used_bytes)


def lack_of_memory(lacking_bytes: int, budget_bytes: int) -> str:
    return f"does not fit: {lacking_bytes / 2**30:.1f} GiB more than the memory budget of {budget_bytes / 2**30:.1f} GiB"


def prediction_of(model: ModelTarget, observed: Observed) -> Prediction:
    """What one engine of *model* is expected to take; roughly, as long as its checkpoint is not known."""
    if known := observed.predictions.get(model.digest):
        return known
    source = observed.sources.get(model.source)
    return Prediction(weights_bytes=source.weight_bytes if source else 0, fixed_bytes=model.fixed_bytes)
