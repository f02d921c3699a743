"""
Which engine ends so that the kernel kills nobody. Pure.

This is for the moment before memory is gone, when there is no time to drain. What can be foreseen is the plan's: the budget
shrinks while memory is short, and lazy models are unloaded.
"""

from axiond.reconcile.state import EngineKey, EngineState, EngineView, Observed, Target
from axiond.resources.estimate import gib

TOLERANCE = 1.15  # predictions are as good as this
CAN_END = frozenset({EngineState.STARTING, EngineState.READY, EngineState.DRAINING})


def sacrifice(desired: Target, observed: Observed) -> tuple[EngineKey, str] | None:
    """
    Choose an engine to stop at once, and say why; None if there is none, or one is stopping already.

    Who takes most beyond what was expected of it goes first; if nobody does, whom it costs least to lose.
    """
    if any(view.state is EngineState.STOPPING for view in observed.engines.values()):
        return None
    views = [view for view in observed.engines.values() if view.state in CAN_END]
    if not views:
        return None
    worst = max(views, key=_excess_bytes)
    if _excess_bytes(worst) > 0:
        expected = worst.prediction.peak_bytes
        return worst.key, f"took {gib(worst.used_bytes)} GiB where {gib(expected)} were expected, and memory ran out"
    least = min(views, key=lambda view: _loss(view, desired))
    return least.key, "had to end because memory ran out, though engines took no more than expected"


def _excess_bytes(view: EngineView) -> int:
    return view.used_bytes - int(TOLERANCE * view.prediction.peak_bytes)


def _loss(view: EngineView, desired: Target) -> tuple[bool, bool, bool, int, float]:
    model = desired.models.get(view.key.model)
    if model is None or model.digest != view.key.digest:
        return False, False, view.in_flight > 0, 0, view.since
    return True, not model.is_lazy or model.is_pinned, view.in_flight > 0, model.priority, view.since
