"""A whole daemon that tells domains by a small embedding model, around fake engines."""

import asyncio
import shutil
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from axiond.client import AdminClient
from axiond.errors import DaemonRefused
from axiond.report import Status
from axiond.routereport import RouteExplanation, RouteQuestion
from tests.fakes.bert import Bert, write_folder
from tests.fakes.running import FAKE, Running, running

SMALL = {"kv_cache": "64MiB", "drain_grace_s": 5}
FIRST, SECOND = "w1 w2 w3 w4 w5", "w11 w12 w13 w14 w15"


def manifest(folder: Path) -> dict[str, Any]:
    return {
        "models": {name: {"source": str(folder / "model"), **SMALL} for name in ("a", "b")},
        "semantic": {"embedding_model": "./embed", "threshold": 0.0},
        "domains": {"first": {"examples": [FIRST]}, "second": {"examples": [SECOND]}},
        "routes": [
            {"name": "to-a", "when": {"domain": ["first"]}, "models": ["a"]},
            {"name": "to-b", "when": {"domain": ["second"]}, "models": ["b"]},
        ],
    }


async def route_of(http: aiohttp.ClientSession, daemon: Running, prompt: str) -> str:
    request = {"model": "auto", "messages": [{"role": "user", "content": prompt}]}
    async with http.post(f"{daemon.base}/v1/chat/completions", json=request) as response:
        assert response.status == 200, await response.text()
        return response.headers.get("X-Axiond-Route", "")


async def goes_to(http: aiohttp.ClientSession, daemon: Running, prompt: str, route: str) -> None:
    """An embedding that a busy machine has not ready in time is ready for the next request."""
    async with asyncio.timeout(10):
        while await route_of(http, daemon, prompt) != route:
            pass


async def explained(daemon: Running, prompt: str) -> RouteExplanation:
    async with AdminClient(daemon.socket) as admin:
        return await admin.explain(RouteQuestion(model="auto", prompt=prompt))


def condition(status: Status, kind: str) -> tuple[str, str]:
    found = next(condition for condition in status.conditions if condition.type == kind)
    return found.status, found.message


@pytest.fixture
def model(folder: Path) -> Path:
    return write_folder(folder / "embed", Bert(), Bert().tensors())


async def test_an_embedding_model_comes_is_missing_and_comes_back(folder: Path, model: Path, http: aiohttp.ClientSession):
    async with running(folder, manifest(folder)) as daemon:
        await goes_to(http, daemon, FIRST, "to-a")
        await goes_to(http, daemon, SECOND, "to-b")
        found = await explained(daemon, SECOND)
        assert found.verdict
        assert (found.route, found.models, found.verdict.stage) == ("to-b", ("b",), "embedding")

        await _refuses_what_is_missing(daemon)
        await goes_to(http, daemon, SECOND, "to-b")

        daemon.manifest["domains"]["second"]["examples"] = [FIRST]
        daemon.manifest["domains"]["first"]["examples"] = [SECOND]
        daemon.write()
        assert (await daemon.reloaded()).is_realised
        await goes_to(http, daemon, FIRST, "to-b")

        await daemon.stop()
        shutil.move(model, folder / "elsewhere")
        await daemon.start(*FAKE)
        await _serves_with_keywords_alone(daemon, http)

        shutil.move(folder / "elsewhere", model)
        assert (await daemon.reloaded()).is_realised
        assert condition(await daemon.status(), "Degraded") == ("False", "")
        await goes_to(http, daemon, FIRST, "to-b")


async def test_sigterm_ends_a_daemon_that_waits_for_its_embedding_model(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        wanted = manifest(folder)
        wanted["semantic"]["embedding_model"] = "org/encoder"
        daemon = Running(folder, wanted)
        daemon.write()
        await daemon.start(*FAKE, HF_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}")
        silent.settimeout(20)
        connection, _ = await asyncio.to_thread(silent.accept)
        with connection:
            assert await daemon.stop(within_s=5) == 0
    assert "Traceback" not in daemon.log


async def _refuses_what_is_missing(daemon: Running) -> None:
    before = await daemon.status()
    daemon.manifest["semantic"]["embedding_model"] = "./nowhere"
    daemon.write()
    report = await daemon.reloaded()
    assert not report.is_accepted
    line = 1 + daemon.path.read_text().splitlines().index('embedding_model = "./nowhere"')
    assert report.message.startswith(f"{daemon.path}:{line}:1: semantic.embedding_model: ")
    assert "there is no such folder" in report.message
    assert "keywords alone tell domains then" in report.message
    async with AdminClient(daemon.socket) as admin:
        with pytest.raises(DaemonRefused, match="no such folder"):
            await admin.plan(daemon.path.read_bytes(), "application/toml")
    after = await daemon.status()
    assert after.serving_generation == before.serving_generation
    assert [engine.pids for engine in after.engines] == [engine.pids for engine in before.engines]
    daemon.manifest["semantic"]["embedding_model"] = "./embed"


async def _serves_with_keywords_alone(daemon: Running, http: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(30):
        while not daemon.socket.exists():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    status = await daemon.settled()
    assert condition(status, "Accepted") == ("True", "")
    degraded, why = condition(status, "Degraded")
    assert degraded == "True"
    assert "keywords alone tell domains until the next reload" in why
    assert "there is no such folder" in why
    assert await route_of(http, daemon, FIRST) == ""
    assert "there is no such folder" in (await explained(daemon, FIRST)).lack
