"""What a candidate would do to the memory."""

from axiond.manifest.spec import Manifest
from axiond.reconcile.preview import preview
from axiond.reconcile.state import EngineKey, EngineState, Observed
from axiond.resources.estimate import Prediction

from .world import GIB, view


def manifest(**models):
    return Manifest.model_validate({"models": {name: {"source": "/m", **spec} for name, spec in models.items()}})


def expected(candidate, gib):
    return {spec.digest(): Prediction(fixed_bytes=gib * GIB) for spec in candidate.models.values()}


def test_a_change_is_a_surge_only_where_both_engines_fit():
    served, candidate = manifest(a={}), manifest(a={"max_num_seqs": 3})
    key = EngineKey("a", served.models["a"].digest())
    engines = {key: view(key, EngineState.READY, gib=4)}
    for budget_gib, strategy in ((8, "surge"), (7, "stop-first")):
        report = preview(2, served, candidate, Observed(engines, budget_bytes=budget_gib * GIB), expected(candidate, 4))
        (change,) = report.models
        assert (change.verdict, change.strategy, change.memory_bytes) == ("restart", strategy, 4 * GIB)
        assert change.memory_arithmetic == "4.0 GiB: processes 4.0"
        assert report.memory.problem == ""


def test_only_models_that_are_always_loaded_have_to_fit_together():
    candidate = manifest(a={"replicas": 2}, b={"load": "lazy"})
    report = preview(1, Manifest(), candidate, Observed(budget_bytes=5 * GIB), expected(candidate, 3))
    assert (report.memory.needed_bytes, report.memory.budget_bytes) == (6 * GIB, 5 * GIB)
    assert report.memory.problem.startswith("does not fit: 1.0 GiB more")
    assert preview(1, Manifest(), candidate, Observed(budget_bytes=6 * GIB), expected(candidate, 3)).memory.problem == ""
