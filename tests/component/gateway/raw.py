"""Engines and clients that break HTTP in ways a library would not let them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from axiond.engine.engine import Endpoint
from axiond.reconcile.state import EngineKey

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def raw_engine(path: Path, answer: Answer, model: str = "m") -> AsyncIterator[Endpoint]:
    """A Unix socket that reads one request head and body, and then does what *answer* does."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        try:
            await answer(writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_unix_server(serve, path)
    async with server:
        yield Endpoint(EngineKey(model, "raw"), model, socket=path)
        server.close()


@asynccontextmanager
async def raw_client(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def post(path: str, body: bytes, *, length: int | None = None) -> bytes:
    told = len(body) if length is None else length
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {told}\r\n\r\n".encode() + body
