import re
import time
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axiond.errors import RequestError
from axiond.manifest.routes import Match
from axiond.manifest.spec import Manifest
from axiond.routing.conditions import Bounds
from axiond.routing.decision import Condition, CountTokens, Decision, Features, FindDomain, Trace, Tried, Verdict
from axiond.routing.rules import LONGEST_REASON, Rules, Scene, decide
from axiond.routing.sticky import digest
from tests.fakes.rulings import MONDAY, decided, manifest, request, table

CODE = Verdict("code", 0.91, "embedding", {"code": 0.91, "legal": 0.2})
DOMAINS = {"code": {"keywords": ["code"]}, "legal": {"keywords": ["law"]}}


def matches(when: dict[str, Any], features: Features, **meanwhile: Any) -> bool:
    wanted = manifest({"name": "r", "when": when, "models": ["b"]}, domains=DOMAINS)
    return decided(wanted, features, **meanwhile).route == "r"


def asks(**given: Any) -> Features:
    return request("a", **given)


@pytest.mark.parametrize(
    ("when", "meets", "fails"),
    [
        pytest.param({"model": ["x", "a"]}, request("a"), request("b"), id="model"),
        pytest.param({"model": ["*-instruct"]}, request("qwen-instruct"), request("a"), id="model-pattern"),
        pytest.param({"model": ["a.b*"]}, request("a.b"), request("c"), id="model-dot-is-a-dot"),
        pytest.param({"model": ["*"]}, request("line\nbreak\udc80"), None, id="model-any"),
        pytest.param({"path": ["/v1/embeddings"]}, asks(path="/v1/embeddings"), asks(), id="path"),
        pytest.param({"path": ["/v1/*"]}, asks(path="/v1/embeddings"), asks(path="/rerank"), id="path-pattern"),
        pytest.param({"headers": {"x-team": "^ml$"}}, asks(headers={"x-team": "ml"}), asks(headers={"x-team": "mls"}), id="header"),
        pytest.param({"headers": {"x-team": ""}}, asks(headers={"x-team": "\udcff"}), asks(), id="header-missing"),
        pytest.param({"api_key": ["k1", "k2"]}, asks(key=digest("k2")), asks(key=digest("k3")), id="api-key"),
        pytest.param({"api_key": ["k1"]}, asks(key=digest("k1")), asks(), id="no-api-key"),
        pytest.param({"key_group": ["gold"]}, asks(key_group="gold"), asks(key_group="iron"), id="key-group"),
        pytest.param({"key_group": ["gold"]}, asks(key_group="gold"), asks(), id="no-key-group"),
        pytest.param({"stream": True}, asks(is_stream=True), asks(), id="stream"),
        pytest.param({"stream": False}, asks(), asks(is_stream=True), id="no-stream"),
        pytest.param({"tools": True}, asks(has_tools=True), asks(), id="tools"),
        pytest.param({"images": False}, asks(), asks(has_images=True), id="no-images"),
        pytest.param({"response_format": ["json_schema"]}, asks(response_format="json_schema"), asks(), id="response-format"),
        pytest.param({"language": ["es", "pt"]}, asks(language="pt"), asks(language="en"), id="language"),
        pytest.param({"language": ["es"]}, asks(language="es"), asks(), id="language-not-sure"),
        pytest.param({"min_prompt_tokens": 10}, asks(tokens=(10, 12, 15)), asks(tokens=(1, 2, 9)), id="long"),
        pytest.param({"max_prompt_tokens": 10}, asks(tokens=(1, 2, 10)), asks(tokens=(11, 12, 20)), id="short"),
        pytest.param({"keywords": ["Straße"]}, asks(text="die STRASSE."), asks(text="Strassenbahn"), id="keyword"),
        pytest.param({"regex": ["def \\w+\\("]}, asks(text="def f(x)"), asks(text="deaf"), id="regex"),
        pytest.param({"regex": ["^ñ$"]}, asks(text="ñ"), asks(text="\ud800"), id="regex-unicode"),
        pytest.param({"keywords": ["x"], "regex": ["y"]}, asks(text="x y"), asks(text="x"), id="all-conditions"),
    ],
)
def test_a_condition_holds_or_not(when: dict[str, Any], meets: Features, fails: Features | None) -> None:
    assert matches(when, meets)
    assert fails is None or not matches(when, fails)


@pytest.mark.parametrize(
    ("when", "at", "holds"),
    [
        pytest.param({"hours": "08:00-18:00"}, "Mon 08:00", True, id="begins"),
        pytest.param({"hours": "08:00-18:00"}, "Mon 18:00", False, id="ends"),
        pytest.param({"hours": "22:00-06:00"}, "Mon 23:59", True, id="before-midnight"),
        pytest.param({"hours": "22:00-06:00"}, "Tue 05:59", True, id="after-midnight"),
        pytest.param({"hours": "22:00-06:00"}, "Tue 06:00", False, id="night-is-over"),
        pytest.param({"hours": "22:00-06:00", "days": ["mon"]}, "Mon 23:00", True, id="night-of-the-day"),
        pytest.param({"hours": "22:00-06:00", "days": ["mon"]}, "Tue 05:00", True, id="night-into-the-next-day"),
        pytest.param({"hours": "22:00-06:00", "days": ["mon"]}, "Mon 05:00", False, id="night-from-the-day-before"),
        pytest.param({"hours": "22:00-06:00", "days": ["sun"]}, "Mon 05:00", True, id="night-into-the-next-week"),
        pytest.param({"hours": "12:00-24:00"}, "Mon 23:59", True, id="to-the-end-of-the-day"),
        pytest.param({"hours": "12:00-00:00"}, "Mon 23:59", True, id="to-midnight"),
        pytest.param({"hours": "12:00-00:00"}, "Mon 00:00", False, id="midnight-is-outside"),
        pytest.param({"hours": "09:00-09:00"}, "Mon 03:00", True, id="around-the-clock"),
        pytest.param({"days": ["sat", "sun"]}, "Sun 00:00", True, id="days-alone"),
        pytest.param({"days": ["sat", "sun"]}, "Mon 00:00", False, id="other-day"),
    ],
)
def test_hours_and_days(when: dict[str, Any], at: str, holds: bool) -> None:
    day, clock = at.split()
    days = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun").index(day)
    now = MONDAY.replace(hour=int(clock[:2]), minute=int(clock[3:])) + timedelta(days=days)
    assert matches(when, asks(), now=now) is holds


@pytest.mark.parametrize(
    ("bounds", "told", "holds"),
    [
        pytest.param((1000, None), 1000, True, id="exactly-enough"),
        pytest.param((1000, None), 999, False, id="one-too-few"),
        pytest.param((None, 1000), 1001, False, id="one-too-many"),
        pytest.param((900, 1000), 950, True, id="between"),
        pytest.param((1000, None), None, True, id="nobody-counts-so-the-estimate-decides"),
        pytest.param((1101, None), None, False, id="the-estimate-is-below"),
    ],
)
def test_tokens_are_counted_where_the_estimate_leaves_it_open(bounds: tuple[int | None, int | None], told: int | None, holds: bool) -> None:
    least, most = bounds
    when = {name: value for name, value in (("min_prompt_tokens", least), ("max_prompt_tokens", most)) if value is not None}
    asked: list[Any] = []
    assert matches(when, asks(tokens=(800, 1100, 1300)), tokens=told, asked=asked) is holds
    assert asked == [CountTokens("b")]


@pytest.mark.parametrize(
    ("least", "most", "holds"),
    [(5, 10, True), (4, 10, None), (5, 11, None), (0, 5, None), (10, 20, None), (0, 4, False), (11, 20, False), (0, 20, None)],
)
def test_an_estimate_decides_where_all_that_it_may_mean_does(least: int, most: int, holds: bool | None) -> None:
    assert Bounds(5, 10).hold_between(least, most) is holds


def test_questions_are_asked_once_and_only_where_the_rest_holds() -> None:
    """The first rule fails cheaply, the next two share one verdict, and two models' tokenizers are asked."""
    bounds = {"min_prompt_tokens": 100}
    wanted = manifest(
        {"name": "cheap", "when": {"stream": True, "domain": ["legal"], **bounds}, "models": ["a"]},
        {"name": "legal", "when": {"domain": ["legal"], **bounds}, "models": ["a"]},
        {"name": "b", "when": {"domain": ["code"], **bounds}, "models": ["b"]},
        {"name": "b-again", "when": bounds, "models": ["b"]},
        {"name": "own", "when": bounds},
        {"name": "rest", "when": {"domain": ["code"]}, "models": ["c"]},
        domains=DOMAINS,
    )
    asked: list[Any] = []
    decision = decided(wanted, request("first", tokens=(50, 90, 150)), verdict=CODE, tokens=99, asked=asked)
    assert asked == [FindDomain(), CountTokens("b"), CountTokens("a")]
    assert (decision.route, decision.verdict) == ("rest", CODE)


def test_nobody_is_asked_for_domains_where_there_are_none() -> None:
    wanted = manifest({"name": "r", "when": {"domain": ["code"]}, "models": ["b"]}, domains=DOMAINS)
    trace = Trace()
    course = decide(Rules.of(wanted, None), request("a"), Scene(table(wanted), 0.0, MONDAY, lambda _: 0.0), trace)
    with pytest.raises(StopIteration) as end:
        next(course)
    assert end.value.value.models == ("a",)
    assert trace.tried == [Tried("r", None, [Condition("domain", "code", "nobody can tell", None)])]


@pytest.mark.parametrize(
    ("verdict", "route"),
    [(CODE, "code"), (Verdict("", 0.2, "embedding"), ""), (Verdict("legal", 0.5, "keyword"), ""), (None, "")],
    ids=["found", "below-the-threshold", "another", "nobody-knows"],
)
def test_a_domain(verdict: Verdict | None, route: str) -> None:
    wanted = manifest({"name": "code", "when": {"domain": ["code"]}, "models": ["b"]}, domains=DOMAINS)
    assert decided(wanted, request("a"), verdict=verdict).route == route


EVERY = {"model": ["*"]}


@pytest.mark.parametrize(
    ("route", "decision"),
    [
        pytest.param({"models": ["b"]}, {"models": ("b",), "reason": "route=r model"}, id="one-model"),
        pytest.param({}, {"models": ("a",), "reason": "route=r model name"}, id="the-model-asked-for"),
        pytest.param({"fallback": ["a", "c"]}, {"models": ("a", "c"), "reason": "route=r model name"}, id="asked-for-and-fallback"),
        pytest.param({"models": ["first"]}, {"models": ("a",), "reason": "route=r model"}, id="alias"),
        pytest.param(
            {"models": ["b", "c"], "fallback": ["c", "b", "first"]},
            {"models": ("b", "c", "a"), "reason": "route=r model weight"},
            id="fallback-without-repetition",
        ),
        pytest.param(
            {"models": [{"model": "b", "weight": 0}, {"model": "c", "weight": 100}]},
            {"models": ("c",), "reason": "route=r model weight"},
            id="weight-0",
        ),
        pytest.param(
            {"models": ["a", "b"], "choose": "score"},
            {"models": ("b", "a"), "reason": "route=r model score fit=0.90 wait=3s", "is_scored": True},
            id="score",
        ),
        pytest.param(
            {"models": ["a"], "canary": {"model": "c", "percent": 99.999}, "fallback": ["b"]},
            {"models": ("c", "a", "b"), "reason": "route=r model canary"},
            id="canary-falls-back-on-what-it-is-measured-by",
        ),
        pytest.param(
            {"models": ["b"], "shadow": {"model": "c"}}, {"models": ("b",), "shadow": "c", "reason": "route=r model"}, id="shadow"
        ),
        pytest.param({"models": ["b"], "shadow": {"model": "b"}}, {"models": ("b",), "reason": "route=r model"}, id="no-shadow-of-oneself"),
        pytest.param(
            {"models": ["b"], "timeout": "2s", "max_wait": 5, "fallback": ["c"], "fallback_on": ["timeout"]},
            {
                "models": ("b", "c"),
                "timeout_s": 2.0,
                "max_wait_s": 5.0,
                "fallback_on": frozenset({"timeout"}),
                "reason": "route=r model",
            },
            id="fallback-conditions",
        ),
        pytest.param(
            {"models": ["b"], "sampling": {"temperature": 0}},
            {"models": ("b",), "sampling": {"temperature": 0}, "reason": "route=r model"},
            id="sampling",
        ),
        pytest.param(
            {"refuse": {"status": 451, "message": "Not here."}},
            {"fallback_on": frozenset(), "refusal": (451, "Not here."), "reason": "route=r model refuse"},
            id="refusal",
        ),
    ],
)
def test_an_action(route: dict[str, Any], decision: dict[str, Any]) -> None:
    models = {"a": {"aliases": ["first"]}, "b": {"fit": {"code": 0.9}}, "c": {}}
    wanted = manifest({"name": "r", "when": EVERY, **route}, models=models, domains=DOMAINS)
    failures = frozenset({"error", "overload", "timeout"})
    found = decided(wanted, request("a"), outlook_s=lambda model: 3.0, verdict=CODE)
    whole = {"fallback_on": failures, **decision}
    assert found == Decision(route="r", verdict=CODE if "score" in decision["reason"] else None, **whole)


def test_the_system_prompt_goes_along() -> None:
    wanted = manifest({"name": "r", "when": EVERY, "system_prompt": {"text": "Be brief.", "mode": "prepend"}})
    prompt = decided(wanted, request("a")).system_prompt
    assert prompt is not None
    assert (prompt.text, prompt.mode) == ("Be brief.", "prepend")


@pytest.mark.parametrize(
    ("requested", "decision"),
    [
        pytest.param("a", Decision(("a",), reason="name"), id="model"),
        pytest.param("first", Decision(("a",), reason="name"), id="alias"),
        pytest.param("poet", Decision(("a",), reason="name"), id="adapter"),
        pytest.param("plain", "plain", id="route-without-when"),
        pytest.param("named", "given", id="name-in-when"),
    ],
)
def test_a_name_decides_where_no_rule_matches(requested: str, decision: Decision | str) -> None:
    wanted = manifest(
        {"name": "given", "when": {"model": ["named"]}, "models": ["b"]},
        {"name": "plain", "models": ["c"]},
    )
    found = decided(wanted, request(requested))
    assert (found.route if isinstance(decision, str) else found) == decision


def test_a_route_with_when_is_not_asked_for_by_its_name() -> None:
    wanted = manifest({"name": "r", "when": {"stream": True}, "models": ["b"]})
    with pytest.raises(RequestError) as caught:
        decided(wanted, request("r"))
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


@pytest.mark.parametrize("route", ["r", "named"])
def test_a_name_whose_routes_do_not_match_is_told_so(route: str) -> None:
    """Also where the route is called like it."""
    wanted = manifest({"name": route, "when": {"model": ["named"], "stream": True}, "models": ["b"]})
    with pytest.raises(RequestError, match="No route for `named` takes this request"):
        decided(wanted, request("named"))


def test_before_the_first_generation_nothing_is_decided() -> None:
    with pytest.raises(RequestError) as caught:
        next(decide(Rules(), request("auto"), Scene(table(manifest()).__class__(), 0.0, MONDAY, lambda _: 0.0)))
    assert caught.value.status == 503


AUTO_MODELS = {"a": {"fit": {"code": 0.9}}, "b": {"fit": {"code": 0.4}}, "c": {"cost": 9}}


def test_auto_scores_every_model() -> None:
    asked: list[Any] = []
    trace = Trace()
    wanted = manifest(models=AUTO_MODELS, domains=DOMAINS)
    decision = decided(wanted, request("auto"), verdict=CODE, asked=asked, trace=trace, outlook_s=lambda model: 2.0)
    assert (decision.models, decision.reason, decision.verdict) == (("a", "b", "c"), "auto fit=0.90 wait=2s", CODE)
    assert decision.fallback_on == {"error", "overload", "timeout"}
    assert [scored.model for scored in trace.scored] == ["a", "b", "c"]
    assert asked == [FindDomain()]


def test_auto_reads_no_prompt_where_no_model_says_what_it_is_good_at() -> None:
    asked: list[Any] = []
    decided(manifest(models={"a": {}, "b": {}}, domains=DOMAINS), request("auto"), asked=asked)
    assert asked == []


def test_auto_is_a_name_like_others_where_it_is_taken() -> None:
    assert decided(manifest(models={"a": {}, "b": {"aliases": ["auto"]}}), request("auto")).models == ("b",)
    assert decided(manifest({"name": "auto", "models": ["c"]}), request("auto")).route == "auto"


def test_auto_comes_last_to_a_model_that_cannot_answer() -> None:
    wanted = manifest(models=AUTO_MODELS, domains=DOMAINS)
    rules = Rules.of(wanted)
    scene = Scene(table(wanted, rules, cold=("a",)), 0.0, MONDAY, lambda _: 0.0)
    with pytest.raises(StopIteration) as end:
        next(decide(rules, request("auto"), scene))
    assert end.value.value.models[-1] == "a"


@pytest.mark.parametrize(("wait_s", "told"), [(None, "?"), (0.4, "0s"), (90.0, "90s")])
def test_the_reason_tells_the_expected_wait(wait_s: float | None, told: str) -> None:
    decision = decided(manifest(models={"a": {}}), request("auto"), outlook_s=lambda _: wait_s)
    assert decision.reason == f"auto fit=0.50 wait={told}"


def test_a_model_that_cannot_answer_is_never_ready() -> None:
    wanted = manifest(models={"a": {}})
    course = decide(Rules.of(wanted), request("auto"), Scene(table(wanted, cold=("a",)), 0.0, MONDAY, lambda _: 0.0))
    with pytest.raises(StopIteration) as end:
        next(course)
    assert end.value.value.reason == "auto fit=0.50 wait=never"


def test_a_trace_tells_why_and_no_secret() -> None:
    wanted = manifest(
        {"name": "keyed", "when": {"api_key": ["sk-secret"]}, "models": ["b"]},
        {"name": "worded", "when": {"stream": False, "keywords": ["Torte", "Kuchen"], "regex": ["nie", "k.chen"]}, "models": ["b"]},
        {"name": "long", "when": {"min_prompt_tokens": 100, "max_prompt_tokens": 200, "domain": ["code"]}, "models": ["b"]},
        {"name": "unsure", "when": {"language": ["es"]}, "models": ["b"]},
        {"name": "rest", "models": ["c"]},
        domains=DOMAINS,
    )
    trace = Trace()
    features = request("rest", "kein kuchen heute", tokens=(90, 120, 150), key=digest("sk-other"))
    assert decided(wanted, features, verdict=CODE, tokens=99, trace=trace).route == "worded"
    assert trace.tried == [
        Tried("keyed", False, [Condition("api_key", "an API key of the rule", "another key", False)]),
        Tried(
            "worded",
            True,
            [
                Condition("stream", "no", "no", True),
                Condition("keywords", "Torte, Kuchen", "Kuchen", True),
                Condition("regex", "nie, k.chen", "k.chen", True),
            ],
        ),
    ]
    trace = Trace()
    features = request("rest", "secret words", tokens=(90, 120, 150), key=digest("sk-other"))
    assert decided(wanted, features, verdict=CODE, tokens=99, trace=trace).route == "rest"
    assert [(tried.route, tried.matched) for tried in trace.tried] == [
        ("keyed", False),
        ("worded", False),
        ("long", False),
        ("unsure", None),
        ("rest", True),
    ]
    assert trace.tried[2].conditions == [
        Condition("domain", "code", "code (0.91 embedding)", True),
        Condition("prompt_tokens", "100 to 200", "99", False),
    ]
    assert trace.tried[3].conditions == [Condition("language", "es", "not sure", None)]
    assert "secret" not in repr(trace)


def test_the_reason_is_one_short_ascii_line() -> None:
    when = {"model": ["*"], "language": ["es"], "domain": ["code"], "min_prompt_tokens": 5, "headers": {f"x-{n:064}": "" for n in range(4)}}
    headers = dict.fromkeys(when["headers"], "")  # type: ignore[arg-type, call-overload]
    wanted = manifest({"name": "r", "when": when, "models": ["b", "c"]}, domains=DOMAINS)
    reason = decided(wanted, request("ñ\n", language="es", headers=headers, tokens=(1, 6, 9)), verdict=CODE).reason
    assert reason.startswith("route=r model headers.x-0")
    assert len(reason) <= LONGEST_REASON
    assert re.fullmatch("[ -~]+", reason)
    short = {"language": ["es"], "domain": ["code"], "min_prompt_tokens": 5}
    wanted = manifest({"name": "r", "when": short, "models": ["b", "c"]}, domains=DOMAINS)
    reason = decided(wanted, request("ñ", language="es", tokens=(1, 6, 9)), verdict=CODE).reason
    assert reason == "route=r language=es tokens~6 domain=code(0.91 embedding) weight"


def test_names_and_groups_are_known() -> None:
    wanted = manifest(
        {"name": "plain", "models": ["a"]},
        {"name": "r", "when": {"model": ["named", "*-x", "plain"]}, "models": ["b"]},
        server={"key_groups": {"gold": ["k1", "k2"], "iron": ["k2", "k3"]}},
    )
    rules = Rules.of(wanted)
    assert rules.names == ("plain", "named")
    assert [rules.group_of(key) for key in ("k1", "k2", "k3", "k4", "")] == ["gold", "gold", "iron", "", ""]


def test_a_hostile_prompt_costs_no_more_than_its_length() -> None:
    wanted = manifest({"name": "r", "when": {"regex": ["(a+)+$", "(a|aa)+b$"]}, "models": ["b"]})
    features = request("a", "a" * 100_000 + "!")
    started = time.perf_counter()
    assert decided(wanted, features).route == ""
    assert time.perf_counter() - started < 0.1


def test_a_percentage_is_sticky_and_grows_around_those_it_has() -> None:
    wanted = {percent: manifest({"name": "r", "when": {"percent": percent}, "models": ["b"]}) for percent in (10, 30, 100)}
    inside = {
        percent: {talk for talk in map(str, range(1000)) if decided(wanted[percent], request("a", talk=talk)).route} for percent in wanted
    }
    assert inside[10] < inside[30] < inside[100]
    assert len(inside[100]) == 1000
    assert 70 <= len(inside[10]) <= 130  # three standard deviations of 1000 draws
    assert 255 <= len(inside[30]) <= 345


def test_routes_draw_independently() -> None:
    """Of those in one route's half, half are in another's: neither route takes what the other leaves over."""
    one, other = (manifest({"name": name, "when": {"percent": 50}, "models": ["b"]}) for name in ("one", "other"))
    inside = [talk for talk in map(str, range(1000)) if decided(one, request("a", talk=talk)).route]
    both = [talk for talk in inside if decided(other, request("a", talk=talk)).route]
    assert 0.42 <= len(both) / len(inside) <= 0.58


@pytest.mark.parametrize("sticky", ["conversation", "key"])
def test_what_sticks(sticky: str) -> None:
    wanted = manifest({"name": "r", "when": {"percent": 50, "sticky": sticky}, "models": ["b"]})
    by_talk = {decided(wanted, request("a", talk=str(talk), key="k", client="k")).route for talk in range(50)}
    by_key = {decided(wanted, request("a", talk="t", key=str(key), client=str(key))).route for key in range(50)}
    assert len(by_talk) == (2 if sticky == "conversation" else 1)
    assert len(by_key) == (1 if sticky == "conversation" else 2)


def test_shadows_and_weights_are_drawn_apart() -> None:
    route = {"name": "r", "when": EVERY, "models": ["a", "b"], "shadow": {"model": "c", "percent": 25}}
    wanted = manifest(route)
    found = [decided(wanted, request("a"), draw=draw / 2000) for draw in range(2000)]
    by_model = {model: [decision.shadow for decision in found if decision.models[0] == model] for model in ("a", "b")}
    for shadows in by_model.values():
        assert 0.2 <= shadows.count("c") / len(shadows) <= 0.3


WHENS = st.fixed_dictionaries(
    {},
    optional={
        "model": st.lists(st.sampled_from(["a", "b", "x", "a*", "*"]), min_size=1, max_size=2),
        "path": st.just(["/v1/chat/*"]),
        "stream": st.booleans(),
        "tools": st.booleans(),
        "images": st.booleans(),
        "language": st.just(["es"]),
        "keywords": st.just(["café"]),
        "regex": st.just(["\\bcaf"]),
        "domain": st.just(["code"]),
        "min_prompt_tokens": st.integers(0, 50),
        "max_prompt_tokens": st.integers(50, 100),
        "percent": st.floats(1, 100),
        "hours": st.sampled_from(["08:00-18:00", "22:00-06:00"]),
        "headers": st.just({"x-a": "1"}),
    },
)
ROUTES = st.lists(
    st.one_of(
        st.fixed_dictionaries({"when": WHENS}, optional={"models": st.just(["a", "b"]), "fallback": st.just(["c"])}),
        st.fixed_dictionaries({"when": WHENS, "refuse": st.just({"message": "no"})}),
        st.fixed_dictionaries({"models": st.just(["c"])}),
    ),
    max_size=5,
).map(lambda routes: [{"name": f"r{place}", **route} for place, route in enumerate(routes)])
FEATURES = st.builds(
    request,
    st.one_of(st.sampled_from(["a", "b", "auto", "first", "r0", "r1"]), st.text(max_size=5)),
    st.sampled_from(["", "Un CAFE, por favor", "nothing"]),
    tokens=st.lists(st.integers(0, 120), min_size=3, max_size=3).map(lambda three: tuple(sorted(three))),
    talk=st.text(max_size=3),
    is_stream=st.booleans(),
    has_tools=st.booleans(),
    has_images=st.booleans(),
    language=st.sampled_from(["", "es", "en"]),
    headers=st.sampled_from([{}, {"x-a": "1"}]),
    path=st.sampled_from(["/v1/chat/completions", "/v1/embeddings"]),
)


@given(ROUTES, FEATURES, st.floats(0, 1, exclude_max=True), st.sampled_from([CODE, None]), st.none() | st.integers(0, 120))
def test_the_first_rule_that_matches_decides(
    routes: list[dict[str, Any]], features: Features, draw: float, verdict: Verdict | None, tokens: int | None
) -> None:
    """Deciding ends, always alike, traced or not; and one rule at a time in their order comes to the same."""

    def outcome(wanted: Manifest, trace: Trace | None = None) -> Decision | str:
        try:
            return decided(wanted, features, draw=draw, verdict=verdict, tokens=tokens, trace=trace)
        except RequestError as error:
            return str(error)

    def matching(*rules: dict[str, Any]) -> list[str]:
        outcome(manifest(*rules, domains=DOMAINS), trace := Trace())
        return [tried.route for tried in trace.tried if tried.matched]

    wanted = manifest(*routes, domains=DOMAINS)
    assert outcome(wanted) == outcome(wanted) == outcome(wanted, Trace())
    assert matching(*routes) == [name for route in routes for name in matching(route)][:1]


def test_every_condition_of_the_manifest_is_compiled() -> None:
    """A field added to `Match` must not be forgotten here: alone in a rule that cannot match, it makes a condition or two."""
    values: dict[str, Any] = {
        "model": ["x"], "path": ["x"], "headers": {"x": "y"}, "api_key": ["x"], "key_group": ["x"], "stream": True, "tools": True,
        "images": True, "response_format": ["json_object"], "language": ["es"], "min_prompt_tokens": 5, "max_prompt_tokens": 0,
        "keywords": ["x"], "regex": ["x"], "domain": ["code"], "hours": "03:00-04:00", "days": ["sun"], "percent": 1e-9,
    }  # fmt: skip
    assert {*values, "sticky"} == {*Match.model_fields}
    for name, value in values.items():
        tokens = (1, 1, 1)
        assert not matches({name: value}, asks(tokens=tokens), verdict=None), name


@pytest.mark.parametrize(
    ("text", "route"),
    [
        ("a.b", "quoted"),
        ("x end", "end"),
        ("END", "any-case"),
        ("first\nend", "line"),
        ("an end here", ""),
        ("axb", ""),
        ("x)|(?:(", "quoted-to-its-end"),
    ],
    ids=["quoted", "end", "any-case", "line", "none", "no-quote", "quoted-to-its-end"],
)
def test_expressions_of_several_rules_do_not_touch_each_other(text: str, route: str) -> None:
    patterns = {"quoted": "\\Qa.b", "quoted-to-its-end": "\\Q(\\E", "line": "(?m)^end$", "any-case": "(?i)^END$", "end": "end$"}
    wanted = manifest(*({"name": name, "when": {"regex": [pattern]}, "models": ["b"]} for name, pattern in patterns.items()))
    assert decided(wanted, request("a", text)).route == route
    rest = manifest(*({"name": name, "when": {"regex": [patterns[name]]}, "models": ["b"]} for name in patterns if "quoted" not in name))
    assert decided(rest, request("a", text)).route == ("" if "quoted" in route else route)
