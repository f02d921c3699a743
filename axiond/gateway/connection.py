"""What a client may cost: time until its request is whole, time to take its answer, and bytes."""

import asyncio
from dataclasses import dataclass

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from axiond.errors import RequestError
from axiond.gateway.envelope import Dialect, error_body, error_headers
from axiond.gateway.exchange import Exchange

MOST_BODIES_BYTES = 512 * 2**20
READ_BYTES = 2**20


class Connection(web.RequestHandler):
    """One client's connection; cuts off a head that is not whole in time and a client that takes nothing, which aiohttp does not."""

    __slots__ = ("_head_timeout_s", "_head_timer", "_stall_timeout_s", "_stall_timer")

    def __init__(self, manager: web.Server, *, head_timeout_s: float, stall_timeout_s: float, **options: object) -> None:
        super().__init__(manager, **options)  # type: ignore[arg-type]
        self._head_timeout_s, self._stall_timeout_s = head_timeout_s, stall_timeout_s
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    @property
    def unsent_bytes(self) -> int:
        """What was written and the system has not taken yet."""
        return self.transport.get_write_buffer_size() if self.transport else 0

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._waiter is not None and not self._waiter.done():  # bytes came, but still no request
            if self._head_timer is None and data:
                self._head_timer = self._loop.call_later(self._head_timeout_s, self._head_is_late)
        elif self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_stall(self.unsent_bytes)

    def resume_writing(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        super().resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        for timer in (self._head_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def _watch_stall(self, unsent_bytes: int) -> None:
        self._stall_timer = self._loop.call_later(self._stall_timeout_s, self._check_stall, unsent_bytes)

    def _check_stall(self, unsent_bytes: int) -> None:
        if self.unsent_bytes != unsent_bytes:
            self._watch_stall(self.unsent_bytes)
        elif self.transport is not None:
            self.transport.abort()

    def _head_is_late(self) -> None:
        error = RequestError(408, "request_timeout", f"The request head was not complete within {self._head_timeout_s:g} s.")
        body = error_body(error, Dialect.OPENAI)
        if self.transport is not None:
            self.transport.write(
                b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            )
        self.force_close()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer what is not HTTP."""
        status = 431 if isinstance(exc, LineTooLong) else status
        text = (message or "The request could not be read.").split("\n")[0][:300]
        error = RequestError(status, "invalid_request", text)
        response = web.Response(status=status, body=error_body(error, Dialect.OPENAI), headers=error_headers(error))
        response.force_close()
        return response


class ClientServer(web.Server):
    """aiohttp's low-level server with our connections and body limit."""

    def __init__(self, handler: object, *, max_body_bytes: int, **options: object) -> None:
        super().__init__(handler, request_factory=self._request, handler_cancellation=True)  # type: ignore[arg-type]
        self._max_body_bytes, self._options = max_body_bytes, options

    def __call__(self) -> web.RequestHandler:
        return Connection(self, loop=self._loop, **self._options)  # type: ignore[arg-type]

    def has_unsent(self) -> bool:
        """Whether a client has yet to take some of its answer."""
        return any(isinstance(client, Connection) and client.unsent_bytes for client in self.connections)

    def _request(self, message, payload, protocol, writer, task):  # type: ignore[no-untyped-def]
        return web.BaseRequest(message, payload, protocol, writer, task, self._loop, client_max_size=self._max_body_bytes)


@dataclass(slots=True)
class Bodies:
    """The request bodies that all running requests hold together."""

    most_bytes: int
    held_bytes: int = 0

    def refuse_above(self, more_bytes: int) -> None:
        """Raises RequestError 503 if *more_bytes* are too many."""
        if self.held_bytes + more_bytes > self.most_bytes:
            message = "Too many large requests are being handled; try again later."
            raise RequestError(503, "overloaded", message, retry_after_s=5)


async def read_body(exchange: Exchange, bodies: Bodies, timeout_s: float) -> bytes:
    """
    Read the whole body. It counts among *bodies* until the exchange is over.

    Raises:
        RequestError: 413 too large, 408 too slow, 400 not readable, 503 too many are held.
    """
    request = exchange.request
    told_bytes = request.content_length or 0
    if told_bytes > request.client_max_size:
        raise _too_large(request)
    bodies.refuse_above(told_bytes)
    try:
        if request.content.is_eof():
            return await _read(exchange, bodies)
        if request.headers.get("Expect", "").lower() == "100-continue" and request.transport:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        async with asyncio.timeout(timeout_s):
            return await _read(exchange, bodies)
    except TimeoutError as exc:
        raise RequestError(408, "request_timeout", f"The request body was not complete within {timeout_s:g} s.") from exc
    except web.RequestPayloadError as exc:
        raise RequestError(400, "invalid_body", f"The request body could not be read: {str(exc)[:200]}") from exc


async def _read(exchange: Exchange, bodies: Bodies) -> bytes:
    """As `request.read()`, but every chunk counts as it comes."""
    request, chunks = exchange.request, []
    request.content.set_read_chunk_size(READ_BYTES)
    while chunk := await request.content.readany():
        bodies.refuse_above(len(chunk))
        bodies.held_bytes += len(chunk)
        exchange.body_bytes += len(chunk)
        if exchange.body_bytes > request.client_max_size:
            raise _too_large(request)
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large(request: web.BaseRequest) -> RequestError:
    return RequestError(413, "request_too_large", f"The request body is larger than {request.client_max_size} bytes.")
