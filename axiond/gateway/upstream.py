"""Connections to engines: one pool for each."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import lru_cache
from io import BytesIO

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from axiond.engine.engine import Endpoint
from axiond.errors import EngineError
from axiond.gateway.body import Pieces
from axiond.routing.router import Router

# vLLM closes a connection after 5 idle seconds; ours has to go first, or a request is sent into a closing one.
KEEPALIVE_TIMEOUT_S = 3.0
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=3600.0)
HEALTH_TIMEOUT = aiohttp.ClientTimeout(total=2.0)
MAX_PLAIN_BYTES = 2**20
PART_BYTES = 2**18
DYING = frozenset({502, 503, 504})


class Upstreams:
    """Use with `async with`: closes every connection at the end."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._sessions: dict[Endpoint, aiohttp.ClientSession] = {}

    async def __aenter__(self) -> "Upstreams":
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(session.close() for session in self._sessions.values()))

    async def send(
        self, endpoint: Endpoint, method: str, path: str, headers: CIMultiDict[str], body: bytes | Pieces | None
    ) -> aiohttp.ClientResponse:
        """
        Send a request and wait for the head of its answer; the caller closes it.

        Raises:
            EngineError: nobody answered, or a dying engine did. Another engine may.
        """
        session = self._sessions.get(endpoint) or await self._open(endpoint)
        data = _payload(body, headers)
        url = _url(endpoint.base_url + path)
        try:
            response = await session.request(method, url, headers=headers, data=data, allow_redirects=False)
        except (aiohttp.ClientError, OSError) as exc:
            raise EngineError(str(endpoint.key), f"did not answer: {exc or type(exc).__name__}") from exc
        if response.status in DYING or (response.status == 500 and not await _is_healthy(session, endpoint)):
            response.close()
            raise EngineError(str(endpoint.key), f"answered {response.status}")
        return response

    async def _open(self, endpoint: Endpoint) -> aiohttp.ClientSession:
        """A new engine is met just when an old one may have gone, so this is where the pools of those are closed."""
        routed = {endpoint for pool in self._router.table.pools.values() for endpoint in pool.endpoints}
        gone = [known for known in self._sessions if known not in routed and not self._router.in_flight(known.key)]
        self._sessions[endpoint] = session = _session(endpoint)
        closing = [self._sessions.pop(known) for known in gone if known != endpoint]
        await asyncio.gather(*(old.close() for old in closing))
        return session


def _payload(body: bytes | Pieces | None, headers: CIMultiDict[str]) -> bytes | BytesIO | AsyncIterator[memoryview] | None:
    """What to send for *body*; a long one goes in parts and is never copied."""
    if not isinstance(body, tuple):
        return BytesIO(body) if body is not None and len(body) > MAX_PLAIN_BYTES else body
    views = [memoryview(piece) for piece in body]
    size = sum(map(len, views))
    if size <= MAX_PLAIN_BYTES:
        return b"".join(views)
    headers["Content-Length"] = str(size)
    return _parts(views)


async def _parts(views: Sequence[memoryview]) -> AsyncIterator[memoryview]:
    for view in views:
        for start in range(0, len(view), PART_BYTES):
            yield view[start : start + PART_BYTES]


async def _is_healthy(session: aiohttp.ClientSession, endpoint: Endpoint) -> bool:
    """vLLM answers 500 both for a request that it cannot do and when its EngineCore is dead; its health tells them apart."""
    try:
        async with session.get(_url(endpoint.base_url + "/health"), timeout=HEALTH_TIMEOUT) as response:
            return response.status == 200
    except (aiohttp.ClientError, OSError):
        return False


@lru_cache(maxsize=256)
def _url(text: str) -> URL:
    return URL(text, encoded=True)


def _session(endpoint: Endpoint) -> aiohttp.ClientSession:
    connector: aiohttp.BaseConnector
    if endpoint.socket:
        connector = aiohttp.UnixConnector(str(endpoint.socket), limit=0, keepalive_timeout=KEEPALIVE_TIMEOUT_S)
    else:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_TIMEOUT_S)
    return aiohttp.ClientSession(
        connector=connector,
        timeout=TIMEOUT,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    )


async def read_chunk(response: aiohttp.ClientResponse, endpoint: Endpoint) -> bytes:
    """
    Return what has come, at least one byte; b"" at the end of a complete answer.

    Raises:
        EngineError: the engine died before the answer was complete.
    """
    try:
        return await response.content.readany()
    except (aiohttp.ClientError, OSError) as exc:
        raise EngineError(str(endpoint.key), f"died while answering ({type(exc).__name__})") from exc


async def read_whole(response: aiohttp.ClientResponse, endpoint: Endpoint) -> bytes:
    """Return the whole body. Raises EngineError as `read_chunk()` does."""
    parts = []
    while chunk := await read_chunk(response, endpoint):
        parts.append(chunk)
    return b"".join(parts)
