"""Requests that engines answer: find the model, lease an engine, pass the request through."""

import asyncio
import math
import random
import re
import time
from collections import OrderedDict
from dataclasses import dataclass

from aiohttp import web
from structlog.typing import FilteringBoundLogger

from axiond import log
from axiond.errors import EngineError, RequestError
from axiond.gateway.body import Pieces, model_in_form, model_in_json, rename_in_form, rename_in_json
from axiond.gateway.connection import Bodies, read_body
from axiond.gateway.exchange import Exchange
from axiond.gateway.headers import forwarded
from axiond.gateway.relay import relay
from axiond.gateway.upstream import Upstreams
from axiond.gateway.waiting import wait_for_turn
from axiond.manifest.spec import Server
from axiond.reconcile.state import EngineKey
from axiond.routing.choose import candidates, engine_name
from axiond.routing.paths import FORM_PATHS, LIGHT_PATHS
from axiond.routing.router import Router
from axiond.routing.ticket import Asked, Lease

STORED_RESPONSE = re.compile(r"/v1/responses/([A-Za-z0-9_.-]{1,128})(/cancel)?")
MOST_ATTEMPTS = 3
MOST_REMEMBERED = 10_000
_RESPONSE_ID = re.compile(rb'"id"\s*:\s*"(resp_[A-Za-z0-9_.-]{1,120})"')


@dataclass(frozen=True, slots=True)
class Ask:
    """A body and the name it asks for; *is_named* is false where the name was supplied here."""

    name: str
    body: bytes | None
    is_named: bool = True
    form_type: str = ""

    def body_for(self, name: str) -> bytes | Pieces | None:
        """The body that asks for *name*: the very same bytes if it does already."""
        if self.body is None or not self.is_named or name == self.name:
            return self.body
        return rename_in_form(self.body, self.form_type, name) if self.form_type else rename_in_json(self.body, name)


class Passthrough:
    """Answers requests from engines, unchanged but for the model's name."""

    def __init__(self, router: Router, upstreams: Upstreams, server: Server, bodies: Bodies, logger: FilteringBoundLogger) -> None:
        self._router, self._upstreams, self._server, self._bodies, self._log = router, upstreams, server, bodies, logger
        self._responses: OrderedDict[str, str] = OrderedDict()

    async def answer(self, exchange: Exchange) -> web.StreamResponse:
        """
        Answer a POST on one of `PATHS`.

        Raises:
            RequestError: nothing was sent yet.
        """
        ask = await self._read(exchange)
        path = exchange.request.rel_url.raw_path
        response = await self._forward(exchange, ask, is_light=path in LIGHT_PATHS)
        if path == "/v1/responses" and (found := _RESPONSE_ID.search(exchange.head)):
            self._remember(found[1].decode(), ask.name)
        return response

    async def answer_stored(self, exchange: Exchange, response_id: str) -> web.StreamResponse:
        """Get or cancel a stored response, from the model that made it."""
        body = await read_body(exchange, self._bodies, self._server.header_timeout_s)
        name = self._responses.get(response_id) or self._only_name()
        return await self._forward(exchange, Ask(name, body or None, is_named=False), is_light=True)

    async def _read(self, exchange: Exchange) -> Ask:
        request = exchange.request
        form = request.rel_url.raw_path in FORM_PATHS
        wanted = "multipart/form-data" if form else "application/json"
        if request.content_type != wanted:
            raise RequestError(415, "unsupported_media_type", f"The Content-Type must be {wanted}, not {request.content_type[:100]}.")
        body = await read_body(exchange, self._bodies, self._server.header_timeout_s)
        form_type = request.headers["Content-Type"] if form else ""
        name = model_in_form(body, form_type) if form else model_in_json(body)
        return Ask(name or self._only_name(), body, bool(name), form_type)

    def _only_name(self) -> str:
        """A name of the only model there is."""
        table = self._router.table
        if len(table.pools) != 1 and table.generation:
            raise RequestError(
                400, "missing_model", "Several models are served: say which `model`; GET /v1/models lists them.", param="model"
            )
        return next(iter(table.names), "")

    async def _forward(self, exchange: Exchange, ask: Ask, *, is_light: bool) -> web.StreamResponse:
        """Try engines until one answers; none is tried twice."""
        draw = random.random()  # noqa: S311  # spreads load, guards nothing
        failed: list[EngineKey] = []
        exchange.model = next(iter(candidates(self._router.table, ask.name, draw)), "")
        patience_s = None if exchange.ends_at == math.inf else exchange.ends_at - time.monotonic()
        asked = Asked(ask.name, draw, exchange.client, is_light, patience_s)
        while True:
            found = self._router.lease(asked, failed)
            with found if isinstance(found, Lease) else await wait_for_turn(found, exchange, ask.body) as lease:
                exchange.model, exchange.retries = lease.pool.model, len(failed)
                try:
                    return await self._attempt_in_time(exchange, ask, lease)
                except EngineError as error:
                    exchange.lost = ""
                    self._router.distrust(lease.endpoint.key)
                    failed.append(lease.endpoint.key)
                    self._log.warning(log.REQUEST_WAS_RETRIED, request_id=exchange.request_id, reason=str(error))
                    if len(failed) == MOST_ATTEMPTS:
                        raise RequestError(503, "engine_failed", f"{len(failed)} engines failed: {error}", retry_after_s=5) from error

    async def _attempt_in_time(self, exchange: Exchange, ask: Ask, lease: Lease) -> web.StreamResponse:
        if exchange.ends_at == math.inf:
            return await self._attempt(exchange, ask, lease)
        try:
            async with asyncio.timeout(exchange.ends_at - time.monotonic()):
                return await self._attempt(exchange, ask, lease)
        except TimeoutError as exc:
            message = "The request's X-Request-Timeout has passed before its answer was complete."
            raise RequestError(504, "deadline_exceeded", message) from exc

    async def _attempt(self, exchange: Exchange, ask: Ask, lease: Lease) -> web.StreamResponse:
        request, endpoint = exchange.request, lease.endpoint
        body = ask.body_for(engine_name(lease.pool, endpoint, ask.name))
        headers = forwarded(request.headers, exchange.request_id)
        upstream = await self._upstreams.send(endpoint, request.method, request.rel_url.raw_path_qs, headers, body)
        try:
            if upstream.status >= 500:
                exchange.lost = "engine_error"
            return await relay(upstream, endpoint, exchange)
        finally:
            upstream.close()

    def _remember(self, response_id: str, name: str) -> None:
        self._responses[response_id] = name
        if len(self._responses) > MOST_REMEMBERED:
            self._responses.popitem(last=False)
