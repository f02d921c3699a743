"""Pass an engine's answer on to the client, and end it honestly when the engine does not."""

import asyncio
import time

import aiohttp
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


async def relay(upstream: aiohttp.ClientResponse, endpoint: Endpoint, exchange: Exchange) -> web.StreamResponse:
    """
    Answer *exchange* with what *upstream* says.

    Raises:
        EngineError: the engine died before a byte went to the client, so another may answer.
        RequestError: 404, the engine has no such path.
    """
    length = upstream.content_length
    is_events = upstream.content_type == "text/event-stream"
    headers = returned(upstream.headers, exchange.request_id)
    if length is not None and length <= MOST_WHOLE_BYTES and not is_events:
        body = await read_whole(upstream, endpoint)
        if upstream.status == 404 and body == NO_SUCH_PATH:
            message = f"The model `{exchange.model}` does not answer {exchange.request.rel_url.raw_path}."
            raise RequestError(404, "unsupported_by_model", message, param="model")
        exchange.status = upstream.status
        exchange.note(body, time.monotonic())
        return web.Response(status=upstream.status, reason=upstream.reason, headers=headers, body=body)
    exchange.is_stream = is_events
    first = await read_chunk(upstream, endpoint)
    response = web.StreamResponse(status=upstream.status, reason=upstream.reason, headers=headers)
    response.content_length = length
    exchange.status = upstream.status
    await response.prepare(exchange.request)
    await (_relay_events if is_events else _relay_bytes)(first, upstream, endpoint, response, exchange)
    return response


async def _relay_bytes(
    chunk: bytes, upstream: aiohttp.ClientResponse, endpoint: Endpoint, response: web.StreamResponse, exchange: Exchange
) -> None:
    """A body that breaks off takes the connection with it, or it would look complete."""
    try:
        while chunk:
            await send(chunk, response, exchange)
            chunk = await read_chunk(upstream, endpoint)
        await response.write_eof()
    except EngineError:
        exchange.lost = "engine_died"
        if transport := exchange.request.transport:
            transport.abort()
        raise ConnectionResetError from None


async def _relay_events(
    chunk: bytes, upstream: aiohttp.ClientResponse, endpoint: Endpoint, response: web.StreamResponse, exchange: Exchange
) -> None:
    """Only whole events are sent on, so that an error event can follow at any time."""
    held = b""
    try:
        while chunk:
            whole, held = split_events(held + chunk if held else chunk)
            if whole:
                await send(whole, response, exchange)
            chunk = await read_chunk(upstream, endpoint)
        if held:
            await send(held, response, exchange)
        await response.write_eof()
        if exchange.ends_in_error():
            exchange.lost = "engine_error"
    except EngineError as error:
        exchange.lost = "engine_died"
        message = f"The engine died while answering; what came so far is not the whole answer. ({error})"
        await end_stream(response, exchange, RequestError(502, "engine_died", message))
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if not exchange.is_aborted or task is None:
            raise
        task.uncancel()
        exchange.lost = "shutdown"
        await end_stream(response, exchange, RequestError(503, "shutdown", "The server is stopping; the answer is not complete."))


async def send(chunk: bytes, response: web.StreamResponse, exchange: Exchange) -> None:
    """Write, and wait while the client is slow; its connection ends if it takes nothing."""
    exchange.note(chunk, time.monotonic())
    await response.write(chunk)


async def end_stream(response: web.StreamResponse, exchange: Exchange, error: RequestError) -> None:
    """Say in the stream why it ends."""
    await send(error_event(error, exchange.dialect, exchange.request_id), response, exchange)
    await response.write_eof()
