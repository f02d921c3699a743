"""Requests that were decided, decided anew from hashes: as in earnest, or it is said that it cannot be told."""

import json
import pickle
import time
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
from axiond.routing.decision import Answer, CountTokens, Decision, Features, Question
from axiond.routing.features import features
from axiond.routing.recall import MOST_WORDS, NOT_READ
from axiond.routing.recall import Untold as CannotTell
from axiond.routing.replay import NO_TEXT, NO_TIME, Bench, Outcome, Replay, candidate_table
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


def when(name: str, to: str = "b", **conditions: Any) -> dict[str, Any]:
    return {"name": name, "when": conditions, "models": [to]}


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


def move(old: tuple[str, str, int], new: tuple[str, str, int], count: int = 1) -> Move:
    (from_route, from_model, from_status), (to_route, to_model, to_status) = old, new
    return Move(
        from_route=from_route, from_model=from_model, from_status=from_status,
        to_route=to_route, to_model=to_model, to_status=to_status, count=count,
    )  # fmt: skip


NAMED = ("", "a", 0)
PYTHON = Request(text="A python, please")
PREFERS_B = MODELS | {"b": {"source": "x", "priority": 1}}
DOMAIN = when("code", domain=["code"])
MOVES: dict[str, tuple[RouteTable, RouteTable, tuple[Request, ...], list[Move]]] = {
    "nothing": (table(), table(), (Request(),), []),
    "by the name": (table(), table(when("r", model=["a"])), (Request(), Request("b"), Request()), [move(NAMED, ("r", "b", 0), 2)]),
    "an order": (
        table(when("x", stream=True), when("y", "c", tools=False)),
        table(when("y", "c", tools=False), when("x", stream=True)),
        (Request(stream=True), Request(), Request(stream=True, tools=[{"type": "function"}])),
        [move(("x", "b", 0), ("y", "c", 0))],
    ),
    "a share": (
        table(when("r", percent=100)),
        table(when("r", percent=50)),
        tuple(Request(client=f"client {n}", text=f"{n}") for n in range(200)),
        [move(("r", "b", 0), NAMED, 103)],
    ),
    "weights": (
        table({"name": "a1", "when": {}, "models": ["a", "b"]}),
        table({"name": "a1", "when": {}, "models": [{"model": "a", "weight": 25}, {"model": "b", "weight": 75}]}),
        tuple(Request(draw=n / 100) for n in range(100)),
        [move(("a1", "a", 0), ("a1", "b", 0), 25)],
    ),
    "a refusal": (
        table(),
        table({"name": "no", "when": {"model": ["a"]}, "refuse": {"message": "no"}}),
        (Request(),),
        [move(NAMED, ("no", "", 403))],
    ),
    "a model that goes": (table(), table(models={"b": {"source": "x"}}), (Request(),), [move(NAMED, ("", "", 404))]),
    "a model that comes": (
        table(),
        table(when("r", "new"), models={"new": {"source": "x"}}),
        (Request(),),
        [move(NAMED, ("r", "new", 0))],
    ),
    "a key that goes": (
        table(server={"api_keys": ["k0", "k1"]}),
        table(server={"api_keys": ["k0"]}),
        (Request(key="k0"), Request(key="k1")),
        [move(NAMED, ("", "", 401))],
    ),
    "another group": (
        table(when("r", key_group=["g"]), server={"key_groups": {"g": ["k0"], "h": ["k1"]}}),
        table(when("r", key_group=["g"]), server={"key_groups": {"h": ["k0"], "g": ["k1"]}}),
        (Request(key="k0"),),
        [move(("r", "b", 0), NAMED)],
    ),
    "hours": (
        table(),
        table(when("r", hours="10:00-12:00")),
        (Request(), Request(now=MONDAY.replace(hour=11))),
        [move(NAMED, ("r", "b", 0))],
    ),
    "words": (
        table(when("x", keywords=["nothing"])),
        table(when("x", keywords=["PYTHON", "snake"])),
        (PYTHON, Request(text="pythons")),
        [move(NAMED, ("x", "b", 0))],
    ),
    "a phrase": (
        table(when("x", keywords=["nothing"])),
        table(when("x", keywords=["python please"])),
        (PYTHON, Request(text="please python")),
        [move(NAMED, ("x", "b", 0))],
    ),
    "scores": (
        table({"name": "r", "when": {}, "choose": "score", "models": ["a", "b"]}),
        table({"name": "r", "when": {}, "choose": "score", "models": ["a", "b"]}, auto={"residency": False}, models=PREFERS_B),
        (Request(),),
        [move(("r", "a", 0), ("r", "b", 0))],
    ),
    "a threshold of keywords": (
        table(DOMAIN, domains=DOMAINS, semantic={"keyword_threshold": 0.5}),
        table(DOMAIN, domains=DOMAINS, semantic={"keyword_threshold": 0.9}),
        (PYTHON, Request(text="contract")),
        [move(("code", "b", 0), NAMED)],
    ),
    "prompts that are kept": (
        table(server={"keep_prompts": True}),
        table(when("x", regex=["A .*please"], keywords=["thon,"], language=["en"]), when("y", "c", regex=["please$"])),
        (PYTHON, Request(text="please")),
        [move(NAMED, ("y", "c", 0), 2)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in MOVES.items()])
def test_who_would_move_where(case: tuple[RouteTable, RouteTable, tuple[Request, ...], list[Move]]) -> None:
    served, candidate, requests, expected = case
    found = plan(served, candidate, *requests)
    assert (list(found.moves), found.untold, found.requests) == (expected, (), len(requests))


SAID = "their text is not remembered, and the {} of a rule was not looked for then"
UNTOLD: dict[str, tuple[RouteTable, RouteTable, Request, str]] = {
    "no body was read": (table(), table(when("r", stream=True)), Request(), NOT_READ),
    "no text was read": (table(when("r", stream=True)), table(when("r", keywords=["x"])), Request(), NOT_READ),
    "no tokens": (table(when("r", stream=True)), table(when("r", max_prompt_tokens=9)), Request(), NOT_READ),
    "no conversation": (table(when("r", stream=True)), table(when("r", percent=5)), Request(), NOT_READ),
    "no language": (table(when("r", keywords=["x"])), table(when("r", language=["en"])), Request(), NOT_READ),
    "a new pattern": (table(when("r", regex=["a"])), table(when("r", regex=["b"])), Request(), SAID.format("regex")),
    "a new keyword of signs": (table(when("r", keywords=["a"])), table(when("r", keywords=["c++"])), Request(), SAID.format("keywords")),
    "the end of a long prompt": (
        table(when("r", keywords=["a"])),
        table(when("r", keywords=["end"])),
        Request(text="w " * MOST_WORDS + "end"),
        SAID.format("keywords"),
    ),
    "a new header": (table(), table(when("r", headers={"X-New": ""})), Request(), "the header x-new was not looked at then"),
    "no key": (table(), table(server={"api_keys": ["k"]}), Request(), "no API key was asked for then"),
    "what it is about": (table(), table(DOMAIN, domains=DOMAINS), Request(), NO_TEXT),
    "other domains": (
        table(DOMAIN, domains=DOMAINS), table(DOMAIN, domains={**DOMAINS, "code": {"keywords": ["snake"]}}), PYTHON, NO_TEXT,
    ),
    "tokens that were not counted": (
        table(when("r", min_prompt_tokens=4000)),
        table(when("r", min_prompt_tokens=7)),
        PYTHON,
        "how many tokens they have for b was not counted",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in UNTOLD.items()])
def test_what_is_not_remembered_is_not_guessed(case: tuple[RouteTable, RouteTable, Request, str]) -> None:
    served, candidate, request, reason = case
    assert plan(served, candidate, request) == TrafficPlan(requests=1, since=MONDAY, untold=(Untold(reason=reason, count=1),))


def test_one_condition_that_does_not_hold_settles_it() -> None:
    """Whatever is not known of the others, before and after it."""
    assert plan(table(when("r", keywords=["x"])), table(when("r", headers={"X-New": ""}, tools=True, regex=["b"])), PYTHON).untold == ()


def test_no_word_of_a_prompt_and_no_key_is_remembered() -> None:
    served = table(when("r", keywords=["x"], headers={"Authorization": "Bearer h", "X-Team": ""}), server={"api_keys": ["hunter2"]})
    replay = remembered(
        served, Request(text="A secret prompt", key="hunter2", headers={"Authorization": "Bearer hunter2", "X-Team": "blue"})
    )
    kept = replay.moves(served, served, WAITS_S).kept
    text = pickle.dumps(kept[0].features) + repr(kept).encode()
    assert not any(word in text for word in (b"secret", b"prompt text", b"hunter2"))
    assert kept[0].features.headers == {"x-team": "blue"}
    assert kept[0].found == {("authorization", "Bearer h"): True}


def test_words_have_other_hashes_in_another_process() -> None:
    served = table(when("r", keywords=["x"]))
    first, second = (remembered(served, PYTHON).moves(served, served, WAITS_S).kept[0].words for _ in range(2))
    assert first is not None
    assert second is not None
    assert not set(first) & set(second)


def test_as_many_are_remembered_as_the_manifest_says_and_the_latest() -> None:
    few, none = table(server={"replay_requests": 2}), table(server={"replay_requests": 0})
    replay = remembered(few, Request("a"), Request("b"), Request("c"))
    assert [kept.features.requested for kept in replay.moves(few, few, WAITS_S).kept] == ["b", "c"]
    assert replay.moves(none, none, WAITS_S).report() == TrafficPlan(requests=0)
    assert remembered(none, Request()).moves(none, few, WAITS_S).kept == ()


def test_texts_are_forgotten_when_they_are_no_longer_wanted() -> None:
    keeping, forgetting = table(server={"keep_prompts": True}), table()
    replay = remembered(keeping, PYTHON)
    assert [kept.text for kept in replay.moves(keeping, keeping, WAITS_S).kept] == ["A python, please"]
    assert [kept.text for kept in replay.moves(forgetting, keeping, WAITS_S).kept] == [None]
    assert [kept.text for kept in replay.moves(keeping, keeping, WAITS_S).kept] == [None]


def test_what_there_is_no_time_for_is_told() -> None:
    """The latest come first."""
    served, candidate = table(), table(when("r", model=["b"], stream=False))
    moves = remembered(served, Request("a"), Request("b"), Request("a")).moves(served, candidate, WAITS_S)
    ends = iter((False, False, True))
    assert moves.report(lambda: next(ends)).untold == (Untold(reason=NOT_READ, count=1), Untold(reason=NO_TIME, count=1))


def test_a_thousand_requests_and_fifty_rules_take_less_than_a_second() -> None:
    rules = [when(f"r{n}", keywords=[f"k{n}", f"unit k{n}"], stream=True, percent=50) for n in range(50)]
    served, candidate = table(*rules), table(*reversed(rules))
    replay = remembered(served, *(Request(text="some words of a prompt " * 20 + f"{n}", stream=n % 2 == 0) for n in range(200)))
    moves = replay.moves(served, candidate, WAITS_S)
    began_s = time.process_time()
    for _ in range(5):
        moves.report()
    assert time.process_time() - began_s < 1.0
