"""A verdict under other thresholds: what the index itself would say, or nothing."""

from collections.abc import Mapping
from typing import Any

import pytest

from axiond.manifest.spec import Manifest
from axiond.routing.decision import Verdict
from axiond.routing.judge import Judge, again
from axiond.semantic.index import build_index

TEXTS: dict[str, Any] = {"code": {"keywords": ["python"], "examples": ["Why?"]}, "law": {"keywords": ["contract"]}}


def judge(has_encoder: bool = True, domains: Mapping[str, Any] = TEXTS, **semantic: Any) -> Judge:
    """An index, as if it had an embedding model or had none."""
    manifest = Manifest.model_validate(
        {"domains": domains, "semantic": {"keyword_threshold": 0.6, "threshold": 0.3, "margin": 0.1, **semantic}}
    )
    made = Judge.of(build_index(manifest.domains, manifest.semantic, None))
    return Judge(made.texts, has_encoder, made.keyword_threshold, made.margin, made.thresholds)


def keyword(domain: str = "code", **scores: float) -> Verdict:
    return Verdict(domain, scores.get(domain, 0.0), "keyword", scores)


def embedding(domain: str, tokens: int = 20, **scores: float) -> Verdict:
    return Verdict(domain, scores.get(domain) or max(scores.values()), "embedding", scores, tokens)


THEN = judge()
CASES: dict[str, tuple[Verdict, Judge, str | None]] = {
    "the same": (keyword(code=0.7), THEN, "code"),
    "other examples": (keyword(code=0.7), judge(domains={**TEXTS, "law": {"keywords": ["law"]}}), None),
    "another model": (keyword(code=0.7), judge(embedding_model="/x"), None),
    "other size of the cache": (keyword(code=0.7), judge(cache_entries=1), "code"),
    "keywords still sure": (keyword(code=0.7), judge(keyword_threshold=0.7), "code"),
    "keywords sure anyway": (keyword(code=0.7), judge(threshold=0.9, margin=0.5), "code"),
    "keywords no longer sure": (keyword(code=0.7), judge(keyword_threshold=0.71), None),
    "keywords may be sure": (embedding("law", law=0.5, code=0.1), judge(keyword_threshold=0.5), None),
    "keywords even less sure": (embedding("law", law=0.5, code=0.1), judge(keyword_threshold=0.9), "law"),
    "still like enough": (embedding("law", law=0.5, code=0.1), judge(threshold=0.5), "law"),
    "no longer like enough": (embedding("law", law=0.5, code=0.1), judge(threshold=0.6), ""),
    "like enough now": (embedding("", law=0.2, code=0.25), judge(threshold=0.2), "code"),
    "a domain's own": (embedding("law", law=0.5, code=0.4), judge(domains={**TEXTS, "law": {**TEXTS["law"], "threshold": 0.6}}), "code"),
    "a short prompt is read whole": (embedding("law", law=0.5, code=0.45), judge(margin=0.01), "law"),
    "a long one that is clear": (embedding("law", 64, law=0.5, code=0.1), judge(margin=0.3), "law"),
    "a long one that is not": (embedding("law", 64, law=0.5, code=0.1), judge(margin=0.5), None),
    "a long one without a domain": (embedding("law", 64, law=0.5, code=0.1), judge(threshold=0.6), None),
    "one that was read twice": (embedding("law", 120, law=0.5, code=0.1), judge(margin=0.2), None),
    "one that came too late": (keyword("", code=0.5), judge(threshold=0.2), None),
}


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])
def test_a_verdict_is_given_again_where_it_can_be(case: tuple[Verdict, Judge, str | None]) -> None:
    verdict, now, domain = case
    found = again(verdict, THEN, now)
    assert (found and found.domain) == domain
    if found:
        assert found.score == (verdict.scores[found.domain] if found.domain else max(verdict.scores.values()))


@pytest.mark.parametrize("then", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("now", [0.3, 0.5, 0.6, 0.67, 0.7, 0.9])
@pytest.mark.parametrize("text", ["nothing", "python", "python and a contract", "Python, python: the contract of Python"])
def test_keywords_alone_are_always_judged_again_and_as_by_the_index(then: float, now: float, text: str) -> None:
    old, new = (
        build_index(manifest.domains, manifest.semantic, None)
        for manifest in (Manifest.model_validate({"domains": TEXTS, "semantic": {"keyword_threshold": value}}) for value in (then, now))
    )
    assert again(old.by_keywords(text), Judge.of(old), Judge.of(new)) == new.by_keywords(text)
