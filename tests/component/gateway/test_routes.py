"""Decisions of rules in force: what clients get, what engines see, and what is counted."""

import asyncio
import io
import json
from typing import Any

import aiohttp
import orjson
import pytest
from structlog.testing import capture_logs

from axiond.gateway.route import Aids
from axiond.gateway.shadow import MOST_COPIES
from axiond.manifest.spec import ModelSpec, Route
from axiond.routing.decision import Answer, Decision, Features, Question, Verdict
from axiond.routing.features import Needs
from axiond.routing.rules import Rules, Scene

from .conftest import Fake, Site, SiteMaker, chat, running, until
from .test_failures import dead, error_of

PATH = "/v1/chat/completions"
A = {"x-axiond-model": "a"}


def route(name: str = "r", **fields: Any) -> Route:
    return Route.model_validate({"name": name, **fields})


def told(answer: aiohttp.ClientResponse) -> dict[str, str]:
    """What the answer says of routing, without the reason's details."""
    names = ("model", "route", "reason")
    return {name: answer.headers[f"X-Axiond-{name}"] for name in names if f"X-Axiond-{name}" in answer.headers}


async def asked(site: Site, model: str = "r", path: str = PATH, headers: dict[str, str] | None = None, **fields: Any) -> Any:
    async with site.session.post(path, json=chat(model, **fields), headers=headers) as answer:
        await answer.read()
        return answer


async def body_of(fake: Fake) -> dict[str, Any]:
    body: dict[str, Any] = orjson.loads((await fake.stats())["last"]["body"])
    return body


async def test_a_rule_finds_a_model_for_who_names_none(site: Site) -> None:
    a, b = await site.start_engine("a"), await site.start_engine("b")
    site.route(a, b, routes=(route(when={"headers": {"x-team": "^red$"}}, models=["b"]),))
    unnamed = {"messages": []}
    async with site.session.post(PATH, json=unnamed, headers={"X-Team": "red"}) as answer:
        assert (answer.status, answer.headers["X-Axiond-Model"]) == (200, "b")
    async with site.session.post(PATH, json=unnamed) as answer:
        assert (answer.status, (await error_of(answer))["code"]) == (400, "missing_model")


async def test_a_rule_sends_a_request_elsewhere_and_says_so(site: Site) -> None:
    """The engine hears of its own name; who matches no rule gets what it asked for."""
    a, b = await site.start_engine("a"), await site.start_engine("b")
    site.route(a, b, routes=(route(when={"model": ["a"], "headers": {"x-team": "^red$"}}, models=["b"]),))
    assert told(await asked(site, "a")) == {"model": "a", "reason": "name"}
    moved = await asked(site, "a", headers={"X-Team": "red", "X-Axiond-Model": "forged", "X-Axiond-Other": "forged"})
    assert told(moved) == {"model": "b", "route": "r", "reason": moved.headers["X-Axiond-Reason"]}
    assert moved.headers["X-Axiond-Reason"].startswith("route=r")
    assert (await body_of(b))["model"] == "b"
    assert not [name for name in (await b.stats())["last"]["headers"] if name.lower().startswith("x-axiond")]
    counted = {"route": "r", "model": "b", "outcome": "answered"}
    assert await site.metric("axiond_route_requests_total", **counted) == 1
    assert await site.metric("axiond_route_decision_seconds_count", stage="rules") == 2
    assert site.metrics.requests_by_route() == {"": 1, "r": 1}


async def test_a_refusal_is_in_the_clients_dialect(site: Site) -> None:
    site.route(await site.start_engine("a"), routes=(route(when={"path": ["/v1/*"]}, refuse={"status": 403, "message": "Not here."}),))
    openai, anthropic = [await site.session.post(path, json=chat("a", max_tokens=1)) for path in (PATH, "/v1/messages")]
    for answer in (openai, anthropic):
        assert (answer.status, answer.headers["X-Axiond-Route"], "X-Axiond-Model" in answer.headers) == (403, "r", False)
    assert await openai.json() == {"error": {"message": "Not here.", "type": "permission_error", "param": None, "code": "refused_by_route"}}
    assert (await anthropic.json())["error"] == {"type": "permission_error", "message": "Not here."}
    assert await site.metric("axiond_route_requests_total", route="r", model="", outcome="refused") == 2


async def test_a_refusal_is_no_loss(site: Site) -> None:
    refusal = {"status": 503, "message": "Come again at night."}
    site.route(specs={"a": ModelSpec(source="/m")}, routes=(route(when={"path": ["/v1/*"]}, refuse=refusal),))
    assert (await asked(site, "a")).status == 503
    assert await site.metric("axiond_requests_lost_total", reason="refused_by_route") is None


@pytest.mark.parametrize("name", ["two\r\nX-Axiond-Model: forged", "é\u2028", "\x00", "x" * 300])
async def test_no_request_can_write_headers(site: Site, name: str) -> None:
    """What a rule met of it is in the reason."""
    site.route(await site.start_engine("a"), routes=(route(when={"model": ["*"]}, models=["a"]),))
    answer = await asked(site, name, headers={"X-Team": "red"})
    assert (answer.status, told(answer)["model"], answer.headers.getall("X-Axiond-Model")) == (200, "a", ["a"])
    assert told(answer)["reason"].isascii()


async def test_what_a_route_adds_reaches_the_engine(site: Site) -> None:
    a = await site.start_engine("a")
    adds = {"sampling": {"temperature": 0.2, "max_tokens": 3}, "system_prompt": {"text": "Be brief."}}
    site.route(a, routes=(route(models=["a"], **adds),))
    await asked(site, temperature=0.7)
    assert await body_of(a) == {
        "model": "a",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "say something"}],
        "temperature": 0.7,
        "max_tokens": 3,
    }


async def test_a_long_body_is_changed_in_pieces(site: Site) -> None:
    a = await site.start_engine("a")
    site.route(a, routes=(route(models=["a"], system_prompt={"text": "Be brief.", "mode": "prepend"}),))
    text = "long é " * 400_000
    body = io.BytesIO(orjson.dumps({"model": "r", "messages": [{"role": "user", "content": text}]}))
    async with site.session.post(PATH, data=body, headers={"Content-Type": "application/json"}) as answer:
        assert answer.status == 200
    seen = (await a.stats())["last"]
    assert orjson.loads(seen["body"])["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
    assert "Transfer-Encoding" not in seen["headers"]


async def test_a_body_that_cannot_be_changed_is_left_to_the_engine(site: Site) -> None:
    a = await site.start_engine("a")
    site.route(a, routes=(route(models=["a"], system_prompt={"text": "Be brief."}),))
    async with site.session.post(PATH, json={"model": "r", "messages": "hi"}) as answer:
        await answer.read()
    assert b"Be brief" not in (await a.stats())["last"]["body"].encode()


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "a", "messages": [{"role": "user", "content": "the word"}], "x": NaN, "x": NaN}',
        '{"model": "a", "messages": [{"role": "user", "content": "the word"}]}'.encode("utf-16"),
        b'\xef\xbb\xbf{"mod\\u0065l": "b", "mod\\u0065l": "a", "messages": [{"role": "user", "content": "the \\u0077ord"}]}',
    ],
    ids=["nan", "utf-16", "mark"],
)
async def test_no_way_to_write_a_body_goes_past_a_rule(site: Site, body: bytes) -> None:
    """Python's JSON, and so vLLM, takes more than the standard."""
    a = await site.start_engine("a")
    adds = {"sampling": {"max_tokens": 3}, "system_prompt": {"text": "Be brief.", "mode": "replace"}}
    site.route(a, routes=(route(when={"model": ["a"], "keywords": ["word"]}, **adds),))
    async with site.session.post(PATH, data=body, headers={"Content-Type": "application/json"}) as answer:
        assert told(answer)["route"] == "r"
    seen = json.loads((await a.stats())["last"]["body"])
    assert (seen["model"], seen["max_tokens"], seen["messages"][0]) == ("a", 3, {"role": "system", "content": "Be brief."})


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        pytest.param(("--reject", "500"), "error", id="500"),
        pytest.param(("--reject", "503"), "error", id="503"),
        pytest.param(("--reject", "429"), "overload", id="429"),
        pytest.param(("--fail-requests", "9"), "error", id="cuts-the-connection"),
        pytest.param(("--die-after-tokens", "0"), "error", id="dies-before-the-first-token"),
        pytest.param(("--token-delay", "30"), "timeout", id="says-nothing"),
    ],
)
async def test_the_next_model_answers(site: Site, options: tuple[str, ...], reason: str) -> None:
    """For a reason that the route allows; else the error is the client's."""
    a, b = await site.start_engine("a", *options), await site.start_engine("b")
    adds = {"models": ["a"], "fallback": ["b"], **({"timeout": 0.3} if reason == "timeout" else {})}
    site.route(a, b, routes=(route(fallback_on=[reason], **adds),))
    # A stream of completions begins with its first token.
    answer = await asked(site, path="/v1/completions", prompt="x", stream=True)
    assert (answer.status, told(answer)["model"], str(b.process.pid) in await answer.text()) == (200, "b", True)
    assert told(answer)["reason"].endswith(f"; not a: {reason}")
    if reason != "timeout" and "--die-after-tokens" not in options:
        site.route(a, b, routes=(route(fallback_on=[each for each in ("error", "overload", "timeout") if each != reason], **adds),))
        assert (await asked(site)).status in (429, 500, 503)
    assert await site.metric("axiond_route_fallbacks_total", route="r", reason=reason) == 1
    assert [site.router.in_flight(fake.endpoint.key) for fake in (a, b)] == [0, 0]
    if reason == "timeout":
        await a.wait_for(cancelled=1, running=0)


async def test_what_has_begun_is_not_begun_again(site: Site) -> None:
    a = await site.start_engine("a", "--die-after-tokens", "2", "--token-delay", "0.02")
    b = await site.start_engine("b")
    site.route(a, b, routes=(route(models=["a"], fallback=["b"], timeout=5),))
    answer = await asked(site, stream=True)
    assert "engine_died" in await answer.text()
    assert (told(answer)["model"], (await b.stats())["started"]) == ("a", 0)


async def test_a_slow_stream_that_has_begun_has_all_the_time(site: Site) -> None:
    """The timeout is for the beginning."""
    a, b = await site.start_engine("a", "--token-delay", "0.1"), await site.start_engine("b")
    site.route(a, b, routes=(route(models=["a"], fallback=["b"], timeout=0.3),))
    answer = await asked(site, stream=True, max_tokens=6)
    assert (told(answer)["model"], (await answer.text()).count(str(a.process.pid))) == ("a", 6)


async def test_the_last_model_has_all_the_time(site: Site) -> None:
    """Also when the one before was passed at once."""
    b = await site.start_engine("b", "--token-delay", "0.3")
    site.route(dead(site, "a"), b, routes=(route(models=["a"], fallback=["b"], timeout=0.1),))
    assert told(await asked(site, max_tokens=1))["model"] == "b"
    site.change_pool("a", endpoints=(), reason="it broke")
    assert told(await asked(site, max_tokens=1))["model"] == "b"


async def test_a_turn_that_does_not_come_in_time_is_taken_elsewhere(site: Site) -> None:
    one = ModelSpec(source="/m", max_in_flight=1)
    a, b = await site.start_engine("a", "--token-delay", "0.05"), await site.start_engine("b")
    site.route(a, b, specs={"a": one}, routes=(route(models=["a"], fallback=["b"], timeout=0.2),))
    async with running(asked(site, "a", max_tokens=10_000)):
        await a.wait_for(running=1)
        answer = await asked(site)
        assert (told(answer)["model"], int(answer.headers["X-Axiond-Queue-Wait-Ms"]) >= 200) == ("b", True)
        assert site.router.queued("a") == 0


@pytest.mark.parametrize("limit", [{"timeout": 20}, {"max_wait": 20}])
async def test_a_model_that_is_being_loaded_is_waited_for_where_a_limit_says_how_long(site: Site, limit: dict[str, int]) -> None:
    a, b = await site.start_engine("a"), await site.start_engine("b")
    site.route(a, b, routes=(route(models=["a"], fallback=["b"]), route("limited", models=["a"], fallback=["b"], **limit)))
    site.change_pool("a", endpoints=(), is_coming=True)
    assert told(await asked(site))["model"] == "b"
    async with running(asked(site, "limited")) as waiting:
        await until(lambda: site.router.queued("a") == 1)
        site.change_pool("a", endpoints=(a.endpoint,))
        assert told(await waiting)["model"] == "a"


async def test_a_full_queue_is_passed_and_the_next_model_waited_for(site: Site) -> None:
    one = ModelSpec(source="/m", max_in_flight=1)
    a, b = [await site.start_engine(name, "--token-delay", "0.05") for name in "ab"]
    site.route(a, b, specs={"a": one, "b": one}, routes=(route(models=["a"], fallback=["b"]),), max_queue=0)
    async with running(asked(site, "a", max_tokens=10_000)):
        await a.wait_for(running=1)
        assert told(await asked(site, max_tokens=1)) == {"model": "b", "route": "r", "reason": "route=r name; not a: overload"}
        async with running(asked(site, "b", max_tokens=10_000)):
            await b.wait_for(running=1)
            answer = await asked(site)
            error = await error_of(answer)
    assert (answer.status, answer.headers["X-Axiond-Model"]) == (429, "a")
    assert all(f"model `{model}`" in error["message"] for model in "ab")


async def test_an_error_at_the_end_of_all_models_says_what_was_tried(site: Site) -> None:
    b = await site.start_engine("b", "--reject", "500")
    site.route(dead(site, "a"), b, specs={"c": ModelSpec(source="/c")}, routes=(route(models=["a"], fallback=["b", "c"]),))
    site.change_pool("c", reason="it broke")
    answer = await asked(site)
    message = (await error_of(answer))["message"]
    assert answer.status == 503
    assert "Model `c` cannot answer now: it broke Tried before: " in message
    assert "Model `a` cannot answer now" in message
    assert "Model `b` answered 500." in message


async def test_the_last_models_own_error_is_passed_on(site: Site) -> None:
    a, b = await site.start_engine("a", "--reject", "500"), await site.start_engine("b", "--reject", "501")
    site.route(a, b, routes=(route(models=["a"], fallback=["b"]),))
    answer = await asked(site)
    assert (answer.status, (await error_of(answer))["message"], told(answer)["model"]) == (501, "rejected as told", "b")


async def test_a_request_that_waits_keeps_its_decision(site: Site) -> None:
    """Rules that come later are for later requests."""
    one = ModelSpec(source="/m", max_in_flight=1)
    a, b = await site.start_engine("a", "--token-delay", "0.05"), await site.start_engine("b")
    site.route(a, b, specs={"a": one}, routes=(route(models=["a"]),))
    async with running(asked(site, "a", max_tokens=10_000)) as first, running(asked(site)) as second:
        await until(lambda: site.router.queued("a") == 1)
        site.route(a, b, specs={"a": one}, routes=(route(models=["b"]),))
        assert told(await asked(site))["model"] == "b"
        first.cancel()
        assert told(await second)["model"] == "a"


async def test_a_queue_head_says_where_the_request_went(site: Site) -> None:
    site.route(specs={"a": ModelSpec(source="/m")}, routes=(route(models=["a"]),))
    site.change_pool("a", is_coming=True)
    async with site.session.post(PATH, json=chat("r", stream=True)) as answer:
        assert told(answer) == {"model": "a", "route": "r", "reason": "route=r name"}
        site.route(await site.start_engine("a"), routes=(route(models=["a"]),))
        assert (await answer.text()).endswith("data: [DONE]\n\n")


async def test_a_copy_goes_to_the_shadow_and_its_answer_nowhere(site: Site) -> None:
    a, b = await site.start_engine("a"), await site.start_engine("b", "--answer", "from the shadow")
    site.route(a, b, routes=(route(models=["a"], shadow={"model": "b"}, sampling={"temperature": 0.5}),))
    for is_stream in (False, True):
        answer = await asked(site, stream=is_stream)
        assert (told(answer)["model"], "shadow" in await answer.text()) == ("a", False)
        await b.wait_for(finished=1 + is_stream)
    await until(lambda: site.router.in_flight(b.endpoint.key) == 0)
    assert await body_of(b) == {**chat("b"), "stream": True, "temperature": 0.5}
    labels = {"route": "r", "model": "b"}
    assert await site.metric("axiond_route_shadow_requests_total", **labels, outcome="answered") == 2
    assert await site.metric("axiond_route_shadow_duration_seconds_count", **labels) == 2
    assert (
        await site.metric("axiond_route_shadow_tokens_total", **labels, kind="completion") == 3 + 4
    )  # a stream counts its events, the role among them
    assert await site.metric("axiond_requests_total", model="b", code="200") is None


@pytest.mark.parametrize("state", ["cold", "full", "dead"])
async def test_a_shadow_without_room_is_dropped(site: Site, state: str) -> None:
    """It is neither loaded nor waited for, and the request hears nothing of it."""
    a = await site.start_engine("a")
    b = await site.start_engine("b", "--token-delay", "0.1") if state == "full" else dead(site, "b")
    lazy = ModelSpec(source="/m", load="lazy", max_in_flight=1)
    site.route(a, *([] if state == "cold" else [b]), specs={"b": lazy}, routes=(route(models=["a"], shadow={"model": "b"}),))
    site.change_pool("b", is_lazy=True)
    async with running(asked(site, "b", max_tokens=10_000)) if state == "full" else running(asyncio.sleep(0)):
        await (b.wait_for(running=1) if state == "full" else asyncio.sleep(0))
        assert (await asked(site)).status == 200
    outcome = "failed" if state == "dead" else "dropped"
    await until(lambda: bool(site.metrics.registry.get_sample_value(
        "axiond_route_shadow_requests_total", {"route": "r", "model": "b", "outcome": outcome}
    )))  # fmt: skip
    assert site.router.queued("b") == 0
    if state == "cold":
        assert site.router.demand()["b"].oldest_s is None


async def test_copies_are_bounded_and_end_with_the_daemon(open_site: SiteMaker) -> None:
    site: Site = await open_site(grace_s=0.2)
    a, b = await site.start_engine("a"), await site.start_engine("b", "--token-delay", "30")
    site.route(a, b, routes=(route(models=["a"], shadow={"model": "b"}),))
    answers = await asyncio.gather(*(asked(site) for _ in range(MOST_COPIES + 4)))
    assert {answer.status for answer in answers} == {200}
    await b.wait_for(running=MOST_COPIES)
    labels = {"route": "r", "model": "b"}
    assert await site.metric("axiond_route_shadow_requests_total", **labels, outcome="dropped") == 4
    await asyncio.wait_for(site.close(), 5)
    assert site.router.in_flight(b.endpoint.key) == 0
    assert await site.metric("axiond_route_shadow_requests_total", **labels, outcome="failed") == MOST_COPIES
    await b.wait_for(running=0, cancelled=MOST_COPIES)


async def test_key_groups_are_told_apart_by_routes(site: Site) -> None:
    a, b = await site.start_engine("a"), await site.start_engine("b")
    settings = {"server": {"api_keys": ["plain"], "key_groups": {"gold": ["g1", "g2"]}}}
    routes = (route(when={"model": ["a"], "key_group": ["gold"]}, models=["b"]),)
    site.route(a, b, routes=routes, settings=settings, api_keys=frozenset({"plain", "g1", "g2"}))
    models = [told(await asked(site, "a", headers={"Authorization": f"Bearer {key}"}))["model"] for key in ("plain", "g1", "g2")]
    assert models == ["a", "b", "b"]
    assert (await asked(site, "a", headers={"Authorization": "Bearer other"})).status == 401


async def test_names_that_routes_answer_to_are_listed(site: Site) -> None:
    a = await site.start_engine("a")
    routes = (
        route("plain", models=["a"]),
        route("rule", when={"model": ["fast", "fast-*", "a"]}, models=["a"]),
        route("wall", when={"model": ["secret"]}, refuse={"message": "No."}),
        route("only-adds", when={"model": ["nobody"]}, sampling={"temperature": 0}),
    )
    site.route(a, routes=routes)
    async with site.session.get("/v1/models") as answer:
        listed = {entry["id"]: entry for entry in (await answer.json())["data"]}
    assert list(listed) == ["a", "plain", "fast", "auto"]
    assert {entry["owned_by"] for entry in listed.values()} == {"axiond"}
    assert listed["auto"]["axiond"] == {"kind": "auto", "models": ["a"], "state": "ready"}
    for name, status in (("fast", 200), ("auto", 200), ("rule", 404), ("secret", 404)):
        async with site.session.get(f"/v1/models/{name}") as answer:
            assert answer.status == status
    assert [(await asked(site, name)).status for name in ("plain", "fast", "auto", "rule")] == [200, 200, 200, 404]


async def test_a_stored_response_is_asked_of_the_model_that_made_it(site: Site) -> None:
    """Whatever the rules say by then."""
    a, b = await site.start_engine("a"), await site.start_engine("b")
    site.route(a, b, routes=(route(models=["b"]),))
    async with site.session.post("/v1/responses", json={"model": "r", "input": "hi"}) as answer:
        identity = (await answer.json())["id"]
    site.route(a, b, routes=(route(models=["a"]),))
    async with site.session.get(f"/v1/responses/{identity}") as stored:
        assert ((await stored.json())["pid"], told(stored)["model"]) == (b.process.pid, "b")


async def test_the_series_of_a_removed_route_go_with_it(site: Site) -> None:
    a, b = await site.start_engine("a"), await site.start_engine("b")
    site.route(a, b, routes=(route(models=["a"], shadow={"model": "b"}),))
    await asked(site)
    await b.wait_for(finished=1)
    await until(lambda: site.router.in_flight(b.endpoint.key) == 0)
    assert b'route="r"' in site.metrics.render()
    site.route(a, b)
    assert b'route="r"' not in site.metrics.render()


async def test_the_access_log_says_which_route_and_why(open_site: SiteMaker) -> None:
    with capture_logs() as lines:
        site: Site = await open_site()
        site.route(await site.start_engine("a"), routes=(route(models=["a"], when={"model": ["x"]}),))
        for name in ("x", "a"):
            await asked(site, name)
    by_rule, by_name = lines
    assert (by_rule["route"], by_rule["routed"], by_rule["model"]) == ("r", by_rule["routed"], "a")
    assert by_rule["routed"].startswith("route=r")
    assert ("route" in by_name, by_name["routed"]) == (False, "name")


async def test_questions_are_answered_and_decisions_noted_once(open_site: SiteMaker) -> None:
    noted: list[tuple[str, str]] = []
    questions: list[Question] = []

    async def answer(_rules: Rules, question: Question, seen: Features, body: bytes) -> Answer:
        questions.append(question)
        await asyncio.sleep(0)
        return Verdict("code", 0.9, "embedding", {"code": 0.9}, 5) if b"python" in body and seen.prompt.text else Verdict()

    def note(seen: Features, _needs: Needs, _scene: Scene, decision: Decision) -> None:
        noted.append((seen.requested, decision.route))

    site: Site = await open_site(aids=Aids(answer, note))
    domains = {"domains": {"code": {"keywords": ["python"]}}}
    site.route(
        dead(site, "a"), await site.start_engine("b"), settings=domains, index=object(),
        routes=(route(when={"model": ["a"], "domain": ["code"]}, models=["a"], fallback=["b"]),),
    )  # fmt: skip
    answered = await asked(site, "a", messages=[{"role": "user", "content": "some python"}])
    assert (answered.status, len(questions), noted) == (200, 1, [("a", "r")])
    assert await site.metric("axiond_route_decision_seconds_count", stage="embedding") == 1
    await asked(site, "b")
    assert noted[1:] == [("b", "")]
