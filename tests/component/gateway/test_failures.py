"""Engines die; requests do not, or are told so."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import psutil
import pytest

from axiond.engine.engine import Endpoint
from axiond.manifest.spec import ModelSpec, Route, Weighted
from axiond.reconcile.state import EngineKey

from .conftest import Fake, Site, SiteMaker, chat, running, until
from .raw import post, raw_client, raw_engine


def dead(site: Site, model: str = "m", replica: int = 0) -> Fake:
    return Fake(Endpoint(EngineKey(model, "dead", replica), model, socket=site.folder / "nobody.sock"), None)  # type: ignore[arg-type]


async def error_of(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    error: dict[str, Any] = (await answer.json())["error"]
    return error


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--fail-requests", "1"), id="cuts-the-connection"),
        pytest.param(("--reject", "502"), id="502"),
        pytest.param(("--reject", "503"), id="503"),
        pytest.param(("--reject", "500", "--fail-probe"), id="500-of-a-dead-core"),
        pytest.param(("--die-after-tokens", "0"), id="dies-before-the-first-token"),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
async def test_a_failed_engine_is_retried_on_another_replica(site: Site, options: tuple[str, ...], is_stream: bool) -> None:
    bad, good = await site.start_engine("m", *options), await site.start_engine("m", replica=1)
    site.route(bad, good)
    async with site.session.post("/v1/completions", json={"model": "m", "prompt": "x", "max_tokens": 2, "stream": is_stream}) as answer:
        assert (answer.status, str(good.process.pid) in await answer.text()) == (200, True)
    assert await site.metric("axiond_request_retries_total", model="m") == 1
    assert [site.router.in_flight(fake.endpoint.key) for fake in (bad, good)] == [0, 0]


async def test_a_dead_engine_is_retried_on_the_fallback_by_its_name(site: Site) -> None:
    good = await site.start_engine("second", name="its-own-name")
    route = Route(name="route", models=(Weighted(model="first"),), fallback=("second",))
    site.route(dead(site, "first"), good, routes=(route,))
    async with site.session.post("/v1/chat/completions", json=chat("route")) as answer:
        assert (answer.status, (await answer.json())["model"]) == (200, "its-own-name")


async def test_with_no_engine_left_the_client_may_come_again(site: Site) -> None:
    site.route(dead(site))
    site.change_pool("m", is_coming=True, retry_after_s=9)
    async with site.session.post("/v1/chat/completions", json=chat()) as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (503, "9")
        assert (await error_of(answer))["code"] == "engine_failed"
    assert await site.metric("axiond_requests_lost_total", reason="engine_failed") == 1


async def test_no_more_than_three_engines_are_tried(site: Site) -> None:
    site.route(*(dead(site, replica=replica) for replica in range(5)))
    async with site.session.post("/v1/chat/completions", json=chat()) as answer:
        assert answer.status == 503
        assert "3 engines failed" in (await error_of(answer))["message"]
    assert await site.metric("axiond_request_retries_total", model="m") == 2


@pytest.mark.parametrize(("status", "lost"), [(400, None), (429, None), (500, 1.0)])
async def test_the_engines_own_errors_are_passed_on(site: Site, status: int, lost: float | None) -> None:
    fake, other = await site.start_engine("m", "--reject", str(status)), await site.start_engine("m", replica=1)
    site.route(fake, other)
    async with site.session.post("/v1/chat/completions", json=chat()) as answer:
        assert answer.status == status
        assert (await error_of(answer))["message"] == "rejected as told"
    assert (await other.stats())["started"] == 0
    assert await site.metric("axiond_requests_lost_total", reason="engine_error") == lost


async def test_a_stream_whose_engine_dies_ends_with_an_error_event(site: Site) -> None:
    fake = await site.start_engine("m", "--die-after-tokens", "3", "--token-delay", "0.02")
    site.route(fake)
    async with site.session.post("/v1/chat/completions", json=chat(stream=True)) as answer:
        text = await answer.text()
    events = [orjson.loads(part.removeprefix("data: ")) for part in text.split("\n\n")[:-1]]
    assert [event["choices"][0]["delta"].get("content") for event in events[1:-1]] == [f"{fake.process.pid}:{index} " for index in range(3)]
    assert (events[-1]["error"]["code"], events[-1]["error"]["type"]) == ("engine_died", "server_error")
    assert "[DONE]" not in text
    assert await site.metric("axiond_requests_lost_total", reason="engine_died") == 1


async def test_a_messages_stream_ends_with_anthropics_error_event(site: Site) -> None:
    site.route(await site.start_engine("m", "--die-after-tokens", "1", "--token-delay", "0.02"))
    async with site.session.post("/v1/messages", json={"model": "m", "messages": [], "max_tokens": 5, "stream": True}) as answer:
        kind, data = (await answer.text()).split("\n\n")[-2].split("\n")
    assert kind == "event: error"
    assert orjson.loads(data.removeprefix("data: "))["error"]["type"] == "api_error"


async def test_a_path_that_the_model_does_not_serve_is_told(site: Site) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b'HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 22\r\n\r\n{"detail":"Not Found"}')
        await writer.drain()

    async with raw_engine(site.folder / "raw.sock", answer) as endpoint:
        site.route(Fake(endpoint, None))  # type: ignore[arg-type]
        async with site.session.post("/v1/embeddings", json={"model": "m", "input": "x"}) as response:
            assert (response.status, (await error_of(response))["code"]) == (404, "unsupported_by_model")


async def test_half_an_event_is_never_passed_on(site: Site) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        part = b'data: {"choices": [{"text": "whole"}]}\n\ndata: {"choices": [{"te'
        writer.write(b"%x\r\n%b\r\n" % (len(part), part))
        await writer.drain()

    async with raw_engine(site.folder / "raw.sock", answer) as endpoint:
        site.route(Fake(endpoint, None))  # type: ignore[arg-type]
        async with site.session.post("/v1/completions", json={"model": "m", "prompt": "x", "stream": True}) as response:
            parts = (await response.text()).split("\n\n")
    assert parts[0] == 'data: {"choices": [{"text": "whole"}]}'
    assert "error" in orjson.loads(parts[1].removeprefix("data: "))


async def test_a_large_body_that_breaks_off_does_not_look_complete(site: Site) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 3_000_000)
        await writer.drain()

    async with raw_engine(site.folder / "raw.sock", answer) as endpoint:
        site.route(Fake(endpoint, None))  # type: ignore[arg-type]
        with pytest.raises(aiohttp.ClientError):
            async with site.session.post("/v1/embeddings", json={"model": "m", "input": "x"}) as response:
                await response.read()
    assert await site.metric("axiond_requests_lost_total", reason="engine_died") == 1


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
async def test_a_client_that_leaves_stops_the_work_in_the_engine(site: Site, is_stream: bool) -> None:
    fake = await site.start_engine("m", "--token-delay", "0.02")
    site.route(fake)
    async with running(site.session.post("/v1/chat/completions", json=chat(stream=is_stream, max_tokens=10_000))) as asked:
        await fake.wait_for(started=1)
        if is_stream:
            (await asked).close()
    await fake.wait_for(started=1, cancelled=1, running=0)
    assert site.router.in_flight(fake.endpoint.key) == 0
    assert await site.metric("axiond_requests_total", model="m", code="499") == 1
    assert not [sample for metric in site.metrics.registry.collect() if metric.name == "axiond_requests_lost" for sample in metric.samples]


class Fountain:
    """Streams for ever; knows how much it could send, and when it was held back or cut off."""

    def __init__(self) -> None:
        self.sent_bytes = 0
        self.is_stuck, self.is_cut_off = asyncio.Event(), asyncio.Event()

    async def __call__(self, writer: asyncio.StreamWriter) -> None:
        event = b"data: " + b"x" * 65_000 + b"\n\n"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while True:
                writer.write(b"%x\r\n%b\r\n" % (len(event), event))
                self.sent_bytes += len(event)
                await self._drain(writer)
        except ConnectionError:
            self.is_cut_off.set()

    async def _drain(self, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(0.5):
                await writer.drain()
        except TimeoutError:
            self.is_stuck.set()
            await writer.drain()


@pytest.mark.parametrize("idle_timeout_s", [pytest.param(75.0, id="patient"), pytest.param(1.0, id="impatient")])
async def test_a_client_that_does_not_read_holds_the_engine_back_but_not_for_ever(open_site: SiteMaker, idle_timeout_s: float) -> None:
    site: Site = await open_site(idle_timeout_s=idle_timeout_s)
    fountain = Fountain()
    async with raw_engine(site.folder / "raw.sock", fountain) as endpoint:
        site.route(Fake(endpoint, None))  # type: ignore[arg-type]
        async with raw_client(site.url) as (_, writer), asyncio.timeout(20):
            writer.write(post("/v1/completions", orjson.dumps({"model": "m", "prompt": "x", "stream": True})))
            await fountain.is_stuck.wait()
            if idle_timeout_s < 10:
                await fountain.is_cut_off.wait()
    assert fountain.sent_bytes < 16 * 2**20


async def test_an_error_that_was_retried_is_not_lost(site: Site) -> None:
    """The first engine begins a 500 and dies over it; the second answers."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 501 Not Implemented\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        await writer.drain()

    async with raw_engine(site.folder / "raw.sock", answer) as endpoint:
        site.route(Fake(endpoint, None), await site.start_engine("m", replica=1))  # type: ignore[arg-type]
        async with site.session.post("/v1/chat/completions", json=chat()) as response:
            assert response.status == 200
    assert await site.metric("axiond_request_retries_total", model="m") == 1
    assert await site.metric("axiond_requests_lost_total", reason="engine_error") is None


WHOLE = b"x" * 900_000
PIPELINED = 20  # more than a socket's buffers hold


async def answer_whole(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(WHOLE) + WHOLE)
    await writer.drain()


def served_connections(site: Site) -> int:
    """How many clients the gateway has, by its sockets."""
    port = int(site.url.rpartition(":")[2])
    return sum(found.status == psutil.CONN_ESTABLISHED and found.laddr.port == port for found in psutil.Process().net_connections("tcp"))


async def until_stuck(site: Site) -> None:
    """Until the gateway answers no more, for its client reads no more."""
    before, answered = -1.0, 0.0
    while not answered or before != answered:
        await asyncio.sleep(0.2)
        before, answered = answered, await site.metric("axiond_requests_total", model="m", code="200") or 0.0
    assert answered < PIPELINED


async def test_a_client_that_does_not_read_whole_answers_is_cut_off(open_site: SiteMaker) -> None:
    site: Site = await open_site(idle_timeout_s=1.0)
    async with raw_engine(site.folder / "raw.sock", answer_whole) as endpoint:
        site.route(Fake(endpoint, None))  # type: ignore[arg-type]
        async with raw_client(site.url) as (_, writer):
            writer.write(post("/v1/embeddings", orjson.dumps({"model": "m"})) * PIPELINED)
            await until_stuck(site)
            await until(lambda: served_connections(site) == 0)


async def test_a_client_that_reads_slowly_is_not_cut_off(open_site: SiteMaker) -> None:
    """Each read is within the timeout; all of them take far longer."""
    site: Site = await open_site(idle_timeout_s=0.4)
    async with raw_engine(site.folder / "raw.sock", answer_whole) as endpoint:
        site.route(Fake(endpoint, None))  # type: ignore[arg-type]
        async with raw_client(site.url) as (reader, writer):
            writer.write(post("/v1/embeddings", orjson.dumps({"model": "m"})) * PIPELINED)
            for _ in range(PIPELINED):
                await asyncio.sleep(0.1)  # the client's slowness
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
                assert await asyncio.wait_for(reader.readexactly(len(WHOLE)), 10) == WHOLE


async def test_a_shutdown_waits_until_whole_answers_are_taken(open_site: SiteMaker) -> None:
    """So the client's next request is still answered, with the word that there will be no more."""
    site: Site = await open_site(grace_s=20)
    async with raw_engine(site.folder / "raw.sock", answer_whole) as endpoint:
        site.route(Fake(endpoint, None))  # type: ignore[arg-type]
        async with raw_client(site.url) as (reader, writer):
            writer.write(post("/v1/embeddings", orjson.dumps({"model": "m"})) * PIPELINED)
            await until_stuck(site)
            async with running(site.close()) as closing:
                taken = await asyncio.wait_for(reader.read(), 20)
                await asyncio.wait_for(closing, 10)
    *_, last_head, last_body = taken.split(b"\r\n\r\n")
    assert (b"Connection: close" in last_head, last_body) == (True, WHOLE)


async def test_an_error_that_the_engine_streams_itself_counts_as_lost(site: Site) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        event = b'data: {"error": {"message": "EngineCore died", "code": 500}}\n\ndata: [DONE]\n\n'
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%b" % (len(event), event))
        await writer.drain()

    async with raw_engine(site.folder / "raw.sock", answer) as endpoint:
        site.route(Fake(endpoint, None))  # type: ignore[arg-type]
        async with site.session.post("/v1/chat/completions", json=chat(stream=True)) as response:
            assert "EngineCore died" in await response.text()
    assert await site.metric("axiond_requests_lost_total", reason="engine_error") == 1


async def test_an_idle_connection_that_the_engine_closed_costs_nothing(site: Site) -> None:
    """The old process is gone, a new one listens on the same path; the pooled connection is not used again."""
    fake = await site.start_engine("m")
    site.route(fake)
    async with site.session.post("/v1/completions", json={"model": "m", "prompt": "x"}) as answer:
        assert answer.status == 200
    await fake.kill()
    Path(str(fake.endpoint.socket)).unlink()
    again = await site.start_engine("m")
    pool = site.router.table.pools["m"]
    site.router.publish(replace(site.router.table, pools={"m": replace(pool, endpoints=(again.endpoint,))}))
    async with site.session.post("/v1/completions", json={"model": "m", "prompt": "x"}) as answer:
        assert answer.status == 200


async def test_a_waiting_request_goes_to_the_engine_that_comes(site: Site) -> None:
    site.route(specs={"m": ModelSpec(source="/m")})
    site.change_pool("m", is_coming=True)
    async with running(site.session.post("/v1/chat/completions", json=chat())) as asked:
        await until(lambda: site.router.queued("m") == 1)
        fake = await site.start_engine("m")
        site.route(fake)
        assert (await asked).status == 200


async def test_a_waiting_client_that_leaves_gives_its_place_back(site: Site) -> None:
    site.route(specs={"m": ModelSpec(source="/m")})
    site.change_pool("m", is_coming=True)
    async with running(site.session.post("/v1/chat/completions", json=chat())):
        await until(lambda: site.router.queued("m") == 1)
    await until(lambda: site.router.queued("m") == 0)


async def test_a_full_queue_and_a_late_engine_are_told(site: Site) -> None:
    site.route(specs={"m": ModelSpec(source="/m")}, max_queue=1, queue_timeout_s=0.3)
    site.change_pool("m", is_coming=True, reason="engine is starting")
    async with running(site.session.post("/v1/chat/completions", json=chat())) as asked:
        await until(lambda: site.router.queued("m") == 1)
        async with site.session.post("/v1/chat/completions", json=chat()) as refused:
            assert (refused.status, (await error_of(refused))["type"]) == (429, "rate_limit_error")
        late = await asked
        assert (late.status, (await error_of(late))["code"]) == (503, "queue_timeout")


async def test_a_failed_model_says_why(site: Site) -> None:
    site.route(specs={"m": ModelSpec(source="/m")})
    site.change_pool("m", reason="out of memory", retry_after_s=60)
    async with site.session.post("/v1/chat/completions", json=chat()) as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (503, "60")
        assert "out of memory" in (await error_of(answer))["message"]


@pytest.mark.parametrize(("grace_s", "is_whole"), [(10.0, True), (0.1, False)], ids=["within-grace", "after-grace"])
async def test_a_shutdown_lets_streams_end_or_says_so(open_site: SiteMaker, grace_s: float, is_whole: bool) -> None:
    site: Site = await open_site(grace_s=grace_s)
    fake = await site.start_engine("m", "--token-delay", "0.02")
    site.route(fake)
    async with site.session.post("/v1/chat/completions", json=chat(stream=True, max_tokens=50)) as answer, running(site.close()):
        text = await answer.text()
    assert text.endswith("data: [DONE]\n\n") == is_whole
    assert ('"code":"shutdown"' in text) == (not is_whole)


async def test_a_shutdown_refuses_who_still_waits(open_site: SiteMaker) -> None:
    site: Site = await open_site(grace_s=0.1)
    site.route(specs={"m": ModelSpec(source="/m")})
    site.change_pool("m", is_coming=True)
    async with running(site.session.post("/v1/chat/completions", json=chat())) as asked:
        await until(lambda: site.router.queued("m") == 1)
        await site.close()
        answer = await asked
        assert (answer.status, (await error_of(answer))["code"]) == (503, "shutdown")


async def test_connections_to_a_replaced_engine_are_closed(site: Site) -> None:
    old = await site.start_engine("m")
    site.route(old)
    async with site.session.post("/v1/completions", json={"model": "m", "prompt": "x"}) as answer:
        assert answer.status == 200
    new = await site.start_engine("m", digest="new")
    site.route(new)
    async with site.session.post("/v1/completions", json={"model": "m", "prompt": "x"}) as answer:
        assert answer.status == 200
    assert (await old.stats())["connections"] == 1  # this very question's
