"""Clients that send too much, too slowly, or nonsense."""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import orjson
import psutil
import pytest

from axiond.manifest.spec import ModelSpec

from .conftest import Site, SiteMaker, chat, running, until
from .raw import post, raw_client

JSON = {"Content-Type": "application/json"}
PATH = "/v1/chat/completions"
FORM_PATH = "/v1/audio/transcriptions"


@pytest.fixture
async def known(site: Site) -> Site:
    site.route(specs={"model-one": ModelSpec(source="/m"), "model-two": ModelSpec(source="/n")})
    return site


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "code"),
    [
        pytest.param("POST", PATH, b"{", JSON, 400, "invalid_json", id="malformed"),
        pytest.param("POST", PATH, b"", JSON, 400, "invalid_json", id="empty"),
        pytest.param("POST", PATH, b"[1]", JSON, 400, "invalid_json", id="no-object"),
        pytest.param("POST", PATH, b"\xff\xfe{}", JSON, 400, "invalid_json", id="no-text"),
        pytest.param("POST", PATH, b"[" * 200_000, JSON, 400, "invalid_json", id="deeply-nested"),
        pytest.param("POST", PATH, b'{"model": 1}', JSON, 400, "invalid_type", id="model-is-no-string"),
        pytest.param("POST", PATH, b'{"model": "\\ud800"}', JSON, 400, "invalid_type", id="model-is-half-a-character"),
        pytest.param("POST", FORM_PATH, b"--x--", {"Content-Type": "multipart/form-data"}, 400, "invalid_form", id="no-boundary"),
        pytest.param("POST", PATH, b'{"model": "x"}', {"Content-Type": "text/plain"}, 415, "unsupported_media_type", id="content-type"),
        pytest.param("POST", PATH, b'{"model": "x"}', {}, 415, "unsupported_media_type", id="no-content-type"),
        pytest.param("POST", "/v1/audio/translations", b"{}", JSON, 415, "unsupported_media_type", id="json-for-a-form"),
        pytest.param("POST", PATH, b'{"model": "model-on"}', JSON, 404, "model_not_found", id="unknown-model"),
        pytest.param("GET", PATH, None, {}, 405, "method_not_allowed", id="method"),
        pytest.param("POST", "/v1/models", b"{}", JSON, 405, "method_not_allowed", id="method-of-models"),
        pytest.param("POST", "/v1/nope", b"{}", JSON, 404, "unknown_url", id="path"),
        pytest.param("POST", "/v1/load_lora_adapter", b"{}", JSON, 404, "unknown_url", id="engine-control"),
        pytest.param("POST", "/v1/completions/../../shutdown", b"{}", JSON, 404, "unknown_url", id="dots"),
    ],
)
async def test_nonsense_is_answered_in_openais_envelope(
    known: Site, method: str, path: str, body: bytes | None, headers: dict[str, str], status: int, code: str
) -> None:
    skip = () if headers else ("Content-Type",)
    async with known.session.request(method, path, data=body, headers=headers, skip_auto_headers=skip) as answer:
        error = (await answer.json())["error"]
    assert (answer.status, error["code"], error["type"]) == (status, code, "invalid_request_error")
    assert error.keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("path", "content_type", "status"),
    [
        pytest.param(FORM_PATH, b"multipart/form-data; boundary=\xff", 400, id="boundary"),
        pytest.param(PATH, b"text/\xff", 415, id="content-type"),
    ],
)
async def test_bytes_that_are_no_text_are_refused_as_such(known: Site, path: str, content_type: bytes, status: int) -> None:
    async with raw_client(known.url) as (reader, writer):
        writer.write(post(path, b"--x--").replace(b"application/json", content_type))
        line = await asyncio.wait_for(reader.readline(), 10)
    assert int(line.split()[1]) == status


async def test_an_unknown_model_is_told_the_nearest(known: Site) -> None:
    async with known.session.post(PATH, json=chat("model-tow")) as answer:
        assert "Did you mean `model-two`" in (await answer.json())["error"]["message"]


async def test_anthropics_errors_have_its_own_envelope(known: Site) -> None:
    async with known.session.post("/v1/messages", json={"model": "x"}) as answer:
        body = await answer.json()
    assert (answer.status, body["type"], body["error"]["type"]) == (404, "error", "not_found_error")
    assert body["request_id"] == answer.headers["X-Request-ID"]


async def test_100_megabytes_are_refused_without_being_kept(open_site: SiteMaker) -> None:
    site: Site = await open_site(max_request_body=2**20)
    before_bytes = psutil.Process().memory_info().rss
    status, grown_bytes = await _upload(site, told=100 * 2**20)
    assert (status, grown_bytes - before_bytes < 30 * 2**20) == (413, True)


async def _upload(site: Site, told: int) -> tuple[int, int]:
    async with raw_client(site.url) as (reader, writer):
        writer.write(post(PATH, b"", length=told))
        for _ in range(100):
            writer.write(b"x" * 2**20)
            try:
                await writer.drain()
            except ConnectionError:
                break
        answer = await asyncio.wait_for(reader.read(2**16), 10)
        return int(answer.split()[1]), psutil.Process().memory_info().rss


async def test_a_body_of_unknown_length_is_limited_too(open_site: SiteMaker) -> None:
    site: Site = await open_site(max_request_body=2**20)

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"x" * 2**16

    async with site.session.post(PATH, data=endless(), headers=JSON) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (413, "request_too_large")


async def test_a_body_at_the_limit_passes(open_site: SiteMaker) -> None:
    site: Site = await open_site(max_request_body=4096)
    site.route(await site.start_engine("m"))
    frame = len(orjson.dumps({"model": "m", "prompt": ""}))
    for extra, status in ((0, 200), (1, 413)):
        body = io.BytesIO(orjson.dumps({"model": "m", "prompt": "x" * (4096 - frame + extra)}))
        async with site.session.post("/v1/completions", data=body, headers=JSON) as answer:
            assert answer.status == status


async def test_a_client_that_asks_first_is_told_to_go_on_or_not(open_site: SiteMaker) -> None:
    site: Site = await open_site(max_request_body=4096)
    site.route(await site.start_engine("m"))
    body = orjson.dumps({"model": "m", "prompt": "x"})
    async with raw_client(site.url) as (reader, writer):
        writer.write(post("/v1/completions", b"", length=len(body)).replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 200")
    async with raw_client(site.url) as (reader, writer):
        writer.write(post("/v1/completions", b"", length=5000).replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
        assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 413")


async def test_bodies_held_by_all_requests_together_are_limited_until_they_end(open_site: SiteMaker) -> None:
    site: Site = await open_site(max_request_body=2**20, most_bodies_bytes=2 * 2**20)
    site.route(specs={"m": ModelSpec(source="/m")})
    site.change_pool("m", is_coming=True)
    body = orjson.dumps({"model": "m", "prompt": "x" * 900_000})

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 2**16

    def ask(data: Any) -> Any:
        return site.session.post("/v1/completions", data=data, headers=JSON)

    async with running(ask(io.BytesIO(body))), running(ask(io.BytesIO(body))):
        await until(lambda: site.router.queued("m") == 2)
        for data in (io.BytesIO(body), endless()):
            async with ask(data) as refused:
                assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
                assert (await refused.json())["error"]["code"] == "overloaded"
    await until(lambda: site.router.queued("m") == 0)
    async with running(ask(io.BytesIO(body))):
        await until(lambda: site.router.queued("m") == 1)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n", id="head"),
        pytest.param(post(PATH, b'{"model"', length=100), id="body"),
    ],
)
async def test_a_slow_sender_is_cut_off(open_site: SiteMaker, sent: bytes) -> None:
    site: Site = await open_site(header_timeout_s=0.2)
    async with raw_client(site.url) as (reader, writer):
        writer.write(sent)
        answer = await asyncio.wait_for(reader.read(), 10)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert orjson.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]["code"] == "request_timeout"


async def test_a_head_that_drips_is_cut_off_all_the_same(open_site: SiteMaker) -> None:
    site: Site = await open_site(header_timeout_s=0.3)
    async with raw_client(site.url) as (reader, writer):
        answered = asyncio.ensure_future(reader.read())
        writer.write(b"GET /")
        async with asyncio.timeout(10):
            while not answered.done():
                writer.write(b"x")
                await asyncio.wait((answered,), timeout=0.05)
        assert (await answered).startswith(b"HTTP/1.1 408 ")


async def test_an_idle_connection_is_closed(open_site: SiteMaker) -> None:
    site: Site = await open_site(idle_timeout_s=0.3)
    async with raw_client(site.url) as (reader, writer):
        assert await asyncio.wait_for(reader.read(), 10) == b""
    async with raw_client(site.url) as (reader, writer):
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await asyncio.wait_for(reader.read(), 10)).endswith(b"ok\n")


async def test_a_keep_alive_connection_survives_what_a_slow_head_does_not(open_site: SiteMaker) -> None:
    """The head's clock starts with its first byte, and stops with its last."""
    site: Site = await open_site(header_timeout_s=0.3)
    async with raw_client(site.url) as (reader, writer):
        for _ in range(3):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost")
            await writer.drain()
            writer.write(b": x\r\n\r\n")
            assert (await asyncio.wait_for(reader.readuntil(b"ok\n"), 5)).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(0.4)  # longer than a head may take


async def test_a_thousand_idle_connections_do_no_harm(known: Site) -> None:
    async with AsyncExitStack() as stack:
        clients: list[Any] = [await stack.enter_async_context(raw_client(known.url)) for _ in range(1000)]
        async with known.session.get("/healthz") as answer:
            assert answer.status == 200
        reader, writer = clients[500]
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await asyncio.wait_for(reader.readuntil(b"ok\n"), 5)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, id="tls"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 10_000 + b"\r\n\r\n", 431, id="long-header"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: nonsense\r\n\r\n", 400, id="length"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400, id="smuggling"),
    ],
)
async def test_what_is_not_http_is_refused(site: Site, sent: bytes, status: int) -> None:
    async with raw_client(site.url) as (reader, writer):
        writer.write(sent)
        answer = await asyncio.wait_for(reader.read(), 10)
    assert int(answer.split()[1]) == status
    assert orjson.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]["code"] == "invalid_request"
