"""Requests that wait for their turn, as their clients see it."""

import asyncio
from dataclasses import replace
from typing import Any

import aiohttp
import anthropic
import openai
import pytest

from axiond.manifest.spec import ModelSpec

from .conftest import Fake, Site, SiteMaker, chat, running, until
from .test_failures import error_of

PATH = "/v1/chat/completions"
ONE = {"m": ModelSpec(source="/m", max_in_flight=1)}
MESSAGES: Any = [{"role": "user", "content": "hi"}]


def waits(site: Site, count: int = 1) -> Any:
    return until(lambda: site.router.queued("m") == count)


async def busy(site: Site, *options: str) -> Fake:
    """A site whose only engine has room for one request."""
    fake = await site.start_engine("m", *options)
    site.route(fake, specs=ONE)
    return fake


async def asked(site: Site, **fields: Any) -> aiohttp.ClientResponse:
    headers = {"X-Request-Timeout": str(fields.pop("timeout_s"))} if "timeout_s" in fields else {}
    if key := fields.pop("key", ""):
        headers["Authorization"] = f"Bearer {key}"
    response: aiohttp.ClientResponse = await site.session.post(PATH, json=chat(**fields), headers=headers)
    return response


async def test_who_waited_is_told_how_long(site: Site) -> None:
    await busy(site, "--token-delay", "0.05")
    async with running(asked(site, max_tokens=30)) as first, running(asked(site, max_tokens=1)) as second:
        await waits(site)
        assert "X-Axiond-Queue-Wait-Ms" not in (await first).headers
        answer = await second
        assert (answer.status, int(answer.headers["X-Axiond-Queue-Wait-Ms"]) > 0) == (200, True)
    assert await site.metric("axiond_queue_wait_seconds_count", model="m") == 1
    assert await site.metric("axiond_queue_estimate_seconds", model="m") == 0


async def test_one_key_with_many_requests_does_not_hold_off_another(site: Site) -> None:
    fake = await site.start_engine("m", "--token-delay", "0.01")
    site.route(fake, specs=ONE, api_keys=frozenset({"many", "one"}))
    order: list[str] = []

    async def ask(key: str) -> None:
        async with await asked(site, key=key, max_tokens=1) as answer:
            assert answer.status == 200
        order.append(key)

    async with asyncio.TaskGroup() as group, running(asked(site, key="many", max_tokens=10_000)):
        await fake.wait_for(running=1)
        for _ in range(20):
            group.create_task(ask("many"))
        await waits(site, 20)
        group.create_task(ask("one"))
        await waits(site, 21)
    assert order.index("one") <= 2


async def test_who_leaves_gives_its_place_to_the_next_at_once(site: Site) -> None:
    fake = await busy(site, "--token-delay", "0.1")
    async with running(asked(site, max_tokens=1000)):
        await fake.wait_for(running=1)
        async with running(asked(site)):
            await waits(site, 1)
            async with running(asked(site)):
                await waits(site, 2)
            await waits(site, 1)
        await waits(site, 0)
    await fake.wait_for(running=0, cancelled=1)


async def test_a_full_queue_says_position_and_estimate(site: Site) -> None:
    fake = await site.start_engine("m", "--token-delay", "0.2")
    site.route(fake, specs=ONE, max_queue=1)
    async with await asked(site, max_tokens=5) as measured:
        assert measured.status == 200
    async with running(asked(site, max_tokens=50)), running(asked(site)):
        await waits(site)
        async with await asked(site) as refused:
            assert (refused.status, (await error_of(refused))["code"]) == (429, "queue_full")
            assert (refused.headers["X-Axiond-Queue-Position"], refused.headers["Retry-After"] in "23") == ("2", True)
            assert 1 < float(refused.headers["X-Axiond-Queue-Estimate"]) < 3
    assert await site.metric("axiond_queue_rejected_total", model="m", reason="full") == 1
    assert await site.metric("axiond_requests_lost_total", reason="queue_full") == 1


@pytest.mark.parametrize("timeout", ["soon", "0", "-1", "inf", "nan", ""])
async def test_a_deadline_is_a_number_of_seconds(site: Site, timeout: str) -> None:
    site.route(await site.start_engine("m"))
    async with site.session.post(PATH, json=chat(), headers={"X-Request-Timeout": timeout}) as answer:
        assert (answer.status, (await error_of(answer))["code"]) == (400, "invalid_timeout")


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
async def test_a_deadline_ends_the_engines_work(site: Site, is_stream: bool) -> None:
    fake = await busy(site, "--token-delay", "0.05")
    async with await asked(site, max_tokens=1000, stream=is_stream, timeout_s=0.5) as answer:
        text = await answer.text()
    assert (answer.status, '"code":"deadline_exceeded"' in text) == (200 if is_stream else 504, True)
    assert (text.startswith("data: {") and text.endswith("}\n\n") and text.count("data: ") > 2) == is_stream
    await fake.wait_for(cancelled=1, running=0)
    assert site.router.in_flight(fake.endpoint.key) == 0
    assert await site.metric("axiond_requests_lost_total", reason="deadline_exceeded") == 1


async def test_a_deadline_that_is_kept_changes_nothing(site: Site) -> None:
    await busy(site)
    async with await asked(site, max_tokens=3, stream=True, timeout_s=30) as answer:
        assert (await answer.text()).endswith("data: [DONE]\n\n")


async def test_a_deadline_in_the_queue(site: Site) -> None:
    fake = await busy(site, "--token-delay", "0.02")
    async with await asked(site, max_tokens=50) as measured:
        assert measured.status == 200
    async with running(asked(site, max_tokens=1000)):
        await fake.wait_for(running=1)
        async with running(asked(site)):
            await waits(site)
            async with await asked(site, timeout_s=0.5) as hopeless:
                assert (hopeless.status, (await error_of(hopeless))["code"]) == (504, "deadline_unreachable")
                assert int(hopeless.headers["Retry-After"]) >= 2
        await waits(site, 0)
        async with await asked(site, timeout_s=3) as late:
            assert (late.status, (await error_of(late))["code"]) == (504, "deadline_exceeded")
            assert late.headers["X-Axiond-Queue-Position"] == "1"
            assert int(late.headers["X-Axiond-Queue-Wait-Ms"]) >= 3000
    assert await site.metric("axiond_queue_rejected_total", model="m", reason="hopeless") == 1
    assert await site.metric("axiond_queue_rejected_total", model="m", reason="deadline") == 1


async def test_what_asks_the_scheduler_nothing_passes_a_full_engine(site: Site) -> None:
    fake = await busy(site, "--token-delay", "0.1")
    async with running(asked(site, max_tokens=1000)):
        await fake.wait_for(running=1)
        async with site.session.post("/tokenize", json={"model": "m", "prompt": "a b"}) as counted:
            assert counted.status == 200
        async with site.session.post("/v1/responses/resp_1/cancel") as cancelled:
            assert cancelled.status == 200


async def test_a_stream_that_waits_says_where_it_stands(site: Site) -> None:
    """In comments and pings, which the official libraries pass over."""
    site.route(specs={"m": ModelSpec(source="/m")})
    site.change_pool("m", is_coming=True, ready_in_s=60.0)
    texts: dict[str, str] = {}

    async def raw() -> None:
        async with await asked(site, stream=True, max_tokens=3) as answer:
            assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
            assert (answer.headers["X-Axiond-Queue-Position"], float(answer.headers["X-Axiond-Queue-Estimate"]) > 50) == ("1", True)
            texts["raw"] = await answer.text()

    async def by_openai() -> None:
        async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key="key", max_retries=0) as client:
            stream = await client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=3, stream=True)
            texts["openai"] = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            stored = await client.responses.create(model="m", input="hi", stream=True)
            texts["responses"] = "".join([event.delta async for event in stored if event.type == "response.output_text.delta"])

    async def by_anthropic() -> None:
        client = anthropic.AsyncAnthropic(base_url=site.url, api_key="key", max_retries=0)
        async with client, client.messages.stream(model="m", messages=MESSAGES, max_tokens=3) as messages:
            texts["anthropic"] = "".join([text async for text in messages.text_stream])

    async def as_anthropic() -> None:
        async with site.session.post("/v1/messages", json=chat(stream=True, max_tokens=1)) as answer:
            texts["ping"] = await answer.text()

    async with asyncio.TaskGroup() as group:
        group.create_task(raw())
        await waits(site, 1)
        for count, ask in enumerate((by_openai, by_anthropic, as_anthropic), 2):
            group.create_task(ask())
            await waits(site, count)
        await asyncio.sleep(2.5)  # heads are held back for two seconds
        fake = await site.start_engine("m", "--answer", "one two")
        site.route(fake)
    assert texts["raw"].startswith(": queued position=1 estimate_s=5")
    assert texts["raw"].endswith("data: [DONE]\n\n")
    assert texts["ping"].startswith(": queued position=4")
    assert '\nevent: ping\ndata: {"type": "ping"}\n\nevent: message_start\n' in texts["ping"]
    assert [texts[name] for name in ("openai", "responses", "anthropic")] == ["one two"] * 3
    assert await site.metric("axiond_completion_tokens_total", model="m", counted_by="chunks") == 6
    assert await site.metric("axiond_time_to_first_token_seconds_count", model="m") == 5


async def test_what_goes_wrong_after_the_head_is_an_event(open_site: SiteMaker) -> None:
    site: Site = await open_site(grace_s=0.1)
    site.route(specs={"m": ModelSpec(source="/m"), "n": ModelSpec(source="/n")})
    for model in "mn":
        site.change_pool(model, is_coming=True, reason="it loads")

    async def text_of(**fields: Any) -> str:
        async with await asked(site, stream=True, **fields) as answer:
            assert answer.status == 200
            return await answer.text()

    async def by_openai() -> str:
        async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key="key", max_retries=0) as client:
            stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
            with pytest.raises(openai.APIError) as caught:
                [chunk async for chunk in stream]
            return caught.value.message

    async with running(text_of(model="n", max_tokens=-1)) as refused, running(text_of()) as ended:
        await until(lambda: (site.router.queued("n"), site.router.queued("m")) == (1, 1))
        site.router.publish(replace(site.router.table, queue_timeout_s=2.3))
        async with running(text_of()) as late, running(by_openai()) as told:
            await waits(site, 3)
            assert '"code":"queue_timeout"' in await late
            assert "not ready within 2.3 s: it loads" in await told
        site.change_pool("n", endpoints=((await site.start_engine("n")).endpoint,))
        assert "max_tokens must be at least 1" in await refused
        assert '"code":"engine_refused"' in await refused
        await site.close()
        assert (await ended).endswith('"code":"shutdown"}}\n\n')
    assert await site.metric("axiond_requests_lost_total", reason="shutdown") == 1


async def test_a_model_that_fails_soon_is_told_by_its_status(site: Site) -> None:
    site.route(specs={"m": ModelSpec(source="/m")})
    site.change_pool("m", is_coming=True)
    async with running(asked(site, stream=True)) as waiting:
        await waits(site)
        site.change_pool("m", is_coming=False, reason="out of memory", retry_after_s=60)
        answer = await waiting
        assert (answer.status, answer.headers["Retry-After"]) == (503, "60")


async def test_a_dead_engine_does_not_eat_the_queue(site: Site) -> None:
    fake = await busy(site, "--die-after-tokens", "3", "--token-delay", "0.05")
    async with running(asked(site)) as first, running(asked(site)) as second, running(asked(site)) as third:
        await waits(site, 2)
        assert (await first).status == 503
        assert site.router.queued("m") == 2
        await fake.process.wait()
        site.change_pool("m", endpoints=(), is_coming=True)
        site.route(await site.start_engine("m", digest="new"), specs=ONE)
        assert [(await second).status, (await third).status] == [200, 200]
