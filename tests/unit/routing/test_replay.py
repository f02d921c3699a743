"""Requests that were decided, decided anew from hashes: as in earnest, or it is said that it cannot be told."""

import json
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from axiond.errors import RequestError
from axiond.manifest.spec import Manifest
from axiond.report import Move, TrafficPlan, Untold
from axiond.routing import replay as replaying
from axiond.routing.decision import Answer, CountTokens, Decision, Features, Question
from axiond.routing.features import features
from axiond.routing.recall import MOST_WORDS, NOT_READ
from axiond.routing.recall import Untold as CannotTell
from axiond.routing.replay import Bench, Outcome, Replay, candidate_table
from axiond.routing.rules import Rules, Scene, decide
from axiond.routing.table import RouteTable
from axiond.semantic.index import build_index

MONDAY = datetime(2026, 11, 23, 9, 30)
MODELS: dict[str, Any] = {"a": {"source": "x"}, "b": {"source": "x", "fit": {"code": 1.0}}, "c": {"source": "x", "aliases": ["tiny"]}}
DOMAINS = {"code": {"keywords": ["python", "stack trace"]}, "law": {"keywords": ["contract"]}}
WAITS_S = {"a": 0.0, "b": 3.0, "c": None}


def table(*routes: Mapping[str, Any], **tables: Any) -> RouteTable:
    raw = {"models": MODELS, "routes": routes, **tables}
    manifest = Manifest.model_validate(raw)
    index = build_index(manifest.domains, manifest.semantic, None) if manifest.domains else None
    found = candidate_table(RouteTable(), manifest, Rules.of(manifest, index))
    server = manifest.server
    return RouteTable(**{name: getattr(found, name) for name in ("generation", "pools", "names", "routes", "api_keys", "rules")}
                      | {"replay_requests": server.replay_requests, "keep_prompts": server.keep_prompts})  # fmt: skip


def body(text: str = "", **fields: Any) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": text}], **fields}).encode()


class Request:
    """One request as it came in."""

    def __init__(self, requested: str = "a", text: str = "", path: str = "/v1/chat/completions", key: str = "", client: str = "ip",
                 headers: Mapping[str, str] = {}, draw: float = 0.0, now: datetime = MONDAY, **fields: Any) -> None:  # fmt: skip
        self.requested, self.path, self.key, self.client, self.draw, self.now = requested, path, key, client, draw, now
        self.headers = CIMultiDict(headers)
        self.body = None if path.startswith("/v1/audio/") else body(text, **fields)

    def __repr__(self) -> str:
        return str(vars(self))

    def seen_by(self, rules: Rules) -> Features:
        group = rules.group_of(self.key)
        return features(self.requested, self.path, self.headers, self.key or self.client, self.key, group, self.body, rules.needs)

    def decided_by(self, by: RouteTable) -> Decision:
        """In earnest; tokens are counted as estimated, and one more."""
        rules = by.rules or Rules()
        seen = self.seen_by(rules)
        deciding = decide(rules, seen, Scene(by, self.draw, self.now, WAITS_S.get))
        answer: Answer = None
        try:
            while True:
                answer = _answer(rules, seen, deciding.send(answer))
        except StopIteration as made:
            decision: Decision = made.value
            return decision

    def outcome(self, by: RouteTable) -> Outcome:
        try:
            decision = self.decided_by(by)
        except RequestError as exc:
            return Outcome("", "", exc.status)
        if decision.refusal:
            return Outcome(decision.route, "", decision.refusal[0])
        return Outcome(decision.route, decision.models[0])


def _answer(rules: Rules, seen: Features, question: Question) -> Answer:
    if isinstance(question, CountTokens):
        return seen.prompt.tokens + 1
    assert rules.index
    return rules.index.by_keywords(seen.prompt.text)


def remembered(by: RouteTable, *requests: Request) -> Replay:
    replay = Replay()
    for request in requests:
        try:
            decision = request.decided_by(by)
        except RequestError:
            continue
        rules = by.rules or Rules()
        replay.note(request.seen_by(rules), rules.needs, Scene(by, request.draw, request.now, WAITS_S.get), decision)
    return replay


def plan(served: RouteTable, candidate: RouteTable, *requests: Request) -> TrafficPlan:
    return remembered(served, *requests).moves(served, candidate, WAITS_S).report()


def when(name: str, model: str = "b", **conditions: Any) -> dict[str, Any]:
    return {"name": name, "when": conditions, "models": [model]}


WORDS = ("alpha", "Beta", "python", "stack", "trace", "contract", "C++", "日本語", "é", "the")
TEXTS = st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join) | st.just("w " * (MOST_WORDS - 1) + "w511 python C++")


def some(*values: Any) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=2, unique=True)


CONDITIONS = st.fixed_dictionaries(
    {},
    optional={
        "model": some("a", "*", "auto", "gpt-*", "gpt-4"),
        "path": some("/v1/chat/*", "/v1/audio/*", "/v1/completions"),
        "headers": st.dictionaries(st.sampled_from(["X-A", "x-b", "Authorization"]), st.sampled_from(["", "1"]), min_size=1, max_size=1),
        "key_group": some("team"),
        "api_key": some("k0", "k1"),
        "stream": st.booleans(),
        "tools": st.booleans(),
        "min_prompt_tokens": st.integers(0, 12),
        "max_prompt_tokens": st.integers(3, 900),
        "keywords": some("alpha", "stack trace", "trace stack", "c++", "日本", "E", "python", "w511 python"),
        "regex": some("(?i)beta", "trace$", "^$"),
        "domain": some("code", "law"),
        "hours": st.sampled_from(["08:00-12:00", "22:00-06:00"]),
        "days": some("mon", "tue"),
        "percent": st.sampled_from([30, 70]),
        "sticky": st.sampled_from(["key", "conversation"]),
    },
)
ACTIONS = st.fixed_dictionaries(
    {"models": st.sampled_from([["a"], ["b"], ["a", "b"], [{"model": "a", "weight": 30}, {"model": "c", "weight": 70}], []])},
    optional={
        "choose": st.sampled_from(["score", "weight"]),
        "canary": st.sampled_from([{"model": "c", "percent": 40}, {"model": "b", "percent": 50, "sticky": "key"}]),
    },
) | st.just({"refuse": {"status": 451, "message": "no"}})
ROUTES = st.lists(st.builds(lambda when, act: {"when": when, **act}, CONDITIONS, ACTIONS), max_size=3)
TABLES = st.builds(
    lambda routes, domains, keep, server, keyword_threshold: table(
        *({"name": f"r{n}", **route} for n, route in enumerate(routes)),
        domains=domains,
        server={"keep_prompts": keep, **server},
        semantic={"keyword_threshold": keyword_threshold},
    ),
    ROUTES,
    st.sampled_from([DOMAINS, {**DOMAINS, "law": {"keywords": ["alpha"]}}]),
    st.booleans(),
    st.sampled_from([{}, {"api_keys": ["k0"], "key_groups": {"team": ["k1"]}}, {"api_keys": ["k0", "k1"]}]),
    st.sampled_from([0.5, 0.8]),
)
REQUESTS = st.builds(
    Request,
    requested=st.sampled_from(["a", "tiny", "auto", "gpt-4"]),
    text=TEXTS,
    path=st.sampled_from(["/v1/chat/completions", "/v1/completions", "/v1/audio/transcriptions"]),
    key=st.sampled_from(["k0", "k1"]),
    client=st.sampled_from(["ip", "other"]),
    headers=st.sampled_from([{}, {"X-A": "1"}, {"x-a": "2", "Authorization": "1"}]),
    draw=st.floats(0, 1, exclude_max=True),
    now=st.sampled_from([MONDAY, MONDAY.replace(hour=23), MONDAY.replace(day=24, hour=5)]),
    stream=st.booleans(),
    tools=st.sampled_from([[], [{"type": "function"}]]),
)
TOLD: Counter[bool] = Counter()


@settings(max_examples=200, deadline=None)
@given(TABLES, TABLES, st.lists(REQUESTS, min_size=1, max_size=8))
def test_what_hashes_tell_is_what_the_requests_themselves_tell(served: RouteTable, candidate: RouteTable, requests: list[Request]) -> None:
    """For the rules in force it is always told, for others perhaps; but never wrongly."""
    for request in requests:
        replay = remembered(served, request)
        moves = replay.moves(served, candidate, WAITS_S)
        for kept in moves.kept:
            rules = candidate.rules
            assert rules
            assert rules.index
            assert Bench(served, moves.hashes, WAITS_S, None).outcome(kept) == request.outcome(served)
            try:
                told = Bench(candidate, moves.hashes, WAITS_S, rules.index.by_keywords).outcome(kept)
            except CannotTell:
                TOLD[False] += 1
                continue
            TOLD[True] += 1
            keys = candidate.api_keys
            assert told == (request.outcome(candidate) if not keys or request.key in keys else Outcome("", "", 401))


def test_most_is_told() -> None:
    """Else the property above would say little."""
    assert TOLD[True] > 0.5 * TOLD.total()
