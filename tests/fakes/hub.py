"""A model hub on loopback, with the routes that huggingface_hub asks, and the ways in which a real one fails."""

import asyncio
import hashlib
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web

BIG_BYTES = 100_000  # files from here on are kept in LFS, with a SHA-256
CHUNK_BYTES = 65_536
REPO = "acme/tiny"
COMMIT = "c0ffee" + 34 * "0"


@dataclass
class FakeHub:
    """
    One repository.

    *refuse* answers every question with this status and error code; *cut_after_bytes* drops the connection of the next
    *cuts* big downloads there; *is_held* stops them after one chunk and sets *held*; *is_damaged* changes what they
    carry; *claimed_bytes* is told as the size of big files.
    """

    files: Mapping[str, bytes]
    refuse: tuple[int, str] | None = None
    cut_after_bytes: int = 0
    cuts: int = 0
    is_damaged: bool = False
    is_held: bool = False
    commit: str = COMMIT
    claimed_bytes: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    ranges: list[str] = field(default_factory=list)
    address: str = ""
    held: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def serve(self) -> Iterator[str]:
        """Serve in a thread; yield the address for HF_ENDPOINT."""
        loop = asyncio.new_event_loop()
        runner = loop.run_until_complete(self._start())
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield self.address
        finally:
            asyncio.run_coroutine_threadsafe(_end(runner), loop).result(10)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10)
            loop.close()

    async def _start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/api/models/{owner}/{name}/revision/{revision}", self._info)
        app.router.add_get("/api/models/{owner}/{name}/tree/{revision}", self._tree)
        app.router.add_get("/{owner}/{name}/resolve/{revision}/{path:.+}", self._file)
        runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.address = f"http://{host}:{port}"
        return runner

    def _check(self, request: web.Request, what: str) -> None:
        self.asked[what] += 1
        status, code = self.refuse or (0, "")
        if not status and f"{request.match_info['owner']}/{request.match_info['name']}" != REPO:
            status, code = 401, "RepoNotFound"  # as the real hub, which tells strangers nothing
        if not status and request.match_info["revision"] not in ("main", self.commit):
            status, code = 404, "RevisionNotFound"
        if status:
            response = web.json_response({"error": code or "no"}, status=status, headers={"X-Error-Code": code} if code else {})
            raise _Refused(response)

    async def _info(self, request: web.Request) -> web.StreamResponse:
        try:
            self._check(request, "info")
        except _Refused as refused:
            return refused.response
        return web.json_response({"id": REPO, "modelId": REPO, "sha": self.commit, "siblings": [], "private": False})

    async def _tree(self, request: web.Request) -> web.StreamResponse:
        try:
            self._check(request, "tree")
        except _Refused as refused:
            return refused.response
        entries = [_entry(path, content) for path, content in self.files.items()]
        big = [entry for entry in entries if "lfs" in entry and self.claimed_bytes]
        for entry in big:
            entry["size"] = self.claimed_bytes
        return web.json_response(entries)

    async def _file(self, request: web.Request) -> web.StreamResponse:
        try:
            self._check(request, "file")
        except _Refused as refused:
            return refused.response
        content = self.files[request.match_info["path"]]
        entry = _entry(request.match_info["path"], content)
        sums = {"X-Repo-Commit": self.commit, "ETag": f'"{entry.get("lfs", entry)["oid"]}"', "Accept-Ranges": "bytes"}
        first = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        if request.method == "GET" and "Range" in request.headers:
            self.ranges.append(request.headers["Range"])
        body = content[first:]
        if self.is_damaged and len(content) >= BIG_BYTES:
            body = bytes(len(body))
        headers = sums | {"Content-Length": str(len(body))}
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        response = web.StreamResponse(status=206 if first else 200, headers=headers)
        await response.prepare(request)
        if request.method == "GET":
            await self._send(request, response, body, is_big=len(content) >= BIG_BYTES)
        return response

    async def _send(self, request: web.Request, response: web.StreamResponse, body: bytes, *, is_big: bool) -> None:
        for start in range(0, len(body), CHUNK_BYTES):
            if is_big and self.cuts and start >= self.cut_after_bytes:
                self.cuts -= 1
                assert request.transport
                request.transport.abort()
                return
            await response.write(body[start : start + CHUNK_BYTES])
            if is_big and self.is_held:
                self.held.set()
                await asyncio.Event().wait()


async def _end(runner: web.AppRunner) -> None:
    """Close everything, the downloads that are held too: what the loop leaves behind would fail a later test."""
    await runner.cleanup()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


class _Refused(Exception):
    def __init__(self, response: web.Response) -> None:
        self.response = response


def _entry(path: str, content: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    if len(content) >= BIG_BYTES:
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry
