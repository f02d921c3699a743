"""Requests that engines answer: read one, decide about it, and have it answered."""

import asyncio
import re
from collections import OrderedDict

from aiohttp import web

from axiond.errors import RequestError
from axiond.gateway.body import LONG_BYTES, Ask, as_utf8, model_and_fields, model_in_form
from axiond.gateway.chain import Chain
from axiond.gateway.connection import Bodies, read_body
from axiond.gateway.exchange import Exchange
from axiond.gateway.rewrite import rewrite
from axiond.gateway.route import Aids, route
from axiond.manifest.spec import Server
from axiond.routing.choose import LONGEST_NAME, candidates, only_name
from axiond.routing.decision import Decision
from axiond.routing.paths import FORM_PATHS, LIGHT_PATHS
from axiond.routing.router import Router

STORED_RESPONSE = re.compile(r"/v1/responses/([A-Za-z0-9_.-]{1,128})(/cancel)?")
MOST_REMEMBERED = 10_000
_RESPONSE_ID = re.compile(rb'"id"\s*:\s*"(resp_[A-Za-z0-9_.-]{1,120})"')


class Passthrough:
    """Answers requests from engines, unchanged but for the model's name and what a route adds."""

    def __init__(self, router: Router, chain: Chain, aids: Aids, server: Server, bodies: Bodies) -> None:
        self._router, self._chain, self._aids, self._server, self._bodies = router, chain, aids, server, bodies
        self._responses: OrderedDict[str, tuple[str, str]] = OrderedDict()

    async def answer(self, exchange: Exchange) -> web.StreamResponse:
        """
        Answer a POST on one of `PATHS`.

        Raises:
            RequestError: nothing was sent yet.
        """
        ask = await self._read(exchange)
        path = exchange.request.rel_url.raw_path
        exchange.decision = decision = await route(exchange, ask, self._router, self._aids)
        if decision.refusal:
            status, message = decision.refusal
            raise RequestError(status, "refused_by_route", message)
        exchange.model = decision.models[0]
        add_what_the_route_wants(path, ask, decision)
        response = await self._chain.answer(exchange, ask, decision, is_light=path in LIGHT_PATHS)
        if path == "/v1/responses" and (found := _RESPONSE_ID.search(exchange.head)):
            self._remember(found[1].decode(), ask.name, exchange.model)
        return response

    async def answer_stored(self, exchange: Exchange, response_id: str) -> web.StreamResponse:
        """Get or cancel a stored response, from the model that made it."""
        body = await read_body(exchange, self._bodies, self._server.header_timeout_s)
        name, model = self._responses.get(response_id) or (only_name(self._router.table), "")
        models = (model,) if model in self._router.table.pools else candidates(self._router.table, name, 0.0)
        exchange.decision, exchange.model = Decision(models, reason="stored response"), models[0]
        return await self._chain.answer(exchange, Ask(name, body or None, is_named=False), exchange.decision, is_light=True)

    async def _read(self, exchange: Exchange) -> Ask:
        request = exchange.request
        form = request.rel_url.raw_path in FORM_PATHS
        wanted = "multipart/form-data" if form else "application/json"
        if request.content_type != wanted:
            raise RequestError(415, "unsupported_media_type", f"The Content-Type must be {wanted}, not {request.content_type[:100]}.")
        body = await read_body(exchange, self._bodies, self._server.header_timeout_s)
        form_type = request.headers["Content-Type"] if form else ""
        body = body if form else as_utf8(body)
        name, fields = (model_in_form(body, form_type), None) if form else model_and_fields(body)
        if len(body) > LONG_BYTES:
            await asyncio.sleep(0)  # others get a turn between reading a long body and what comes of it
        return Ask(name or only_name(self._router.table), body, bool(name), form_type, fields)

    def _remember(self, response_id: str, name: str, model: str) -> None:
        self._responses[response_id] = name[:LONGEST_NAME], model  # a pattern of a route takes names of megabytes
        if len(self._responses) > MOST_REMEMBERED:
            self._responses.popitem(last=False)


def add_what_the_route_wants(path: str, ask: Ask, decision: Decision) -> None:
    """Change the body, if it is one that can be changed."""
    if (decision.sampling or decision.system_prompt) and (fields := ask.fields):
        ask.changed = rewrite(path, fields, decision.sampling, decision.system_prompt)
