"""Pass an engine's answer on to the client, and end it honestly when the engine does not."""

import time
from dataclasses import dataclass

import aiohttp
import orjson
from aiohttp import web

from axiond.engine.engine import Endpoint
from axiond.errors import EngineError, RequestError
from axiond.gateway.envelope import error_event
from axiond.gateway.exchange import Exchange
from axiond.gateway.headers import returned
from axiond.gateway.upstream import read_chunk, read_whole
from axiond.gateway.usage import split_events

MOST_WHOLE_BYTES = 2**20
NO_SUCH_PATH = b'{"detail":"Not Found"}'  # of vLLM's web framework, where the model has no such task


@dataclass(slots=True)
class Begun:
    """An answer whose first bytes are here: all of it, or the first chunk."""

    upstream: aiohttp.ClientResponse
    endpoint: Endpoint
    first: bytes
    is_whole: bool
    is_events: bool


async def begin(upstream: aiohttp.ClientResponse, endpoint: Endpoint) -> Begun:
    """
    Wait for the first bytes of an answer. A short one is read whole.

    Raises:
        EngineError: the engine died before; another may answer.
    """
    length, is_events = upstream.content_length, upstream.content_type == "text/event-stream"
    is_whole = length is not None and length <= MOST_WHOLE_BYTES and not is_events
    first = await (read_whole if is_whole else read_chunk)(upstream, endpoint)
    return Begun(upstream, endpoint, first, is_whole, is_events)


async def relay(begun: Begun, exchange: Exchange) -> web.StreamResponse:
    """
    Answer *exchange* with what an engine says, in the stream that has begun if one has.

    Raises:
        RequestError: 404, the engine has no such path; 502, it died later; or its refusal, where a stream has begun.
    """
    upstream, endpoint = begun.upstream, begun.endpoint
    if exchange.answer is not None and not begun.is_events:
        raise _refusal(upstream.status, begun.first + (b"" if begun.is_whole else await read_whole(upstream, endpoint)))
    headers = returned(upstream.headers, exchange.request_id)
    headers.update(exchange.headers())
    if begun.is_whole:
        if upstream.status == 404 and begun.first == NO_SUCH_PATH:
            message = f"The model `{exchange.model}` does not answer {exchange.request.rel_url.raw_path}."
            raise RequestError(404, "unsupported_by_model", message, param="model")
        exchange.status = upstream.status
        exchange.note(begun.first, time.monotonic())
        return web.Response(status=upstream.status, reason=upstream.reason, headers=headers, body=begun.first)
    if (answer := exchange.answer) is None:
        answer = web.StreamResponse(status=upstream.status, reason=upstream.reason, headers=headers)
        answer.content_length = upstream.content_length
        await exchange.begin(answer, is_stream=begun.is_events)
    try:
        await (_relay_events if begun.is_events else _relay_bytes)(begun.first, upstream, endpoint, answer, exchange)
    except EngineError as error:
        message = f"The engine died while answering; what came so far is not the whole answer. ({error})"
        raise RequestError(502, "engine_died", message) from error
    return answer


async def break_off(answer: web.StreamResponse, exchange: Exchange, error: RequestError) -> web.StreamResponse:
    """Say in a stream that has begun why it ends; any other body takes the connection with it, or it would look complete."""
    if exchange.is_stream:
        await send_aside(error_event(error, exchange.dialect, exchange.request_id), answer, exchange)
        await answer.write_eof()
        return answer
    if transport := exchange.request.transport:
        transport.abort()
    raise ConnectionResetError


async def send_aside(event: bytes, answer: web.StreamResponse, exchange: Exchange) -> None:
    """Write what is no part of the engine's answer."""
    exchange.sent_bytes += len(event)
    await answer.write(event)


async def _relay_bytes(
    chunk: bytes, upstream: aiohttp.ClientResponse, endpoint: Endpoint, answer: web.StreamResponse, exchange: Exchange
) -> None:
    while chunk:
        await _send(chunk, answer, exchange)
        chunk = await read_chunk(upstream, endpoint)
    await answer.write_eof()


async def _relay_events(
    chunk: bytes, upstream: aiohttp.ClientResponse, endpoint: Endpoint, answer: web.StreamResponse, exchange: Exchange
) -> None:
    """Only whole events are sent on, so that an error event can follow at any time."""
    held = b""
    while chunk:
        whole, held = split_events(held + chunk if held else chunk)
        if whole:
            await _send(whole, answer, exchange)
        chunk = await read_chunk(upstream, endpoint)
    if held:
        await _send(held, answer, exchange)
    await answer.write_eof()
    if exchange.ends_in_error():
        exchange.lost = "engine_error"


async def _send(chunk: bytes, answer: web.StreamResponse, exchange: Exchange) -> None:
    """Write, and wait while the client is slow; its connection ends if it takes nothing."""
    exchange.note(chunk, time.monotonic())
    await answer.write(chunk)


def _refusal(status: int, body: bytes) -> RequestError:
    """The engine's own words, for a client that has had its 200 already."""
    try:
        message = orjson.loads(body)["error"]["message"]
    except (ValueError, LookupError, TypeError):
        message = body.decode("utf-8", "replace")[:1000]
    return RequestError(status if status >= 400 else 502, "engine_refused", str(message))
