"""What is known of one request while it passes through."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from aiohttp import web

from axiond.gateway.envelope import Dialect
from axiond.gateway.usage import TAIL_BYTES, count_tokens
from axiond.manifest.routes import Failure
from axiond.routing.decision import Decision

CLIENT_GONE = 499
HEAD_BYTES = 512


@dataclass(slots=True)
class Exchange:
    """
    One request and its answer, for the metrics and the access log. Times are in seconds of one monotonic clock.

    *lost* says why the request died through no fault of the client; *is_aborted* that its task was cancelled by axiond.
    *client* takes turns with other clients; *key* is its API key. *ends_at* is the deadline. *waited_s* is None if it did not
    have to queue, and *rejected* why it got no turn. *answer* is what has begun.

    *decision* says which models may answer, *decided_in_s* how long that took where rules were asked. *model* is the one
    that does, and *passed* are those before it, and why.
    """

    request: web.BaseRequest
    request_id: str
    dialect: Dialect
    began_at: float
    client: str = ""
    key: str = ""
    ends_at: float = math.inf
    decision: Decision | None = None
    decided_in_s: float | None = None
    model: str = ""
    passed: Mapping[str, Failure] = field(default_factory=dict)
    status: int = 0
    lost: str = ""
    rejected: str = ""
    attempts: int = 0
    waited_s: float | None = None
    answer: web.StreamResponse | None = None
    body_bytes: int = 0
    sent_bytes: int = 0
    first_byte_at: float = 0.0
    last_byte_at: float = 0.0
    is_stream: bool = False
    is_aborted: bool = False
    events: int = 0
    head: bytes = b""
    _tail: tuple[bytes, bytes] = field(default=(b"", b""))

    async def begin(self, answer: web.StreamResponse, *, is_stream: bool) -> None:
        """Send the head of *answer*; from here on an error can only end it."""
        self.answer, self.status, self.is_stream = answer, answer.status, is_stream
        await answer.prepare(self.request)

    def note(self, chunk: bytes, now: float) -> None:
        """Count what went to the client."""
        if not self.first_byte_at:
            self.first_byte_at = now
            self.head = chunk[:HEAD_BYTES]
        self.last_byte_at = now
        self.sent_bytes += len(chunk)
        self._tail = (self._tail[1], chunk[-TAIL_BYTES:])
        if self.is_stream:
            self.events += chunk.count(b"data: {")

    @property
    def route(self) -> str:
        """The name of the route that decided; "" where none did."""
        return self.decision.route if self.decision else ""

    @property
    def is_routed(self) -> bool:
        """Whether more than the name told where it went."""
        return self.decided_in_s is not None or bool(self.passed)

    @property
    def reason(self) -> str:
        """Why it went where it went, in one line."""
        if not self.decision or not self.passed:
            return self.decision.reason if self.decision else ""
        return "; ".join((self.decision.reason, *(f"not {model}: {why}" for model, why in self.passed.items())))

    def headers(self) -> dict[str, str]:
        """What the client is told about routing and waiting."""
        told = {"X-Axiond-Model": self.model} if self.model else {}
        if self.decision:
            told["X-Axiond-Reason"] = self.reason
            if self.decision.route:
                told["X-Axiond-Route"] = self.decision.route
        if self.waited_s is not None:
            told["X-Axiond-Queue-Wait-Ms"] = f"{self.waited_s * 1e3:.0f}"
        return told

    @property
    def ttft_s(self) -> float | None:
        """From request to first event of a stream; None before it."""
        return self.first_byte_at - self.began_at if self.is_stream and self.first_byte_at else None

    def ends_in_error(self) -> bool:
        """Whether the engine itself said in the stream that it failed."""
        return b'data: {"error"' in b"".join(self._tail)

    def tokens(self) -> tuple[int | None, int | None]:
        """Prompt and completion tokens, where the answer names them."""
        return count_tokens(b"".join(self._tail))
