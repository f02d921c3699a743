"""A whole daemon tells which of its latest requests an edit would send elsewhere."""

import asyncio
import copy
import json
import sys
from pathlib import Path
from typing import Any

import aiohttp

from axiond.client import AdminClient
from axiond.report import Move, TrafficPlan, Untold
from tests.fakes.running import Running, running

SMALL = {"kv_cache": "64MiB", "drain_grace_s": 5}
CODE = {"name": "code", "when": {"keywords": ["python"]}, "models": ["b"]}
MOVED = Move(from_route="", from_model="a", to_route="code", to_model="b", count=2)
NEW = "their text is not remembered, and the regex of a rule was not looked for then"


def manifest(folder: Path) -> dict[str, Any]:
    known = {"name": "known", "when": {"keywords": ["rust"]}, "models": ["b"]}
    return {"models": {name: {"source": str(folder / "model"), **SMALL} for name in ("a", "b")}, "routes": [known]}


async def ask(http: aiohttp.ClientSession, daemon: Running, *prompts: str) -> None:
    for prompt in prompts:
        request = {"model": "a", "messages": [{"role": "user", "content": prompt}], "max_tokens": 1}
        async with http.post(f"{daemon.base}/v1/chat/completions", json=request) as response:
            assert response.status == 200, await response.text()
            await response.read()


async def traffic(daemon: Running, *routes: dict[str, Any]) -> TrafficPlan:
    candidate = copy.deepcopy(daemon.manifest)
    candidate["routes"] = [*candidate["routes"], *routes]
    async with AdminClient(daemon.socket) as admin:
        plan = await admin.plan(json.dumps(candidate).encode(), "application/json")
    assert plan.traffic is not None
    return plan.traffic


async def test_a_plan_says_which_requests_would_move(folder: Path, http: aiohttp.ClientSession) -> None:
    async with running(folder, manifest(folder)) as daemon:
        assert (await traffic(daemon, CODE)).requests == 0
        await ask(http, daemon, "what is Python?", "hello", "python and rust", "a python")
        found = await traffic(daemon, CODE)
        assert (found.requests, found.moves, found.untold) == (4, (MOVED,), ())
        expression = {"name": "asks", "when": {"regex": [r"\?$"]}, "models": ["b"]}
        assert (await traffic(daemon, expression)).untold == (Untold(reason=NEW, count=3),)

        candidate = folder / "candidate.json"
        candidate.write_text(json.dumps({**daemon.manifest, "routes": [*daemon.manifest["routes"], CODE]}))
        command = (sys.executable, "-m", "axiond", "plan", str(candidate), "--socket", str(daemon.socket))
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
        assert "\n  50 % would move from a to b (route code)\n  50 % would go where they go now\n" in out.decode()
        assert process.returncode == 2

        daemon.manifest["server"]["keep_prompts"] = True
        daemon.write()
        await daemon.reloaded()
        await ask(http, daemon, "who?", "nobody")
        found = await traffic(daemon, expression)
        assert found.moves == (Move(from_route="", from_model="a", to_route="asks", to_model="b", count=1),)
        assert found.untold == (Untold(reason=NEW, count=3),)
