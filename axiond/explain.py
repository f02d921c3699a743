"""How a request would be routed, and why: the same decision as in earnest, but nothing is sent, counted or woken."""

import asyncio
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import orjson
from multidict import CIMultiDict

from axiond.errors import RequestError
from axiond.gateway.body import fields_in_json
from axiond.gateway.rewrite import rewrite
from axiond.gateway.route import Answerer, drive
from axiond.routereport import (
    ConditionTried,
    FeaturesReport,
    RouteExplanation,
    RouteQuestion,
    RuleTried,
    ScoreReport,
    StepReport,
    VerdictReport,
)
from axiond.routing import language
from axiond.routing.choose import only_name
from axiond.routing.decision import Answer, Decision, Features, FindDomain, Question, Scored, Trace, Tried, Verdict
from axiond.routing.features import EVERYTHING, features
from axiond.routing.paths import PATHS
from axiond.routing.rules import Rules, Scene, decide

TEXT_FIELDS = {"/v1/completions": "prompt", "/v1/responses": "input", "/v1/embeddings": "input", "/v1/rerank": "query"}
TEXTS = ("messages", "instructions", "system")


async def explain(asked: RouteQuestion, rules: Rules, scene: Scene, answer: Answerer) -> RouteExplanation:
    """
    Decide about a request and tell how.

    Args:
        asked: the request.
        rules: in force.
        scene: as of any request.
        answer: finds out what a decision asks for.

    Raises:
        RequestError: 400, the request cannot be made sense of.
    """
    if asked.path not in PATHS:
        raise RequestError(400, "invalid_question", f"No model answers on {asked.path[:99]}; try /v1/chat/completions.", param="path")
    watch = _Watch()
    body = body_of(asked)
    try:
        name, content = _name_of(body, scene), orjson.dumps(body)
    except orjson.JSONEncodeError as exc:
        raise RequestError(400, "invalid_question", f"The `body` is no JSON that could be sent: {exc}.", param="body") from exc
    await asyncio.to_thread(language.load)
    with watch.step("features"):
        seen = features(
            name, asked.path, CIMultiDict(asked.headers), asked.client or asked.key, asked.key,
            asked.key_group or rules.group_of(asked.key), content, EVERYTHING, lambda: fields_in_json(content),
        )  # fmt: skip
    trace = Trace()
    try:
        with watch.step("rules"):
            decision = await drive(decide(rules, seen, scene, trace), rules, seen, content, watch.timed(answer))
    except RequestError as exc:
        decision = Decision(reason=exc.code, refusal=(exc.status, str(exc)))
    return RouteExplanation(
        generation=scene.table.generation,
        features=_features(seen),
        tried=tuple(map(_tried, trace.tried)),
        verdict=_verdict(decision.verdict) if decision.verdict else None,
        scores=tuple(map(_score, trace.scored)),
        models=decision.models,
        route=decision.route,
        reason=decision.reason,
        fallback_on=tuple(sorted(decision.fallback_on)),
        timeout_s=decision.timeout_s,
        max_wait_s=decision.max_wait_s,
        shadow=decision.shadow,
        rewrites=_rewrites(asked.path, content, decision),
        refusal=decision.refusal,
        steps=tuple(watch.steps),
    )


def body_of(asked: RouteQuestion) -> dict[str, Any]:
    """The body that is asked about. Raises RequestError when there are two."""
    if asked.body is not None:
        if asked.model or asked.prompt or asked.stream:
            raise RequestError(400, "invalid_question", "Give either a `body`, or `model`, `prompt` and `stream`.", param="body")
        return asked.body
    field = TEXT_FIELDS.get(asked.path)
    said = {field: asked.prompt} if field else {"messages": [{"role": "user", "content": asked.prompt}]}
    return {**({"model": asked.model} if asked.model else {}), **said, **({"stream": True} if asked.stream else {})}


def _name_of(body: Mapping[str, Any], scene: Scene) -> str:
    name = body.get("model")
    return name if isinstance(name, str) and name else only_name(scene.table)


class _Watch:
    """Adds up how long the parts of a decision take; a part within another is not counted twice."""

    def __init__(self) -> None:
        self._took_s: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        began, within_s = time.perf_counter(), sum(self._took_s.values())
        try:
            yield
        finally:
            took_s = time.perf_counter() - began - (sum(self._took_s.values()) - within_s)
            self._took_s[name] = self._took_s.get(name, 0.0) + took_s

    def timed(self, answer: Answerer) -> Answerer:
        async def ask(rules: Rules, question: Question, seen: Features, body: bytes) -> Answer:
            with self.step("domain" if isinstance(question, FindDomain) else "tokens"):
                return await answer(rules, question, seen, body)

        return ask

    @property
    def steps(self) -> list[StepReport]:
        return [StepReport(step=name, took_us=round(took_s * 1e6, 1)) for name, took_s in self._took_s.items()]


def _features(seen: Features) -> FeaturesReport:
    return FeaturesReport(
        model=seen.requested,
        path=seen.path,
        key_group=seen.key_group,
        stream=seen.is_stream,
        tools=seen.has_tools,
        images=seen.has_images,
        response_format=seen.response_format,
        language=seen.language,
        tokens=seen.prompt.tokens,
        least_tokens=seen.prompt.least_tokens,
        most_tokens=seen.prompt.most_tokens,
    )


def _tried(rule: Tried) -> RuleTried:
    conditions = (ConditionTried(name=it.name, wants=it.wants, met=it.met, holds=it.holds) for it in rule.conditions)
    return RuleTried(route=rule.route, matched=rule.matched, conditions=tuple(conditions))


def _verdict(verdict: Verdict) -> VerdictReport:
    return VerdictReport(
        domain=verdict.domain, score=verdict.score, stage=verdict.stage, scores=dict(verdict.scores), tokens=verdict.tokens
    )


def _score(scored: Scored) -> ScoreReport:
    can_answer = scored.wait_s != math.inf
    wait_s = scored.wait_s if can_answer else None
    return ScoreReport(model=scored.model, score=scored.score, fit=scored.fit, wait_s=wait_s, cost=scored.cost, can_answer=can_answer)


def _rewrites(path: str, content: bytes, decision: Decision) -> dict[str, Any]:
    """Fields that the route sets; of those that hold what was said, only how."""
    changed = rewrite(path, fields_in_json(content) or {}, decision.sampling, decision.system_prompt)
    how = f"system prompt, {decision.system_prompt.mode}" if decision.system_prompt else ""
    return {name: how if name in TEXTS else orjson.loads(b"".join(pieces)) for name, pieces in changed.items()}
