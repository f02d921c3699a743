"""A stub engine and a load generator that cost as little as Python can, so that the proxy between them is what is measured."""

import asyncio
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import orjson

CHUNKS = 50
PROMPT = "The quick brown fox jumps over the lazy dog. " * 10


def request(is_stream: bool, model: str, key: str = "") -> bytes:
    body = orjson.dumps({
        "model": model, "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}],
        "max_tokens": CHUNKS, "temperature": 0, "stream": is_stream,
    })  # fmt: skip
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nAccept: */*\r\n"
    auth = f"Authorization: Bearer {key}\r\n" if key else ""
    return f"{head}{auth}User-Agent: bench/1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(index: int, finish: str | None) -> bytes:
    choice = {"index": 0, "delta": {"content": f" word{index}"}, "logprobs": None, "finish_reason": finish}
    event = {"id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return _chunk(b"data: " + orjson.dumps(event) + b"\n\n")


_WHOLE_BODY = orjson.dumps({
    "id": "chatcmpl-bench", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": " word" * CHUNKS}, "logprobs": None, "finish_reason": "length"}],
    "usage": {"prompt_tokens": 100, "total_tokens": 150, "completion_tokens": 50},
})  # fmt: skip
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(_WHOLE_BODY), _WHOLE_BODY)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
EVENTS = [_event(index, "length" if index == CHUNKS - 1 else None) for index in range(CHUNKS)]
LAST_BYTES = _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class Stub(asyncio.Protocol):
    """Answers every request at once; a stream's events leave one by one, each in its own turn of the loop."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self._seen, self._loop = cast("asyncio.Transport", transport), b"", asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self._seen += data
        while (end := self._seen.find(b"\r\n\r\n")) >= 0:
            head = self._seen[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._seen) < end + 4 + length:
                return
            body, self._seen = self._seen[end + 4 : end + 4 + length], self._seen[end + 4 + length :]
            self._answer(b'"stream":true' in body.replace(b" ", b""))

    def _answer(self, is_stream: bool) -> None:
        if is_stream:
            self._transport.write(STREAM_HEAD)
            self._send(0)
        else:
            self._transport.write(WHOLE)

    def _send(self, index: int) -> None:
        if index < CHUNKS:
            self._transport.write(EVENTS[index])
            self._loop.call_soon(self._send, index + 1)
        else:
            self._transport.write(LAST_BYTES)


async def serve_stub(port: int, socket: str) -> None:
    loop = asyncio.get_running_loop()
    await loop.create_server(Stub, "127.0.0.1", port, backlog=1024)
    await loop.create_unix_server(Stub, socket, backlog=1024)
    await asyncio.Event().wait()


@dataclass
class Result:
    """One run: requests a second, and seconds for each request."""

    rate: float = 0.0
    took_s: list[float] = field(default_factory=list)
    failed: int = 0
    answered: int = 0

    def quantile(self, share: float) -> float:
        return sorted(self.took_s)[min(len(self.took_s) - 1, int(len(self.took_s) * share))]

    @property
    def p50(self) -> float:
        return statistics.median(self.took_s)


class Client(asyncio.Protocol):
    """One connection that asks again as soon as it was answered."""

    def __init__(self, payload: bytes, is_stream: bool, ended: Callable[[float, bool], bool]) -> None:
        self._payload, self._is_stream, self._ended = payload, is_stream, ended
        self._gone = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    def _ask(self) -> None:
        self._seen = b""
        self._began_at = time.perf_counter()
        self._transport.write(self._payload)

    def data_received(self, data: bytes) -> None:
        self._seen += data
        if self._is_whole():
            is_good = self._seen.startswith(b"HTTP/1.1 200") and (not self._is_stream or b"[DONE]" in self._seen)
            if self._ended(time.perf_counter() - self._began_at, is_good):
                self._ask()
            else:
                self._transport.close()

    def _is_whole(self) -> bool:
        end = self._seen.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = self._seen[:end].lower()
        if b"transfer-encoding: chunked" in head:
            return self._seen.endswith(b"0\r\n\r\n")
        return len(self._seen) >= end + 4 + int(head.split(b"content-length:")[1].split(b"\r\n")[0])

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone.set_result(None)

    async def wait(self) -> None:
        await self._gone


async def load(port: int, payload: bytes, is_stream: bool, connections: int, seconds: float) -> Result:
    """Ask over *connections* for *seconds*; the first fifth only warms up."""
    loop, result = asyncio.get_running_loop(), Result()
    began = time.perf_counter()
    counted_from, until = began + seconds / 5, began + seconds

    def ended(took_s: float, is_good: bool) -> bool:
        now = time.perf_counter()
        result.answered += 1
        if counted_from <= now < until:
            result.took_s.append(took_s)
            result.failed += not is_good
        return now < until

    clients = [Client(payload, is_stream, ended) for _ in range(connections)]
    for client in clients:
        await loop.create_connection(lambda client=client: client, "127.0.0.1", port)  # type: ignore[misc]
    async with asyncio.timeout(seconds + 60):
        await asyncio.gather(*(client.wait() for client in clients))
    result.rate = len(result.took_s) / (seconds * 4 / 5)
    return result
