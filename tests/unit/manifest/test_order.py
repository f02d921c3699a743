"""Routes that come too late: every request they would take is taken before. Told only where it is so."""

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from axiond.manifest.implies import Condition, covers
from axiond.manifest.routes import Route
from axiond.manifest.spec import Server
from axiond.routing.conditions import Case
from axiond.routing.decision import Features, Prompt
from axiond.routing.rules import Rule
from axiond.routing.sticky import digest
from tests.unit.manifest.test_route_problems import problems, route

GROUPS = Server.model_validate({"key_groups": {"team": ["k1", "k2"], "guests": ["k3"]}}).key_groups
SHADOWED = {
    "everything": ("{}", "{ stream = true }"),
    "the same": ('{ model = ["x"] }', '{ model = ["x"] }'),
    "one name of two": ('{ model = ["x", "y"] }', '{ model = ["y"] }'),
    "names of a pattern": ('{ model = ["gpt-*"] }', '{ model = ["gpt-4", "gpt-5*"] }'),
    "any name": ('{ model = ["*"] }', "{ tools = true }"),
    "paths": ('{ path = ["/v1/*"] }', '{ path = ["/v1/chat/*"] }'),
    "more conditions": ("{ stream = true }", "{ stream = true, tools = false }"),
    "keys of a group": ('{ key_group = ["team"] }', '{ api_key = ["k1"] }'),
    "a group of keys": ('{ api_key = ["k1", "k2", "k0"] }', '{ key_group = ["team"] }'),
    "shorter prompts": ("{ max_prompt_tokens = 100 }", "{ min_prompt_tokens = 5, max_prompt_tokens = 100 }"),
    "hours": ('{ hours = "08:00-18:00" }', '{ hours = "09:00-10:00", days = ["mon"] }'),
    "hours over Sunday's midnight": ('{ days = ["mon", "sun"] }', '{ days = ["sun"], hours = "23:00-01:00" }'),
    "days that are all": ('{ hours = "00:00-24:00" }', '{ days = ["sat"] }'),
    "a header": ('{ headers = { X-A = "" } }', '{ headers = { x-a = "^b$", x-c = "" } }'),
    "words of a phrase": ('{ keywords = ["contract", "Straße"] }', '{ keywords = ["the CONTRACT law", "strasse"] }'),
    "an expression": ('{ regex = ["a+", "b"] }', '{ regex = ["b"] }'),
    "formats": ('{ response_format = ["json_object", "json_schema"] }', '{ response_format = ["json_schema"] }'),
    "languages": ('{ language = ["en", "es"] }', '{ language = ["es"] }'),
    "domains": ('{ domain = ["d", "e"] }', '{ domain = ["e"] }'),
    "all of them": ("{ percent = 100 }", "{ percent = 3 }"),
}
OPEN = {
    "a share": ("{ percent = 99 }", "{ percent = 1 }"),
    "another name": ('{ model = ["x"] }', '{ model = ["y"] }'),
    "a wider pattern": ('{ model = ["gpt-4*"] }', '{ model = ["gpt-*"] }'),
    "fewer conditions": ("{ stream = true, tools = true }", "{ stream = true }"),
    "the other side": ("{ stream = true }", "{ stream = false }"),
    "another group": ('{ key_group = ["team"] }', '{ api_key = ["k1", "k0"] }'),
    "longer prompts": ("{ max_prompt_tokens = 100 }", "{ min_prompt_tokens = 5 }"),
    "other hours": ('{ hours = "08:00-18:00" }', '{ hours = "09:00-18:01" }'),
    "the morning after": ('{ days = ["sat"] }', '{ days = ["sat"], hours = "23:00-01:00" }'),
    "another pattern of a header": ('{ headers = { X-A = "a" } }', '{ headers = { X-A = "aa" } }'),
    "no header": ('{ headers = { X-A = "" } }', "{ stream = true }"),
    "a phrase of the word": ('{ keywords = ["contract law"] }', '{ keywords = ["contract"] }'),
    "a part of a word": ('{ keywords = ["law"] }', '{ keywords = ["lawyer"] }'),
    "the text format": ('{ response_format = ["text"] }', "{ stream = true }"),
}
DOMAINS = '[domains.d]\nkeywords = ["d e"]\n[domains.e]\nkeywords = ["e f"]\n'


def two(first: str, second: str) -> str:
    return route("first", when=first, models='["a"]') + route("second", when=second, models='["b"]') + DOMAINS


@pytest.mark.parametrize("pair", [pytest.param(pair, id=name) for name, pair in SHADOWED.items()])
def test_a_route_behind_one_that_takes_all_its_requests(pair: tuple[str, str]) -> None:
    assert problems(two(*pair)) == [
        '5:3: routes[1]: can never match: the route "first" before it takes all its requests, at axiond.toml:9:3'
        " (move it up, or narrow the other)"
    ]


@pytest.mark.parametrize("pair", [pytest.param(pair, id=name) for name, pair in OPEN.items()])
def test_a_route_that_is_left_a_request(pair: tuple[str, str]) -> None:
    assert problems(two(*pair)) == []


def test_a_name_that_an_earlier_route_takes() -> None:
    text = route("first", when='{ model = ["assist*"] }', models='["a"]') + route("assistant", models='["b"]')
    assert [line[:4] for line in problems(text)] == ["5:3:"]
    assert problems(route("assistant", models='["b"]') + route("second", when='{ model = ["assist*"] }', models='["a"]')) == []


PATTERNS = st.text("ab*", min_size=1, max_size=6)


@settings(max_examples=200)
@given(PATTERNS, PATTERNS, st.lists(st.text("ab", max_size=6), max_size=30))
def test_a_pattern_covers_another_only_if_it_fits_all_that_the_other_fits(general: str, special: str, names: list[str]) -> None:
    if covers(general, special):
        assert all(covers(general, name) for name in names if covers(special, name))


def lists(*values: str) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), max_size=2, unique=True)


CONDITIONS = st.fixed_dictionaries(
    {},
    optional={
        "model": lists("x", "y", "x*", "*"),
        "path": lists("/v1/completions", "/v1/*", "/score"),
        "headers": st.dictionaries(st.sampled_from(["X-A", "x-a", "X-B"]), st.sampled_from(["", "a", "^a"]), max_size=1),
        "api_key": lists("k0", "k1", "k2", "k3"),
        "key_group": lists("team", "guests"),
        "stream": st.booleans(),
        "tools": st.booleans(),
        "response_format": lists("text", "json_object"),
        "language": lists("en", "es"),
        "min_prompt_tokens": st.integers(0, 3),
        "max_prompt_tokens": st.integers(0, 3),
        "keywords": lists("a", "b", "a b", "A", "b a c", "c++", "日本"),
        "regex": lists("", "a", "b+"),
        "hours": st.sampled_from(["00:00-12:00", "06:00-18:00", "22:00-03:00", "00:00-24:00"]),
        "days": lists("mon", "tue", "sun"),
        "percent": st.sampled_from([50, 100]),
    },
)
REQUESTS = st.builds(
    Features,
    requested=st.sampled_from(["x", "y", "xx", "r0", ""]),
    path=st.sampled_from(["/v1/completions", "/v1/messages", "/score"]),
    headers=st.sampled_from([{}, {"X-A": "a", "x-a": "a"}, {"X-A": "ba", "x-a": "ba", "X-B": ""}]),
    key=st.sampled_from(["", *map(digest, ("k0", "k1", "k2", "k3"))]),
    client=st.sampled_from(["c", "d"]),
    is_stream=st.booleans(),
    has_tools=st.booleans(),
    response_format=st.sampled_from(["text", "json_object", "grammar"]),
    language=st.sampled_from(["", "en", "es"]),
    prompt=st.builds(
        lambda text, n: Prompt(text, n, n, n, text), st.sampled_from(["", "a", "b a c", "A  B", "c++ 日本語"]), st.integers(0, 4)
    ),
)
TIMES = st.integers(0, 7 * 1440 - 1).map(lambda minute: datetime(2026, 11, 23 + minute // 1440, minute // 60 % 24, minute % 60))


@settings(max_examples=250, deadline=None)
@given(CONDITIONS, CONDITIONS, st.lists(st.tuples(REQUESTS, TIMES), min_size=1, max_size=15))
def test_one_route_implies_another_only_if_every_request_says_so(
    first: dict[str, Any], more: dict[str, Any], requests: list[tuple[Features, datetime]]
) -> None:
    """The later route often repeats conditions of the earlier one, so that many pairs imply each other."""
    earlier = Route.model_validate({"name": "r", "when": first, "models": ["a"]})
    later = Route.model_validate({"name": "r", "when": {**more, **first}, "models": ["a"]})
    groups = {digest(key.get_secret_value()): group for group, keys in GROUPS.items() for key in keys}
    for one, other in ((later, earlier), (earlier, later)):
        if Condition.of(one, GROUPS).implies(Condition.of(other, GROUPS)):
            for features, now in requests:
                case = Case(features_in_group(features, groups), now)
                assert not holds(one, case) or holds(other, case)


def features_in_group(features: Features, groups: dict[str, str]) -> Features:
    return replace(features, key_group=groups.get(features.key, ""))


def holds(tried: Route, case: Case) -> bool:
    rule, prompt = Rule.of(tried), case.features.prompt
    return all(test.holds(case) for test in rule.tests) and (rule.bounds is None or rule.bounds.hold(prompt.tokens))
