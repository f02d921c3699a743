"""The REST endpoint: one request in, one answer, one line in the access log."""

import asyncio
import math
import random
import re
import time

import orjson
import structlog
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from axiond import log
from axiond.errors import QueueError, RequestError
from axiond.gateway.auth import authorize
from axiond.gateway.connection import Bodies
from axiond.gateway.envelope import dialect_of, error_body, error_headers
from axiond.gateway.exchange import CLIENT_GONE, Exchange
from axiond.gateway.headers import SERVER
from axiond.gateway.listing import list_models, not_ready_because, show_model
from axiond.gateway.metrics import Metrics
from axiond.gateway.openai import STORED_RESPONSE, Passthrough
from axiond.gateway.relay import break_off
from axiond.routing.paths import PATHS
from axiond.routing.router import Router

OPEN_PATHS = frozenset(("/healthz", "/readyz", "/metrics"))
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


class Rest:
    """Answers every request of the REST endpoint. Knows which are running, so that a shutdown can end them."""

    def __init__(self, router: Router, passthrough: Passthrough, bodies: Bodies, metrics: Metrics) -> None:
        self._router, self._passthrough, self._metrics, self._bodies = router, passthrough, metrics, bodies
        self._log = structlog.get_logger().bind()
        self._running: dict[asyncio.Task[object], Exchange] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self.is_closing = False

    async def wait_until_idle(self) -> None:
        await self._idle.wait()

    def abort(self) -> None:
        """End every running request with an error."""
        for task, exchange in self._running.items():
            exchange.is_aborted = True
            task.cancel()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Never raises for what can be answered; the request is counted and logged whichever way it ends."""
        path = request.rel_url.raw_path
        exchange = Exchange(request, _request_id(request), dialect_of(path), time.monotonic())
        task = asyncio.current_task()
        assert task is not None
        self._running[task] = exchange
        self._idle.clear()
        try:
            response = await self._answer_or_refuse(exchange, path)
            if self.is_closing:
                response.force_close()
            return response
        except (ConnectionError, asyncio.CancelledError):
            exchange.status = exchange.status if exchange.lost else CLIENT_GONE
            raise
        finally:
            del self._running[task]
            self._bodies.held_bytes -= exchange.body_bytes
            if not self._running:
                self._idle.set()
            self._note(exchange, path)

    async def _answer_or_refuse(self, exchange: Exchange, path: str) -> web.StreamResponse:
        try:
            return await self._answer(exchange, path)
        except RequestError as error:
            return await _refuse(exchange, error)
        except ConnectionError:
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not exchange.is_aborted or task is None:
                raise
            task.uncancel()
            message = "The server is stopping" + ("; the answer is not complete." if exchange.answer else ".")
            return await _refuse(exchange, RequestError(503, "shutdown", message, retry_after_s=5))
        except Exception:
            self._log.exception(log.REQUEST_WAS_LOST, request_id=exchange.request_id, path=path[:256])
            return await _refuse(exchange, RequestError(500, "internal_error", "axiond failed to handle this request; its log says why."))

    async def _answer(self, exchange: Exchange, path: str) -> web.StreamResponse:
        request = exchange.request
        if path not in OPEN_PATHS:
            exchange.key = authorize(request.headers, self._router.table.api_keys)
            exchange.client = exchange.key or request.remote or ""
            if (timeout := request.headers.get("X-Request-Timeout")) is not None:
                exchange.ends_at = exchange.began_at + _deadline_s(timeout)
        if path in PATHS:
            _allow(request, "POST")
            return await self._passthrough.answer(exchange)
        if stored := STORED_RESPONSE.fullmatch(path):
            _allow(request, "POST" if stored[2] else "GET")
            return await self._passthrough.answer_stored(exchange, stored[1])
        body, content_type, status = self._look_up(request, path)
        exchange.status, exchange.sent_bytes = status, len(body)
        headers = {"Content-Type": content_type, "Server": SERVER, "X-Request-ID": exchange.request_id}
        return web.Response(status=status, body=body, headers=headers)

    def _look_up(self, request: web.BaseRequest, path: str) -> tuple[bytes, str, int]:
        """Body, content type and status of what axiond answers itself."""
        table = self._router.table
        if path not in OPEN_PATHS and path != "/v1/models" and not path.startswith("/v1/models/"):
            raise RequestError(404, "unknown_url", f"Unknown URL: {request.method} {path[:256]}")
        _allow(request, "GET")
        if path == "/healthz":
            return b"ok\n", "text/plain; charset=utf-8", 200
        if path == "/readyz":
            reason = not_ready_because(table)
            return (reason or "ready").encode() + b"\n", "text/plain; charset=utf-8", 503 if reason else 200
        if path == "/metrics":
            return self._metrics.render(), CONTENT_TYPE_LATEST, 200
        shown = list_models(table) if path == "/v1/models" else show_model(table, request.path.removeprefix("/v1/models/"))
        return orjson.dumps(shown), "application/json", 200

    def _note(self, exchange: Exchange, path: str) -> None:
        now = time.monotonic()
        is_ours = path in OPEN_PATHS
        if not is_ours:
            self._metrics.request_ended(exchange, now)
        write = self._log.debug if is_ours else self._log.warning if exchange.lost else self._log.info
        write(
            log.REQUEST_WAS_LOST if exchange.lost else log.REQUEST_WAS_SERVED,
            request_id=exchange.request_id,
            method=exchange.request.method,
            path=path[:256],
            model=exchange.model,
            status=exchange.status,
            sent_bytes=exchange.sent_bytes,
            took_ms=round((now - exchange.began_at) * 1e3, 3),
            **({} if exchange.ttft_s is None else {"ttft_ms": round(exchange.ttft_s * 1e3, 3)}),
            **({} if exchange.waited_s is None else {"waited_ms": round(exchange.waited_s * 1e3, 3)}),
            **({"route": exchange.route} if exchange.route else {}),
            **({"routed": exchange.reason} if exchange.is_routed else {}),
            **({"reason": exchange.lost} if exchange.lost else {}),
        )


def _allow(request: web.BaseRequest, method: str) -> None:
    if request.method != method and not (method == "GET" and request.method == "HEAD"):
        raise RequestError(405, "method_not_allowed", f"{request.rel_url.raw_path[:256]} takes {method}, not {request.method[:32]}.")


async def _refuse(exchange: Exchange, error: RequestError) -> web.StreamResponse:
    is_wanted = exchange.decision is not None and exchange.decision.refusal is not None
    if (error.status >= 500 and not is_wanted) or isinstance(error, QueueError):
        exchange.lost = error.code
    if isinstance(error, QueueError):
        exchange.rejected = error.reason
    if exchange.answer is not None:
        return await break_off(exchange.answer, exchange, error)
    exchange.status = error.status
    body = error_body(error, exchange.dialect, exchange.request_id)
    exchange.sent_bytes = len(body)
    headers = {**error_headers(error), **exchange.headers(), "Server": SERVER, "X-Request-ID": exchange.request_id}
    response = web.Response(status=error.status, body=body, headers=headers)
    if error.status in (408, 413) or error.code == "overloaded":  # the body was not read to its end
        response.force_close()
    return response


def _deadline_s(timeout: str) -> float:
    try:
        seconds = float(timeout)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise RequestError(400, "invalid_timeout", "X-Request-Timeout must be a number of seconds above 0.")
    return seconds


def _request_id(request: web.BaseRequest) -> str:
    given = request.headers.get("X-Request-ID", "")
    return given if _REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
