"""Real fake engines in real processes, and axiond's REST endpoint in front of them."""

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from axiond.engine.engine import Endpoint
from axiond.gateway.app import serve_rest
from axiond.gateway.connection import MOST_BODIES_BYTES
from axiond.gateway.metrics import Metrics
from axiond.gateway.route import NO_AIDS, Aids
from axiond.manifest.spec import Manifest, ModelSpec, Route, Server
from axiond.reconcile.state import EngineKey
from axiond.routing.router import Router
from axiond.routing.rules import Rules
from axiond.routing.table import Pool, RouteTable

FAKE_ENGINE = Path(__file__).parents[2] / "fakes" / "fake_engine.py"
DEADLINE_S = 20.0


@dataclass
class Fake:
    """A fake engine's process, and what it counts."""

    endpoint: Endpoint
    process: asyncio.subprocess.Process

    async def stats(self) -> dict[str, Any]:
        connector = aiohttp.UnixConnector(str(self.endpoint.socket))
        async with aiohttp.ClientSession("http://engine", connector=connector) as session, session.get("/fake/stats") as answer:
            stats: dict[str, Any] = await answer.json()
            return stats

    async def wait_for(self, **counts: int) -> dict[str, Any]:
        """Ask until the counts are as wanted."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                stats = await self.stats()
                if counts.items() <= stats.items():
                    return stats
                await asyncio.sleep(0.01)

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()


@dataclass
class Site:
    """A gateway under test: change its table, start engines, ask it."""

    router: Router
    metrics: Metrics
    folder: Path
    stack: AsyncExitStack
    session: aiohttp.ClientSession = field(init=False)
    url: str = ""
    server: Server = field(default_factory=Server)
    serving: AsyncExitStack = field(default_factory=AsyncExitStack)
    _engines: int = 0

    async def close(self) -> None:
        """Shut the gateway down."""
        await self.serving.aclose()

    async def start_engine(self, model: str, *options: str, replica: int = 0, digest: str = "d", name: str = "") -> Fake:
        self._engines += 1
        path = self.folder / f"{self._engines}.sock"
        key = EngineKey(model, digest, replica)
        command = [sys.executable, str(FAKE_ENGINE), "--uds", str(path), "--served-model-name", name or model, *options]
        process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        self.stack.push_async_callback(_end, process)
        assert process.stderr is not None
        async with asyncio.timeout(DEADLINE_S):
            line = await process.stderr.readline()
        assert b"serves" in line, line + await process.stderr.read()
        adapters = tuple(word.split("=")[0] for word in options if "=" in word)
        return Fake(Endpoint(key, name or model, socket=path, adapters=adapters), process)

    def route(
        self,
        *fakes: Fake,
        routes: tuple[Route, ...] = (),
        specs: dict[str, ModelSpec] | None = None,
        index: Any = None,
        settings: dict[str, Any] | None = None,
        **table: Any,
    ) -> None:
        """Publish a table with these engines; *specs* adds models, also ones without an engine, *settings* what else the manifest says."""
        models = {**{fake.endpoint.key.model: ModelSpec(source="/m") for fake in fakes}, **(specs or {})}
        pools = {
            model: Pool(model, spec, tuple(fake.endpoint for fake in fakes if fake.endpoint.key.model == model))
            for model, spec in models.items()
        }
        manifest = Manifest(models=models, routes=routes, **(settings or {}))
        named = {route.name: route for route in routes}
        rules, generation = Rules.of(manifest, index), self.router.table.generation + 1
        self.router.publish(RouteTable(generation, pools, manifest.public_names(), named, created=1, rules=rules, **table))

    def change_pool(self, model: str, **changes: Any) -> None:
        table = self.router.table
        self.router.publish(replace(table, pools={**table.pools, model: replace(table.pools[model], **changes)}))

    async def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.communicate()


SiteMaker = Callable[..., Any]


@pytest.fixture
async def open_site() -> AsyncIterator[SiteMaker]:
    """A function that opens a gateway with given server settings."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gw")))

        async def open_one(grace_s: float = 5.0, most_bodies_bytes: int = MOST_BODIES_BYTES, aids: Aids = NO_AIDS, **settings: Any) -> Site:
            router = Router(lambda: None)
            metrics = Metrics(router)
            site = Site(router, metrics, folder, stack, server=Server(listen="127.0.0.1:0", **settings))
            await stack.enter_async_context(site.serving)
            serving = serve_rest(router, site.server, metrics, grace_s, most_bodies_bytes, aids=aids)
            host, port = await site.serving.enter_async_context(serving)
            site.url = f"http://{host}:{port}"
            site.session = await stack.enter_async_context(aiohttp.ClientSession(site.url, timeout=aiohttp.ClientTimeout(DEADLINE_S)))
            return site

        yield open_one


@pytest.fixture
async def site(open_site: SiteMaker) -> Site:
    opened: Site = await open_site()
    return opened


@asynccontextmanager
async def running(coroutine: Any) -> AsyncIterator[asyncio.Task[Any]]:
    """A task that does not outlive the block."""
    task = asyncio.ensure_future(coroutine)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for something that sends no signal."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            if is_so():
                return
            await asyncio.sleep(0.005)


def chat(model: str | None = "m", **fields: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": "say something"}], **fields}
    return body if model is None else {"model": model, **body}
