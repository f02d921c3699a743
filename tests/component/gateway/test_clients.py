"""The official client libraries."""

import anthropic
import openai
import pytest
from pydantic import BaseModel

from axiond.manifest.spec import ModelSpec

from .conftest import Site


class City(BaseModel):
    name: str


@pytest.fixture
async def client(site: Site):  # type: ignore[no-untyped-def]
    async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key="key", max_retries=0) as opened:
        yield opened


MESSAGES = [{"role": "user", "content": "hi"}]


async def test_chat_and_streaming(site: Site, client: openai.AsyncOpenAI) -> None:
    fake = await site.start_engine("m")
    site.route(fake)
    wanted = "".join(f"{fake.process.pid}:{index} " for index in range(4))
    whole = await client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=4)  # type: ignore[arg-type]
    assert (whole.choices[0].message.content, whole.usage and whole.usage.completion_tokens) == (wanted, 4)
    stream = await client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=4, stream=True)  # type: ignore[arg-type]
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == wanted
    assert [model.id async for model in await client.models.list()] == ["m", "auto"]


async def test_tools_and_structured_output_pass_through(site: Site, client: openai.AsyncOpenAI) -> None:
    fake = await site.start_engine("m", "--answer", '{"name": "Paris"}')
    site.route(fake)
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    called = await client.chat.completions.create(model="m", messages=MESSAGES, tools=[tool])  # type: ignore[arg-type,list-item]
    calls = called.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].function.name == "weather"  # type: ignore[union-attr]
    parsed = await client.chat.completions.parse(model="m", messages=MESSAGES, response_format=City)  # type: ignore[arg-type]
    assert parsed.choices[0].message.parsed == City(name="Paris")
    assert '"json_schema"' in (await fake.stats())["last"]["body"]


async def test_embeddings_and_responses(site: Site, client: openai.AsyncOpenAI) -> None:
    site.route(await site.start_engine("m", "--answer", "one two"))
    embedded = await client.embeddings.create(model="m", input=["a", "b"], encoding_format="float")
    assert [entry.embedding[0] for entry in embedded.data] == [0.0, 1.0]
    answered = await client.responses.create(model="m", input="hi")
    assert answered.output_text == "one two"
    stream = await client.responses.create(model="m", input="hi", stream=True)
    assert [event.delta async for event in stream if event.type == "response.output_text.delta"] == ["one ", "two"]


async def test_errors_arrive_as_the_librarys_own(site: Site, client: openai.AsyncOpenAI) -> None:
    site.route(await site.start_engine("m"), specs={"gone": ModelSpec(source="/g")})
    with pytest.raises(openai.NotFoundError) as not_found:
        await client.chat.completions.create(model="n", messages=MESSAGES)  # type: ignore[arg-type]
    assert (not_found.value.code, not_found.value.param, not_found.value.type) == ("model_not_found", "model", "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        await client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=-1)  # type: ignore[arg-type]
    with pytest.raises(openai.InternalServerError) as unavailable:
        await client.chat.completions.create(model="gone", messages=MESSAGES)  # type: ignore[arg-type]
    assert (unavailable.value.status_code, unavailable.value.code) == (503, "model_unavailable")
    site.change_pool("gone", is_coming=True)
    site.route(specs={"gone": ModelSpec(source="/g")}, max_queue=0)
    site.change_pool("gone", is_coming=True)
    with pytest.raises(openai.RateLimitError):
        await client.chat.completions.create(model="gone", messages=MESSAGES)  # type: ignore[arg-type]
    site.route(specs={"gone": ModelSpec(source="/g")}, api_keys=frozenset({"other"}))
    with pytest.raises(openai.AuthenticationError):
        await client.models.list()


async def test_a_stream_that_breaks_raises_in_both_libraries(site: Site, client: openai.AsyncOpenAI) -> None:
    first, second = [await site.start_engine(name, "--die-after-tokens", "2", "--token-delay", "0.02") for name in ("m", "n")]
    site.route(first, second)
    stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)  # type: ignore[arg-type]
    with pytest.raises(openai.APIError, match="engine died"):
        [chunk async for chunk in stream]
    async with anthropic.AsyncAnthropic(base_url=site.url, api_key="key", max_retries=0) as other:
        with pytest.raises(anthropic.APIError, match="engine died"):
            async with other.messages.stream(model="n", messages=MESSAGES, max_tokens=9) as messages:  # type: ignore[arg-type]
                [event async for event in messages]


async def test_anthropics_library(site: Site) -> None:
    site.route(await site.start_engine("m", "--answer", "one two"))
    async with anthropic.AsyncAnthropic(base_url=site.url, api_key="key", max_retries=0) as client:
        message = await client.messages.create(model="m", messages=MESSAGES, max_tokens=9)  # type: ignore[arg-type]
        assert message.content[0].text == "one two"  # type: ignore[union-attr]
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.create(model="n", messages=MESSAGES, max_tokens=9)  # type: ignore[arg-type]
