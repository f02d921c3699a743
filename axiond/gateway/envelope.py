"""An error as the body or stream event that the client's library understands."""

from enum import Enum

import orjson

from axiond.errors import QueueError, RequestError


class Dialect(Enum):
    OPENAI = "openai"
    ANTHROPIC = "anthropic"


_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_ANTHROPIC_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 503: "overloaded_error",
}  # fmt: skip


def dialect_of(path: str) -> Dialect:
    return Dialect.ANTHROPIC if path.startswith("/v1/messages") else Dialect.OPENAI


def error_body(error: RequestError, dialect: Dialect, request_id: str = "") -> bytes:
    """The body of an error answer."""
    fallback = "invalid_request_error" if error.status < 500 else "server_error" if dialect is Dialect.OPENAI else "api_error"
    if dialect is Dialect.ANTHROPIC:
        kind = _ANTHROPIC_TYPES.get(error.status, fallback)
        return orjson.dumps({"type": "error", "error": {"type": kind, "message": error.message}, "request_id": request_id})
    kind = _OPENAI_TYPES.get(error.status, fallback)
    return orjson.dumps({"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}})


def error_event(error: RequestError, dialect: Dialect, request_id: str = "") -> bytes:
    """The last event of a stream that cannot go on."""
    head = b"event: error\n" if dialect is Dialect.ANTHROPIC else b""
    return head + b"data: " + error_body(error, dialect, request_id) + b"\n\n"


def error_headers(error: RequestError) -> dict[str, str]:
    headers = {"Content-Type": "application/json"}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return {**headers, **queue_headers(error.position, error.estimate_s)} if isinstance(error, QueueError) else headers


def queue_headers(position: int, estimate_s: float | None) -> dict[str, str]:
    known = {} if estimate_s is None else {"X-Axiond-Queue-Estimate": _seconds(estimate_s)}
    return {"X-Axiond-Queue-Position": str(position), **known}


def queue_event(position: int, estimate_s: float | None, dialect: Dialect) -> bytes:
    """What a stream says while its request waits: a comment, with the ping that Anthropic's streams have."""
    known = "" if estimate_s is None else f" estimate_s={_seconds(estimate_s)}"
    ping = 'event: ping\ndata: {"type": "ping"}\n\n' if dialect is Dialect.ANTHROPIC else "\n"
    return f": queued position={position}{known}\n{ping}".encode()


def _seconds(seconds: float) -> str:
    return f"{round(seconds, 1):g}"
