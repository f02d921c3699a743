"""What a candidate manifest would do, before anything is done. Pure."""

from typing import Literal

from axiond.manifest.diff import changes, route_changes, server_changes
from axiond.manifest.spec import Change, Manifest, ModelSpec
from axiond.reconcile.generation import model_target
from axiond.reconcile.memory import held_bytes, prediction_of
from axiond.reconcile.state import Observed
from axiond.report import FieldChange, ModelChange, PlanReport


def preview(generation: int, served: Manifest, candidate: Manifest, observed: Observed) -> PlanReport:
    """Compare *candidate* with what is *served*; a model's own memory estimate counts its weights once they are on disk."""
    names = sorted(served.models.keys() | candidate.models.keys())
    return PlanReport(
        generation=generation,
        models=tuple(_model_change(name, served.models.get(name), candidate.models.get(name), observed) for name in names),
        server=server_changes(served.server, candidate.server),
        routes=route_changes(served.routes, candidate.routes),
    )


def _model_change(name: str, old: ModelSpec | None, new: ModelSpec | None, observed: Observed) -> ModelChange:
    if new is None:
        return ModelChange(model=name, verdict="unload")
    estimate = prediction_of(model_target(name, new), observed).peak_bytes
    if old is None:
        return ModelChange(model=name, verdict="load", memory_bytes=estimate * new.replicas)
    fields = changes(old, new)
    if any(field.change == Change.ENGINE for field in fields):
        strategy: Literal["surge", "stop-first"] = "surge" if held_bytes(observed, ()) + estimate <= observed.budget_bytes else "stop-first"
        return ModelChange(model=name, verdict="restart", strategy=strategy, fields=fields, memory_bytes=estimate * new.replicas)
    return ModelChange(model=name, verdict=_live_verdict(fields), fields=fields, memory_bytes=estimate * new.replicas)


def _live_verdict(fields: tuple[FieldChange, ...]) -> Literal["scale", "live", "none"]:
    if any(field.path == "replicas" for field in fields):
        return "scale"
    return "live" if fields else "none"
