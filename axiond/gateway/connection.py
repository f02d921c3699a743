"""What a client may cost before its request is whole: time and bytes."""

import asyncio

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from axiond.errors import RequestError
from axiond.gateway.envelope import Dialect, error_body, error_headers


class Connection(web.RequestHandler):
    """One client's connection; cuts off a request head that is not whole in time, which aiohttp does not."""

    __slots__ = ("_head_timeout_s", "_head_timer")

    def __init__(self, manager: web.Server, *, head_timeout_s: float, **options: object) -> None:
        super().__init__(manager, **options)  # type: ignore[arg-type]
        self._head_timeout_s = head_timeout_s
        self._head_timer: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._waiter is not None and not self._waiter.done():  # bytes came, but still no request
            if self._head_timer is None and data:
                self._head_timer = self._loop.call_later(self._head_timeout_s, self._head_is_late)
        elif self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
        super().connection_lost(exc)

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

    def _request(self, message, payload, protocol, writer, task):  # type: ignore[no-untyped-def]
        return web.BaseRequest(message, payload, protocol, writer, task, self._loop, client_max_size=self._max_body_bytes)


async def read_body(request: web.BaseRequest, timeout_s: float) -> bytes:
    """
    Read the whole body.

    Raises:
        RequestError: 413 too large, 408 too slow, 400 not readable.
    """
    try:
        if request.content.is_eof():
            return await request.read()
        if request.headers.get("Expect", "").lower() == "100-continue" and request.transport:
            _refuse_large(request)
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        _refuse_large(request)
        async with asyncio.timeout(timeout_s):
            return await request.read()
    except web.HTTPRequestEntityTooLarge as exc:
        raise RequestError(413, "request_too_large", f"The request body is larger than {request.client_max_size} bytes.") from exc
    except TimeoutError as exc:
        raise RequestError(408, "request_timeout", f"The request body was not complete within {timeout_s:g} s.") from exc
    except web.RequestPayloadError as exc:
        raise RequestError(400, "invalid_body", f"The request body could not be read: {str(exc)[:200]}") from exc


def _refuse_large(request: web.BaseRequest) -> None:
    if (request.content_length or 0) > request.client_max_size:
        raise web.HTTPRequestEntityTooLarge(request.client_max_size, request.content_length or 0)
