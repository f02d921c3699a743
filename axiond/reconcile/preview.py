"""What a candidate manifest would do, before anything is done. Pure."""

from collections.abc import Mapping
from typing import Literal

from axiond.manifest.diff import auto_changes, changes, domain_changes, route_changes, server_changes
from axiond.manifest.spec import Change, Manifest, ModelSpec
from axiond.reconcile.memory import held_bytes
from axiond.reconcile.state import Observed
from axiond.report import FieldChange, MemoryPlan, ModelChange, PlanReport
from axiond.resources.estimate import Prediction
from axiond.resources.sums import needed_bytes, refusal


def preview(generation: int, served: Manifest, candidate: Manifest, observed: Observed, expected: Mapping[str, Prediction]) -> PlanReport:
    """
    Compare *candidate* with what is *served*.

    Args:
        observed: its budget is the candidate's.
        expected: of the candidate's models, by digest.
    """
    names = sorted(served.models.keys() | candidate.models.keys())
    return PlanReport(
        generation=generation,
        models=tuple(_model_change(name, served.models.get(name), candidate.models.get(name), observed, expected) for name in names),
        server=server_changes(served.server, candidate.server),
        routes=route_changes(served.routes, candidate.routes),
        domains=domain_changes(served, candidate),
        auto=auto_changes(served.auto, candidate.auto),
        memory=_memory(candidate, observed.budget_bytes, expected),
    )


def _memory(candidate: Manifest, budget_bytes: int, expected: Mapping[str, Prediction]) -> MemoryPlan:
    eager = {name: (spec.replicas, expected[spec.digest()]) for name, spec in candidate.models.items() if spec.load == "eager"}
    return MemoryPlan(budget_bytes=budget_bytes, needed_bytes=needed_bytes(eager), problem=refusal(eager, budget_bytes) or "")


def _model_change(
    name: str, old: ModelSpec | None, new: ModelSpec | None, observed: Observed, expected: Mapping[str, Prediction]
) -> ModelChange:
    if new is None:
        return ModelChange(model=name, verdict="unload")
    prediction = expected[new.digest()]
    change = ModelChange(
        model=name, verdict="load", memory_bytes=prediction.peak_bytes * new.replicas, memory_arithmetic=prediction.arithmetic()
    )
    if old is None:
        return change
    fields = changes(old, new)
    if any(field.change == Change.ENGINE for field in fields):
        fits = held_bytes(observed, ()) + prediction.peak_bytes <= observed.budget_bytes
        return change.model_copy(update={"verdict": "restart", "strategy": "surge" if fits else "stop-first", "fields": fields})
    return change.model_copy(update={"verdict": _live_verdict(fields), "fields": fields})


def _live_verdict(fields: tuple[FieldChange, ...]) -> Literal["scale", "live", "none"]:
    if any(field.path == "replicas" for field in fields):
        return "scale"
    return "live" if fields else "none"
