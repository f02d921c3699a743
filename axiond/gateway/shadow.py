"""Copies of requests for models on trial: their answers are discarded, their figures are kept."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import aiohttp
from structlog.typing import FilteringBoundLogger

from axiond import log
from axiond.errors import EngineError
from axiond.gateway.body import Ask
from axiond.gateway.exchange import Exchange
from axiond.gateway.headers import forwarded
from axiond.gateway.upstream import Upstreams, read_chunk
from axiond.gateway.usage import TAIL_BYTES, count_tokens
from axiond.routing.choose import engine_name
from axiond.routing.decision import Decision
from axiond.routing.router import Router
from axiond.routing.ticket import Lease

MOST_COPIES = 16
MOST_BYTES = 64 * 2**20
DEADLINE_S = 600.0

Outcome = Literal["answered", "failed", "dropped"]


@dataclass(slots=True)
class Shadow:
    """One copy, and what became of it: *dropped*, it found no engine with room, or too many are on their way."""

    route: str
    model: str
    outcome: Outcome = "dropped"
    took_s: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Shadows:
    """
    Sends copies of requests without anybody waiting for them. Use with `async with`: copies on their way end with it.

    A copy takes room that is free and never waits for any, so that it neither loads a model nor delays a request.

    Args:
        ended: hears of every copy.
    """

    def __init__(
        self, router: Router, upstreams: Upstreams, logger: FilteringBoundLogger, ended: Callable[[Shadow], None] = lambda _: None
    ) -> None:
        self._router, self._upstreams, self._log, self._ended = router, upstreams, logger, ended
        self._copies: dict[asyncio.Task[None], int] = {}

    async def __aenter__(self) -> "Shadows":
        return self

    async def __aexit__(self, *_: object) -> None:
        for copy in self._copies:
            copy.cancel()
        if self._copies:
            await asyncio.wait(list(self._copies))

    def copy(self, exchange: Exchange, ask: Ask, decision: Decision) -> None:
        """Have the request answered by the shadow of *decision* too."""
        shadow, size = Shadow(decision.route, decision.shadow), len(ask.body or b"")
        is_too_much = len(self._copies) >= MOST_COPIES or sum(self._copies.values()) + size > MOST_BYTES
        lease = None if is_too_much else self._router.lease_spare(shadow.model)
        if lease is None:
            self._ended(shadow)
            return
        task = asyncio.create_task(self._send(exchange, ask, lease, shadow), name=f"shadow {exchange.request_id}")
        self._copies[task] = size
        task.add_done_callback(lambda done: self._end(done, lease, shadow))

    def _end(self, task: asyncio.Task[None], lease: Lease, shadow: Shadow) -> None:
        """Runs for a copy that was cancelled before its first step, too."""
        del self._copies[task]
        self._router.release(lease)
        self._ended(shadow)
        if not task.cancelled() and (error := task.exception()):
            self._log.warning(log.SHADOW_FAILED, route=shadow.route, model=shadow.model, reason=repr(error))

    async def _send(self, exchange: Exchange, ask: Ask, lease: Lease, shadow: Shadow) -> None:
        request, endpoint, began_s = exchange.request, lease.endpoint, time.monotonic()
        method, path, headers = request.method, request.rel_url.raw_path_qs, forwarded(request.headers, exchange.request_id)
        shadow.outcome = "failed"
        try:
            async with asyncio.timeout(DEADLINE_S):
                upstream = await self._upstreams.send(
                    endpoint, method, path, headers, ask.body_for(engine_name(lease.pool, endpoint, ask.name))
                )
                try:
                    tail, events = await _read_through(upstream, lease)
                finally:
                    upstream.close()
        except (EngineError, TimeoutError) as error:
            self._log.debug(log.SHADOW_FAILED, route=shadow.route, model=shadow.model, reason=str(error) or "timeout")
            return
        shadow.took_s = time.monotonic() - began_s
        if upstream.status < 400:
            shadow.outcome = "answered"
            shadow.prompt_tokens, completion = count_tokens(tail)
            shadow.completion_tokens = events if completion is None else completion
        self._log.debug(
            log.SHADOW_WAS_ANSWERED, request_id=exchange.request_id, route=shadow.route, model=shadow.model, status=upstream.status
        )


async def _read_through(upstream: aiohttp.ClientResponse, lease: Lease) -> tuple[bytes, int]:
    """Read an answer to its end; what it says there, and how many events it had."""
    tail, events = b"", 0
    while chunk := await read_chunk(upstream, lease.endpoint):
        tail = (tail + chunk)[-TAIL_BYTES:]
        events += chunk.count(b"data: {")
    return tail, events
