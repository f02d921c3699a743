"""Have a request answered by the first of its models that can."""

import asyncio
import math
import random
import time
from collections.abc import Sequence
from dataclasses import replace

from aiohttp import web
from structlog.typing import FilteringBoundLogger

from axiond import log
from axiond.errors import EngineError, QueueError, RequestError
from axiond.gateway.body import Ask
from axiond.gateway.exchange import Exchange
from axiond.gateway.headers import forwarded
from axiond.gateway.relay import Begun, begin, relay
from axiond.gateway.shadow import Shadows
from axiond.gateway.upstream import Upstreams
from axiond.gateway.waiting import wait_for_turn
from axiond.manifest.routes import Failure
from axiond.reconcile.state import EngineKey
from axiond.routing.choose import engine_name
from axiond.routing.decision import Decision
from axiond.routing.router import Router
from axiond.routing.ticket import Asked, Lease

MOST_ATTEMPTS = 3
_LOST_TURN: dict[str, Failure] = {"displaced": "overload", "timeout": "timeout"}


class _Unanswered(Exception):
    """A model did not answer, for *reason*; *error* is what the client is told if no other may."""

    def __init__(self, model: str, reason: Failure, error: RequestError) -> None:
        self.model, self.reason, self.error = model, reason, error
        super().__init__(model, reason, error)


class Chain:
    """
    Tries the models of a decision in their order.

    All engines of a model are tried, `MOST_ATTEMPTS` at most, before the next model is, and that needs a reason which the
    decision allows. "error": its engines failed, answered 5xx, or there are none. "overload": its queue is full, its turn
    would come too late, or an engine answered 429. "timeout": no byte of an answer came in time, waiting for a turn
    included; the last model has all the time. A model that is being loaded is passed for an error at once, unless its loading
    was reckoned with: in the scores, or by a limit to the wait. The router sees which models have no engine or no room, and goes past them
    by itself. No model is come back to, and nothing is tried again once a byte of an answer has gone to the client.
    """

    def __init__(self, router: Router, upstreams: Upstreams, shadows: Shadows, logger: FilteringBoundLogger) -> None:
        self._router, self._upstreams, self._shadows, self._log = router, upstreams, shadows, logger

    async def answer(self, exchange: Exchange, ask: Ask, decision: Decision, *, is_light: bool) -> web.StreamResponse:
        """
        Answer *exchange* as *decision* says.

        Raises:
            RequestError: nothing could; it says what was tried. Nothing was sent, or only a stream's beginning.
        """
        draw = random.random()  # noqa: S311  # spreads load, guards nothing
        is_patient = decision.is_scored or decision.timeout_s is not None or decision.max_wait_s is not None
        asked = Asked(
            ask.name, draw, exchange.client, is_light,
            models=decision.models, fallback_on=decision.fallback_on, max_wait_s=decision.max_wait_s, is_patient=is_patient,
        )  # fmt: skip
        failures: list[str] = []
        while True:
            asked.patience_s = None if exchange.ends_at == math.inf else exchange.ends_at - time.monotonic()
            try:
                return await self._answer_from(exchange, ask, asked, decision)
            except _Unanswered as lost:
                if not _may_pass(asked, lost.model, lost.reason):
                    raise _told(lost.error, failures) from lost
                failures.append(str(lost.error))
                asked.passed[lost.model] = lost.reason
                asked.models = _after(asked.models, lost.model)
            except RequestError as error:
                raise _told(error, failures) from None

    async def _answer_from(self, exchange: Exchange, ask: Ask, asked: Asked, decision: Decision) -> web.StreamResponse:
        """Answer from the first model that the router gives an engine of."""
        ends_s = math.inf if decision.timeout_s is None else asyncio.get_running_loop().time() + decision.timeout_s
        failed: list[EngineKey] = []
        while True:
            with await self._lease(exchange, ask, asked, failed, ends_s) as lease:
                self._note(lease, exchange, ask, asked, decision)
                try:
                    return await self._attempt_in_time(exchange, ask, asked, lease, ends_s)
                except EngineError as error:
                    model, key = lease.pool.model, lease.endpoint.key
                    self._router.distrust(key)
                    failed.append(key)
                    exchange.lost = ""
                    self._log.warning(log.REQUEST_WAS_RETRIED, request_id=exchange.request_id, reason=str(error))
                    if len(failed) == MOST_ATTEMPTS:
                        why = RequestError(503, "engine_failed", f"{len(failed)} engines failed: {error}", retry_after_s=5)
                        raise _Unanswered(model, "error", why) from error

    async def _lease(self, exchange: Exchange, ask: Ask, asked: Asked, failed: Sequence[EngineKey], ends_s: float) -> Lease:
        """An engine, waited for in turn; after a failure another one of the same model, at once."""
        if failed:
            try:
                lease = self._router.lease(replace(asked, models=(failed[-1].model,), fallback_on=frozenset()), failed)
            except RequestError as error:
                raise _Unanswered(failed[-1].model, "error", error) from None
            assert isinstance(lease, Lease), "after a failure nobody is made to wait"
            return lease
        found = self._router.lease(asked)
        if isinstance(found, Lease):
            return found
        last = found.models[-1]
        most_s = ends_s - asyncio.get_running_loop().time() if _may_pass(asked, last, "timeout") else math.inf
        try:
            lease_or_none = await wait_for_turn(found, exchange, ask.body, most_s)
        except QueueError as error:
            if reason := _LOST_TURN.get(error.reason):
                raise _Unanswered(last, reason, error) from None
            raise
        if lease_or_none is None:
            raise _late(last)
        return lease_or_none

    def _note(self, lease: Lease, exchange: Exchange, ask: Ask, asked: Asked, decision: Decision) -> None:
        """Keep what is told about the way that the request went, and send its copy on the way."""
        exchange.attempts += 1
        exchange.model = model = lease.pool.model
        if asked.passed:
            before = decision.models[: decision.models.index(model)] if model in decision.models else decision.models
            exchange.passed = {each: asked.passed[each] for each in before if each in asked.passed}
        if decision.shadow and exchange.attempts == 1 and not asked.is_light:
            self._shadows.copy(exchange, ask, decision)

    async def _attempt_in_time(self, exchange: Exchange, ask: Ask, asked: Asked, lease: Lease, ends_s: float) -> web.StreamResponse:
        if exchange.ends_at == math.inf:
            return await self._attempt(exchange, ask, asked, lease, ends_s)
        try:
            async with asyncio.timeout(exchange.ends_at - time.monotonic()):
                return await self._attempt(exchange, ask, asked, lease, ends_s)
        except TimeoutError as exc:
            message = "The request's X-Request-Timeout has passed before its answer was complete."
            raise RequestError(504, "deadline_exceeded", message) from exc

    async def _attempt(self, exchange: Exchange, ask: Ask, asked: Asked, lease: Lease, ends_s: float) -> web.StreamResponse:
        model = lease.pool.model
        begun = await self._begin(exchange, ask, lease, ends_s if _may_pass(asked, model, "timeout") else math.inf)
        try:
            status = begun.upstream.status
            reason: Failure | None = "overload" if status == 429 else "error" if status >= 500 else None
            if reason and _may_pass(asked, model, reason):
                raise _Unanswered(model, reason, RequestError(status, "engine_refused", f"Model `{model}` answered {status}."))
            if status >= 500:
                exchange.lost = "engine_error"
            return await relay(begun, exchange)
        finally:
            begun.upstream.close()

    async def _begin(self, exchange: Exchange, ask: Ask, lease: Lease, ends_s: float) -> Begun:
        """Send the request and wait for the first bytes of the answer."""
        if ends_s == math.inf:
            return await self._send(exchange, ask, lease)
        try:
            async with asyncio.timeout_at(ends_s):
                return await self._send(exchange, ask, lease)
        except TimeoutError as exc:
            raise _late(lease.pool.model) from exc

    async def _send(self, exchange: Exchange, ask: Ask, lease: Lease) -> Begun:
        request, endpoint = exchange.request, lease.endpoint
        body = ask.body_for(engine_name(lease.pool, endpoint, ask.name))
        headers = forwarded(request.headers, exchange.request_id)
        upstream = await self._upstreams.send(endpoint, request.method, request.rel_url.raw_path_qs, headers, body)
        try:
            return await begin(upstream, endpoint)
        except BaseException:
            upstream.close()
            raise


def _late(model: str) -> _Unanswered:
    return _Unanswered(model, "timeout", RequestError(504, "timeout", f"Model `{model}` did not begin to answer in time."))


def _after(models: Sequence[str], model: str) -> tuple[str, ...]:
    return tuple(models[models.index(model) + 1 :]) if model in models else ()


def _may_pass(asked: Asked, model: str, reason: Failure) -> bool:
    return reason in asked.fallback_on and bool(_after(asked.models, model))


def _told(error: RequestError, failures: Sequence[str]) -> RequestError:
    """*error* with what was tried before."""
    if failures:
        error.message = f"{error.message} Tried before: {' '.join(failures)}"
    return error
