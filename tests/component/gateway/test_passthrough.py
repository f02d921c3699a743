"""What goes through, goes through unchanged."""

import io

import aiohttp
import orjson
import pytest

from axiond.manifest.spec import ModelSpec, Route, Weighted

from .conftest import Site, chat, running

SPEC = ModelSpec(source="/m", aliases=("alias", "other"), lora={"poet": "/poet"})


async def test_a_body_reaches_the_engine_byte_for_byte(site: Site) -> None:
    fake = await site.start_engine("m")
    site.route(fake)
    raw = '{ "messages":[], "seed": 123456789012345678901234567890, "x": "\\u00e9é", "temperature": 0.10, "model" :"m" }'.encode()
    headers = {
        "Content-Type": "application/json; charset=utf-8",
        "Authorization": "Bearer secret",
        "X-Custom": "1",
        "X-Request-ID": "abc-1",
    }
    async with site.session.post("/v1/chat/completions?debug=1", data=raw, headers=headers) as answer:
        assert (answer.status, answer.headers["X-Request-ID"]) == (200, "abc-1")
        assert answer.headers["Content-Type"] == "application/json"
    seen = (await fake.stats())["last"]
    assert (seen["body"].encode(), seen["path"]) == (raw, "/v1/chat/completions?debug=1")
    assert seen["headers"]["X-Custom"] == "1"
    assert seen["headers"]["X-Request-ID"] == "abc-1"
    assert "Authorization" not in seen["headers"]


async def test_an_answer_comes_back_byte_for_byte(site: Site) -> None:
    fake = await site.start_engine("m")
    site.route(fake)
    body = chat(max_tokens=5, stream=True, stream_options={"include_usage": True})
    async with site.session.post("/v1/chat/completions", json=body) as answer:
        text = await answer.text()
    events = [orjson.loads(line[6:]) for line in text.split("\n\n")[:-2]]
    words = [event["choices"][0]["delta"].get("content", "") for event in events if event["choices"]]
    assert "".join(words) == "".join(f"{fake.process.pid}:{index} " for index in range(5))
    assert events[-1]["usage"]["completion_tokens"] == 5
    assert text.endswith("\n\ndata: [DONE]\n\n")
    assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["X-Fake-Pid"] == str(fake.process.pid)


@pytest.mark.parametrize(("asked", "sent"), [("m", "m"), ("alias", "m"), ("poet", "poet"), ("route", "m")])
async def test_an_alias_or_route_is_replaced_by_the_engines_name(site: Site, asked: str, sent: str) -> None:
    fake = await site.start_engine("m", "--lora-modules", "poet=/poet")
    route = Route(name="route", models=(Weighted(model="m"),))
    site.route(fake, specs={"m": SPEC}, routes=(route,))
    raw = b'{"n": 123456789012345678901234567890, "model": "%b", "messages": []}' % asked.encode()
    async with site.session.post("/v1/chat/completions", data=raw, headers={"Content-Type": "application/json"}) as answer:
        assert (await answer.json())["model"] == sent
    assert (await fake.stats())["last"]["body"].encode() == (
        raw if asked == sent else b'{"n":123456789012345678901234567890,"model":"m","messages":[]}'
    )


@pytest.mark.parametrize("named", [None, "", "m"])
async def test_the_only_model_needs_no_name(site: Site, named: str | None) -> None:
    fake = await site.start_engine("m")
    site.route(fake)
    async with site.session.post("/tokenize", json={"prompt": "a b c", **({} if named is None else {"model": named})}) as answer:
        # An empty name is the engine's to judge: the fake knows no model "".
        assert answer.status == (404 if named == "" else 200)


async def test_one_of_several_models_needs_a_name(site: Site) -> None:
    site.route(specs={"a": ModelSpec(source="/a"), "b": ModelSpec(source="/b")})
    async with site.session.post("/v1/completions", json={"prompt": "x"}) as answer:
        error = (await answer.json())["error"]
    assert (answer.status, error["code"], error["param"]) == (400, "missing_model", "model")


async def test_every_path_reaches_the_engine(site: Site) -> None:
    fake = await site.start_engine("m")
    site.route(fake)
    paths = (
        "/v1/completions", "/v1/responses", "/v1/embeddings", "/v2/embed", "/v1/rerank", "/rerank", "/v2/rerank", "/v1/score",
        "/score", "/tokenize", "/detokenize", "/pooling", "/classify", "/v1/messages", "/v1/messages/count_tokens",
    )  # fmt: skip
    for path in paths:
        async with site.session.post(path, json={"model": "m", "input": "x", "prompt": "x", "messages": []}) as answer:
            assert answer.status == 200
        assert (await fake.stats())["last"]["path"] == path


@pytest.mark.parametrize(("asked", "is_changed"), [("m", False), ("alias", True), (None, False)])
async def test_a_form_reaches_the_engine(site: Site, asked: str | None, is_changed: bool) -> None:
    fake = await site.start_engine("m")
    site.route(fake, specs={"m": SPEC})
    form = aiohttp.FormData()
    form.add_field("file", b"RIFF\r\n\r\n--not-a-boundary\r\n", filename="model", content_type="audio/wav")
    if asked:
        form.add_field("model", asked)
    form.add_field("language", "en")
    async with site.session.post("/v1/audio/transcriptions", data=form) as answer:
        assert answer.status == 200, await answer.text()
        length = (await answer.json())["bytes"]
    body = (await fake.stats())["last"]["body"]
    assert "RIFF\r\n\r\n--not-a-boundary\r\n" in body
    assert ('name="model"\r\n\r\nm\r\n' in body) == (asked is not None)
    assert len(body) == length
    assert ("alias" in body) is False
    assert is_changed == (asked == "alias")


async def test_a_stored_response_is_asked_of_the_model_that_made_it(site: Site) -> None:
    first, second = await site.start_engine("a"), await site.start_engine("b")
    site.route(first, second)
    async with site.session.post("/v1/responses", json={"model": "b", "input": "x"}) as answer:
        identity = (await answer.json())["id"]
    async with site.session.get(f"/v1/responses/{identity}") as answer:
        assert (await answer.json())["pid"] == second.process.pid
    async with site.session.post(f"/v1/responses/{identity}/cancel") as answer:
        assert answer.status == 200
    async with site.session.get("/v1/responses/resp_unknown") as answer:
        assert answer.status == 400
    assert (await second.stats())["last"]["path"] == f"/v1/responses/{identity}/cancel"


async def test_models_lists_every_name_with_its_state(site: Site) -> None:
    fake = await site.start_engine("m")
    route = Route(name="route", models=(Weighted(model="lazy"),), fallback=("m",))
    site.route(fake, specs={"m": SPEC, "lazy": ModelSpec(source="/l", load="lazy")}, routes=(route,))
    site.change_pool("lazy", is_lazy=True)
    async with site.session.get("/v1/models") as answer:
        listed = {entry["id"]: entry["axiond"] for entry in (await answer.json())["data"]}
    assert {name: (entry["kind"], entry["state"]) for name, entry in listed.items()} == {
        "m": ("model", "ready"),
        "alias": ("alias", "ready"),
        "other": ("alias", "ready"),
        "poet": ("adapter", "ready"),
        "lazy": ("model", "unloaded"),
        "route": ("route", "ready"),
        "auto": ("auto", "ready"),
    }
    assert (listed["poet"]["parent"], listed["m"]["parent"], listed["m"]["root"]) == ("m", None, "/m")
    async with site.session.get("/v1/models/alias") as answer:
        assert (await answer.json())["id"] == "alias"
    async with site.session.get("/v1/models/nope") as answer:
        assert answer.status == 404


async def test_the_engine_with_fewer_requests_is_asked(site: Site) -> None:
    first, second = await site.start_engine("m", "--token-delay", "30"), await site.start_engine("m", replica=1)
    site.route(first, second)
    async with running(site.session.post("/v1/chat/completions", json=chat())):
        await first.wait_for(started=1)
        async with site.session.post("/v1/chat/completions", json=chat()) as answer:
            assert answer.status == 200
    assert (await second.stats())["finished"] == 1


async def test_a_large_body_goes_through(site: Site) -> None:
    fake = await site.start_engine("m")
    site.route(fake)
    body = io.BytesIO(orjson.dumps({"model": "m", "prompt": "x" * 3_000_000}))
    async with site.session.post("/v1/completions", data=body, headers={"Content-Type": "application/json"}) as answer:
        assert answer.status == 200
    assert len((await fake.stats())["last"]["body"]) > 3_000_000
