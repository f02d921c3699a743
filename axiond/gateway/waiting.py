"""Wait for a turn, and tell a streaming client meanwhile how long it will be."""

import asyncio
import math

from aiohttp import web

from axiond.gateway.body import wants_stream
from axiond.gateway.envelope import queue_event, queue_headers
from axiond.gateway.exchange import Exchange
from axiond.gateway.headers import SERVER
from axiond.gateway.relay import send_aside
from axiond.routing.ticket import Lease, Place, Ticket

STREAM_PATHS = frozenset(("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"))
HELD_BACK_S = 2.0  # errors keep their status so long
NEWS_EVERY_S = 5.0


async def wait_for_turn(ticket: Ticket, exchange: Exchange, body: bytes | None, most_s: float = math.inf) -> Lease | None:
    """
    Return the lease, which the caller enters at once; None after *most_s*. Gives the place back when the client leaves.

    Raises:
        RequestError: nothing can answer any more, or the request waited too long.
    """
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    ends_s, pause_s = began_s + min(most_s, ticket.most_s), HELD_BACK_S
    try:
        with ticket:
            while True:
                if lease := await ticket.wait(min(ends_s - loop.time(), pause_s)):
                    return lease
                if loop.time() >= ends_s:
                    if most_s < ticket.most_s:
                        return None
                    raise ticket.late()
                if pause_s == HELD_BACK_S:
                    pause_s = NEWS_EVERY_S if _may_stream(exchange, body) else math.inf
                if pause_s == NEWS_EVERY_S:
                    await _tell(exchange, ticket.place())
    finally:
        exchange.waited_s = (exchange.waited_s or 0.0) + loop.time() - began_s


def _may_stream(exchange: Exchange, body: bytes | None) -> bool:
    return body is not None and exchange.request.rel_url.raw_path in STREAM_PATHS and wants_stream(body)


async def _tell(exchange: Exchange, place: Place) -> None:
    """Say where the request stands, and begin its stream for that."""
    if exchange.answer is None:
        headers = {
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-store",
            "Server": SERVER,
            "X-Request-ID": exchange.request_id,
            **exchange.headers(),
            **queue_headers(place.position, place.estimate_s),
        }
        await exchange.begin(web.StreamResponse(headers=headers), is_stream=True)
    assert exchange.answer is not None
    await send_aside(queue_event(place.position, place.estimate_s, exchange.dialect), exchange.answer, exchange)
