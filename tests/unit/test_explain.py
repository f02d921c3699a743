"""Explanations of routing decisions, without a daemon."""

from datetime import datetime
from typing import Any

import pytest

from axiond.errors import RequestError
from axiond.explain import body_of, explain
from axiond.manifest.spec import Manifest
from axiond.routereport import RouteExplanation, RouteQuestion
from axiond.routing.decision import Answer, CountTokens, Features, FindDomain, Question, Verdict
from axiond.routing.rules import Rules, Scene
from axiond.routing.table import Pool, RouteTable
from axiond.semantic.index import build_index

SECRET = "zanzibar"
MANIFEST = Manifest.model_validate({
    "server": {"key_groups": {"staff": ["k1"]}},
    "models": {"small": {"source": "/m", "fit": {"code": 0.2}}, "big": {"source": "/m", "fit": {"code": 0.9}, "cost": 1.0}},
    "domains": {"code": {"keywords": ["python", "javascript"]}, "legal": {"keywords": ["contract"]}},
    "routes": [
        {"name": "staff", "when": {"key_group": ["staff"], "stream": True}, "models": ["big"]},
        {"name": "code", "when": {"domain": ["code"]}, "models": ["big"], "fallback": ["small"], "shadow": {"model": "small"},
         "sampling": {"temperature": 0.2, "top_p": 0.9}, "system_prompt": {"text": "Be brief."}},
        {"name": "long", "when": {"min_prompt_tokens": 100}, "models": ["big"]},
        {"name": "bad", "when": {"keywords": ["forbidden"]}, "refuse": {"status": 451, "message": "Not here."}},
    ],
})  # fmt: skip
RULES = Rules.of(MANIFEST, build_index(MANIFEST.domains, MANIFEST.semantic, None))


def scene(generation: int = 3, waits_s: dict[str, float | None] | None = None) -> Scene:
    pools = {name: Pool(name, spec, is_coming=True) for name, spec in MANIFEST.models.items()}
    table = RouteTable(generation, pools, MANIFEST.public_names(), {route.name: route for route in MANIFEST.routes}, rules=RULES)
    return Scene(table, 0.0, datetime(2026, 11, 23, 12), lambda model: (waits_s or {}).get(model, 0.0))


async def answer(rules: Rules, question: Question, features: Features, body: bytes) -> Answer:
    match question:
        case FindDomain():
            assert rules.index
            return rules.index.by_keywords(features.prompt.text)
        case CountTokens():
            return 101


async def explained(**asked: Any) -> RouteExplanation:
    return await explain(RouteQuestion(**asked), RULES, scene(), answer)


async def test_every_rule_tried_is_told_up_to_the_first_that_matches() -> None:
    found = await explained(model="auto", prompt="Translate this javascript to python")
    assert [(rule.route, rule.matched) for rule in found.tried] == [("staff", False), ("code", True)]
    assert [(it.name, it.holds) for it in found.tried[0].conditions] == [("key_group", False)]
    assert (found.generation, found.route, found.models, found.shadow) == (3, "code", ("big", "small"), "small")
    assert found.verdict
    assert (found.verdict.domain, found.verdict.stage) == ("code", "keyword")
    assert [step.step for step in found.steps] == ["features", "domain", "rules"]
    assert all(step.took_us >= 0 for step in found.steps)


async def test_what_a_route_sets_is_what_the_request_does_not_say() -> None:
    said = {"model": "auto", "temperature": 1, "messages": [{"role": "user", "content": "python javascript"}]}
    assert (await explained(body=said)).rewrites == {"top_p": 0.9, "messages": "system prompt, default"}
    said["messages"] = [{"role": "system", "content": "x"}, {"role": "user", "content": "python javascript"}]
    assert (await explained(body=said)).rewrites == {"top_p": 0.9}


async def test_a_refusal_is_no_error() -> None:
    found = await explained(model="auto", prompt="a forbidden thing")
    assert (found.refusal, found.models) == ((451, "Not here."), ())


async def test_an_unknown_model_is_told_as_clients_would_hear() -> None:
    found = await explained(model="bigg", prompt="hi")
    assert found.refusal
    assert found.refusal[0] == 404
    assert "`big`" in found.refusal[1]
    assert len(found.tried) == len(MANIFEST.routes)


async def test_scores_are_told_best_first_with_what_was_weighed() -> None:
    waits = {"big": None, "small": 2.0}
    found = await explain(RouteQuestion(model="auto", prompt="hello"), RULES, scene(waits_s=waits), answer)
    assert [(score.model, score.wait_s, score.can_answer) for score in found.scores] == [("small", 2.0, True), ("big", None, True)]
    assert found.models == ("small", "big")


async def test_the_group_of_a_key_is_found_and_the_key_not_told() -> None:
    found = await explained(model="small", prompt="x", key="k1", stream=True)
    assert (found.route, found.features.key_group) == ("staff", "staff")
    assert (await explained(model="small", prompt="x", key_group="staff", stream=True)).route == "staff"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings"])
async def test_no_text_of_the_prompt_comes_back(path: str) -> None:
    found = await explained(
        path=path, model="auto", prompt=f"{SECRET} python javascript", key=SECRET, client=SECRET, headers={"X-A": SECRET}
    )
    assert found.route == "code"
    assert SECRET not in found.model_dump_json()


async def test_prompts_are_counted_only_where_it_matters() -> None:
    found = await explained(model="small", prompt="word " * 90)
    assert [step.step for step in found.steps] == ["features", "domain", "tokens", "rules"]
    assert found.route == "long"


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"body": {"model": "small"}, "prompt": "x"}, "either a `body`"),
        ({"body": {"model": "small", "messages": "\ud800"}}, "no JSON that could be sent"),
        ({"model": "small", "path": "/v1/chat"}, "No model answers on /v1/chat"),
    ],
    ids=["two-requests", "no-text", "no-such-path"],
)
async def test_a_question_that_makes_no_sense_is_an_error(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        await explained(**asked)
    assert caught.value.status == 400


async def test_a_request_that_names_no_model_and_fits_no_rule_is_refused() -> None:
    found = await explained(body={"messages": []})
    assert found.refusal
    assert (found.refusal[0], "say which `model`" in found.refusal[1]) == (400, True)


async def test_before_any_manifest_is_served_that_is_what_is_told() -> None:
    found = await explain(RouteQuestion(body={}), Rules(), Scene(RouteTable(), 0.0, datetime(2026, 1, 1), lambda _: None), answer)
    assert found.refusal
    assert found.refusal[0] == 503


def test_short_form() -> None:
    assert body_of(RouteQuestion(model="m", prompt="hi", stream=True)) == {
        "model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True,
    }  # fmt: skip
    assert body_of(RouteQuestion(prompt="hi", path="/v1/completions")) == {"prompt": "hi"}


async def test_a_verdict_without_domain_is_told_too() -> None:
    found = await explained(model="small", prompt="hello")
    assert found.verdict
    assert Verdict(found.verdict.domain) == Verdict("")
