"""The daemon, a real vLLM engine, a real model and the official client. One engine serves most tests; it costs half a minute."""

import asyncio
import json
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
import pytest_asyncio

from axiond.manifest.spec import Change, GoldenPrompt, ModelSpec, change_of
from tests.fakes.remains import all_ended
from tests.fakes.running import REAL, Running, running

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tell the weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
GREEDY = {"temperature": 0.0, "max_tokens": 24}
# One other value for every field that must not restart an engine.
LIVE_EDITS = {
    "aliases": ["another"],
    "load": "lazy",
    "priority": 5,
    "start_timeout_s": 500.0,
    "drain_grace_s": 61.0,
    "golden": {"prompt": "Say hello", "expect": "."},
    "replicas": 1,
    "core_share": 2.0,
    "idle_unload": "1h",
    "min_resident": "5s",
    "pin": True,
    "max_in_flight": 4,
    "memory_ceiling": "8GiB",
    "fit": {"geography": 0.9},
    "cost": 2.0,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(smollm2: Path) -> AsyncIterator[Running]:
    model = {
        "source": str(smollm2),
        "aliases": ["default"],
        "kv_cache": "256MiB",
        "max_model_len": 2048,
        "tool_call_parser": "hermes",
        "drain_grace_s": 60,
        "golden": {"prompt": "What is the capital of France?", "expect": "Paris", "min_tokens_per_s": 0.5},
    }
    manifest = {
        "models": {"smollm2": model},
        "server": {"on_exit": "keep", "keep_for": "60s"},
        "domains": {"geography": {"keywords": ["capital of"]}},
        "routes": [{"name": "where", "when": {"model": ["ask"], "domain": ["geography"]}, "models": ["smollm2"], "sampling": GREEDY}],
    }
    with tempfile.TemporaryDirectory(prefix="ax", dir="/tmp") as folder:
        async with running(Path(folder), manifest, *REAL, ready_within_s=300) as found:
            yield found
            kept = [engine.pids for engine in (await found.status()).engines]
        for host, *_ in kept:
            os.kill(host, signal.SIGTERM)
        await all_ended([pid for pids in kept for pid in pids], within_s=30)
        assert list((Path(folder) / "r" / "e").iterdir()) == []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(daemon: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=daemon.base + "/v1", api_key="none", max_retries=0, timeout=120) as found:
        yield found


async def greedy(client, model="smollm2", messages=QUESTION, max_tokens=24):
    answer = await client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=max_tokens)
    return answer.choices[0].message.content


async def test_chat(client):
    assert "Paris" in await greedy(client)
    assert await greedy(client, "default") == await greedy(client)


async def test_a_route_tells_the_domain_and_adds_what_the_request_leaves_open(client):
    raw = await client.chat.completions.with_raw_response.create(model="ask", messages=QUESTION)
    assert raw.parse().choices[0].message.content == await greedy(client)
    assert (raw.headers["X-Axiond-Model"], raw.headers["X-Axiond-Route"]) == ("smollm2", "where")
    assert "geography" in raw.headers["X-Axiond-Reason"]


async def test_stream_is_the_same_answer_in_pieces(client):
    stream = await client.chat.completions.create(
        model="smollm2", messages=QUESTION, temperature=0, max_tokens=24, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == await greedy(client)
    assert len(chunks) > 4
    assert chunks[-1].usage.completion_tokens > 0


async def test_structured_output_obeys_its_schema(client):
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"], "additionalProperties": False}
    answer = await client.chat.completions.create(
        model="smollm2",
        messages=QUESTION,
        temperature=0,
        max_tokens=40,
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
    )
    assert json.loads(answer.choices[0].message.content)["city"] in ("Paris", "Rome")


async def test_named_tool_is_called_with_its_parameters(client):
    answer = await client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        temperature=0,
        max_tokens=64,
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert "Paris" in call.function.arguments


async def test_completions_responses_and_tokenize(client, daemon):
    completion = await client.completions.create(model="smollm2", prompt="The capital of France is", temperature=0, max_tokens=4)
    assert "Paris" in completion.choices[0].text
    response = await client.responses.create(model="smollm2", input="What is the capital of France?", temperature=0, max_output_tokens=24)
    assert "Paris" in response.output_text
    tokens = await client.post(daemon.base + "/tokenize", body={"model": "smollm2", "prompt": "hello"}, cast_to=object)
    assert tokens["count"] >= 1


async def test_anthropic_messages(client, daemon):
    body = {"model": "default", "max_tokens": 24, "temperature": 0, "messages": QUESTION}
    answer = await client.post("/messages", body=body, cast_to=object)
    assert "Paris" in answer["content"][0]["text"]


async def test_errors_are_openais(client):
    with pytest.raises(openai.NotFoundError, match="smollm2") as caught:
        await greedy(client, "smolm2")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(model="smollm2", messages=QUESTION, temperature=-5)
    assert refused.value.body["message"]


async def test_models_are_listed_with_their_state(client):
    listed = {model.id: model.axiond for model in (await client.models.list()).data}
    assert listed["smollm2"]["state"] == "ready"
    assert listed["default"]["parent"] == "smollm2"


async def test_every_live_field_has_an_edit():
    live = {name for name in ModelSpec.model_fields if change_of(ModelSpec, name) is Change.LIVE}
    assert set(LIVE_EDITS) == live
    assert all(change_of(GoldenPrompt, name) is Change.LIVE for name in GoldenPrompt.model_fields)


async def test_no_live_edit_restarts_an_engine(client, daemon):
    before = (await daemon.status()).engines
    spec = dict(daemon.manifest["models"]["smollm2"])
    for field, value in LIVE_EDITS.items():
        daemon.manifest["models"]["smollm2"] = spec | {field: value}
        daemon.write()
        assert (await daemon.reloaded()).is_realised, field
        status = await daemon.status()
        assert [(e.key, e.pids, e.state) for e in status.engines] == [(e.key, e.pids, e.state) for e in before], field
        assert status.serving_generation == status.generation
    daemon.manifest["models"]["smollm2"] = spec
    daemon.write()
    await daemon.reloaded()


async def test_engine_is_replaced_while_requests_go_on_and_every_answer_is_whole(client, daemon):
    """Between answers the start has the cores for a while: on two of them an endless stream would starve it for minutes."""
    messages = [{"role": "user", "content": "Count from one to fifty in words."}]
    expected = await greedy(client, messages=messages, max_tokens=200)
    (old,) = (await daemon.status()).engines
    daemon.manifest["models"]["smollm2"]["max_num_seqs"] = 8
    daemon.write()
    reload = asyncio.create_task(daemon.reloaded())
    texts = []
    while not reload.done():
        texts.append(await greedy(client, messages=messages, max_tokens=200))
        await asyncio.wait({reload}, timeout=10)
    assert (await reload).is_realised
    assert set(texts) == {expected}
    assert old.key not in {engine.key for engine in (await daemon.status()).engines if engine.is_routed}


async def test_model_that_vllm_refuses_rolls_back_with_its_words(client, daemon):
    daemon.manifest["models"]["smollm2"]["engine_args"] = {"max-logprobs": "many"}
    daemon.write()
    report = await daemon.reloaded()
    assert not report.is_realised
    assert "max-logprobs" in report.message
    status = await daemon.status()
    assert status.rejection
    assert any("max-logprobs" in line for line in status.rejection.tail)
    assert "Paris" in await greedy(client)


async def test_the_daemon_is_killed_and_the_next_one_has_the_same_engine(daemon, client):
    """The last test: it leaves an adopted engine."""
    del daemon.manifest["models"]["smollm2"]["engine_args"]
    daemon.write()
    await daemon.reloaded()
    (before,) = (await daemon.status()).engines
    said = await greedy(client)
    await daemon.stop(signal.SIGKILL)
    began = time.monotonic()
    await daemon.start(*REAL)
    assert await greedy(client.with_options(max_retries=10)) == said
    print(f"the same answer {time.monotonic() - began:.2f} s after the start")
    (after,) = (await daemon.status()).engines
    assert (after.pids, after.reason, after.cores) == (before.pids, "adopted", before.cores)
    assert abs((after.since - before.since).total_seconds()) < 1
    assert after.kernels == before.kernels is not None
    assert after.memory_bytes > before.memory_bytes / 2
