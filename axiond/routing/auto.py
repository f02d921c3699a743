"""How good each model is for a request: its fit for the domain, minus the expected wait, minus its cost. Pure."""

import math
from collections.abc import Mapping

from axiond.manifest.routes import Auto
from axiond.manifest.spec import ModelSpec
from axiond.routing.decision import Scored, Verdict

UNKNOWN_FIT = 0.5
UNKNOWN_WAIT_S = 30.0  # nobody has measured it, so the model is not ready; most loads take 10 to 60 s


def score_models(auto: Auto, specs: Mapping[str, ModelSpec], verdict: Verdict | None, waits_s: Mapping[str, float | None]) -> list[Scored]:
    """
    Score every model of *specs*, best first.

    Args:
        auto: the weights.
        specs: the models to choose from, in the manifest's order.
        verdict: what the prompt is about; without a domain every model fits alike.
        waits_s: seconds until each model would answer. None: not known, taken for 30 s. A model that cannot answer at
            all has `math.inf` or is not in it; it comes after all others, whatever the weights.

    Equal scores: the higher `priority` first, then the manifest's order.
    """
    shares = domain_shares(verdict)
    scored = [_score(auto, name, spec, fit(spec, shares), waits_s.get(name, math.inf)) for name, spec in specs.items()]
    return sorted(scored, key=lambda found: (found.wait_s == math.inf, -found.score, -specs[found.model].priority))


def domain_shares(verdict: Verdict | None) -> Mapping[str, float]:
    """
    What a prompt is about, in shares that sum to 1; empty where it has no domain.

    A domain counts by how far its score lies above half of the winner's: one that is nearly as likely counts nearly as
    much, one that is half as likely not at all.
    """
    if verdict is None or not verdict.domain:
        return {}
    floor = verdict.score / 2
    above = {domain: score - floor for domain, score in verdict.scores.items() if floor < score <= verdict.score}
    above[verdict.domain] = verdict.score - floor or 1.0
    total = sum(above.values())
    return {domain: part / total for domain, part in above.items()}


def fit(spec: ModelSpec, shares: Mapping[str, float]) -> float:
    """How good a model is at the domains of a prompt."""
    return sum(share * spec.fit.get(domain, UNKNOWN_FIT) for domain, share in shares.items()) if shares else UNKNOWN_FIT


def _score(auto: Auto, name: str, spec: ModelSpec, fitness: float, wait_s: float | None) -> Scored:
    expected_s = UNKNOWN_WAIT_S if wait_s is None else wait_s
    counted_s = expected_s if auto.residency and math.isfinite(expected_s) else 0.0
    score = auto.fit * fitness - auto.wait * counted_s - auto.cost * spec.cost
    return Scored(model=name, score=score, fit=fitness, wait_s=wait_s, cost=spec.cost)
