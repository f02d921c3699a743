"""Scores of models for `auto`, as tables."""

import math
from collections.abc import Mapping
from typing import Any

import pytest

from axiond.manifest.spec import Auto, ModelSpec
from axiond.routing.auto import UNKNOWN_FIT, UNKNOWN_WAIT_S, domain_shares, score_models
from axiond.routing.decision import Scored, Verdict


def specs(**models: Mapping[str, Any]) -> dict[str, ModelSpec]:
    return {name: ModelSpec.model_validate({"source": "x", **fields}) for name, fields in models.items()}


MODELS = specs(small={"fit": {"code": 0.6}}, coder={"fit": {"code": 1.0}, "cost": 2.0}, plain={})
CODE = Verdict("code", 0.6, "embedding", {"code": 0.6, "legal": 0.2})
READY = dict.fromkeys(MODELS, 0.0)


@pytest.mark.parametrize(
    ("auto", "waits_s", "verdict", "order"),
    [
        pytest.param({}, READY, CODE, ["coder", "small", "plain"], id="fit-decides-among-the-ready"),
        pytest.param({}, READY | {"coder": 10.0}, CODE, ["small", "plain", "coder"], id="a-load-outweighs-fit"),
        pytest.param({}, READY | {"coder": None}, CODE, ["small", "plain", "coder"], id="an-unknown-wait-is-30-s"),
        pytest.param({}, READY | {"coder": 5.0}, CODE, ["small", "coder", "plain"], id="a-short-wait-costs-one-place"),
        pytest.param({"residency": False}, READY | {"coder": 99.0}, CODE, ["coder", "small", "plain"], id="residency-off"),
        pytest.param({"wait": 0}, READY | {"coder": None}, CODE, ["coder", "small", "plain"], id="waits-weigh-nothing"),
        pytest.param({"cost": 1.0}, READY, CODE, ["small", "plain", "coder"], id="cost-decides"),
        pytest.param({"fit": 0}, READY, CODE, ["small", "plain", "coder"], id="fit-weighs-nothing"),
        pytest.param({}, READY, None, ["small", "plain", "coder"], id="no-verdict"),
        pytest.param({}, READY, Verdict("", 0.2, "embedding", {"code": 0.2}), ["small", "plain", "coder"], id="no-domain-reached"),
        pytest.param({}, READY | {"coder": math.inf}, CODE, ["small", "plain", "coder"], id="cannot-answer"),
        pytest.param({"residency": False}, READY | {"coder": math.inf}, CODE, ["small", "plain", "coder"], id="nor-with-residency-off"),
        pytest.param({}, {"plain": None}, CODE, ["plain", "coder", "small"], id="who-can-answer-comes-before-who-cannot"),
    ],
)
def test_order(auto: dict[str, Any], waits_s: Mapping[str, float | None], verdict: Verdict | None, order: list[str]) -> None:
    assert [found.model for found in score_models(Auto(**auto), MODELS, verdict, waits_s)] == order


def test_ties_are_decided_by_priority_and_then_by_the_manifest() -> None:
    alike = specs(c={}, a={}, b={"priority": 1})
    assert [found.model for found in score_models(Auto(), alike, None, dict.fromkeys(alike, 1.0))] == ["b", "c", "a"]


def test_what_is_said_of_a_model_is_what_was_weighed() -> None:
    (best, *_) = score_models(Auto(fit=2.0, wait=0.1, cost=0.5), specs(m={"fit": {"code": 0.75}, "cost": 0.5}), CODE, {"m": 4.0})
    assert best == Scored("m", score=2.0 * 0.75 - 0.1 * 4.0 - 0.5 * 0.5, fit=0.75, wait_s=4.0, cost=0.5)


def test_an_unknown_wait_stays_unknown_in_what_is_said() -> None:
    (best,) = score_models(Auto(wait=0.01), specs(m={}), None, {"m": None})
    assert (best.wait_s, best.score) == (None, UNKNOWN_FIT - 0.01 * UNKNOWN_WAIT_S)


@pytest.mark.parametrize(
    ("verdict", "shares"),
    [
        pytest.param(None, {}, id="nothing-known"),
        pytest.param(Verdict(), {}, id="no-domain"),
        pytest.param(Verdict("code", 0.8, "keyword", {"code": 0.8}), {"code": 1.0}, id="one"),
        pytest.param(Verdict("code", 0.8, "keyword", {}), {"code": 1.0}, id="without-scores"),
        pytest.param(Verdict("code", 0.0, "keyword", {"code": 0.0, "legal": 0.0}), {"code": 1.0}, id="a-threshold-of-nothing"),
        pytest.param(Verdict("code", 0.6, "embedding", {"code": 0.6, "tech": 0.6}), {"code": 0.5, "tech": 0.5}, id="equals"),
        pytest.param(Verdict("code", 0.6, "embedding", {"code": 0.6, "tech": 0.4}), {"code": 0.75, "tech": 0.25}, id="a-second"),
        pytest.param(Verdict("code", 0.6, "embedding", {"code": 0.6, "tech": 0.3}), {"code": 1.0}, id="half-as-likely"),
        pytest.param(Verdict("code", 0.5, "embedding", {"code": 0.5, "tech": 0.8}), {"code": 1.0}, id="above-but-under-its-threshold"),
    ],
)
def test_domains_share_by_how_far_they_lie_above_half_of_the_winner(verdict: Verdict | None, shares: dict[str, float]) -> None:
    assert domain_shares(verdict) == pytest.approx(shares)


def test_fits_are_mixed() -> None:
    verdict = Verdict("code", 0.6, "embedding", {"code": 0.6, "tech": 0.4})
    (best,) = score_models(Auto(), specs(m={"fit": {"code": 1.0, "tech": 0.0}}), verdict, {"m": 0.0})
    assert best.fit == pytest.approx(0.75)
