"""The whole daemon routes by its manifest, which changes while requests run."""

import asyncio
from collections import Counter

import aiohttp
import openai
import pytest

from tests.fakes.running import chat, running

ADDS = {"sampling": {"max_tokens": 2}, "system_prompt": {"text": "Be brief."}}
ROUTES = [
    {"name": "wall", "when": {"headers": {"x-team": "^blue$"}}, "refuse": {"status": 451, "message": "Not for blue."}},
    {"name": "on-error", "models": ["broken"], "fallback": ["good"]},
    {"name": "on-timeout", "models": ["slow"], "fallback": ["good"], "timeout": 0.3},
    {"name": "on-overload", "models": ["narrow"], "fallback": ["good"], "fallback_on": ["overload"]},
    {"name": "no-fallback", "models": ["broken"], "fallback": ["good"], "fallback_on": ["overload"]},
    {"name": "copied", "models": ["good"], "shadow": {"model": "other"}},
    {"name": "adds", "models": ["good"], **ADDS},
    {"name": "tried-out", "models": ["good"], "canary": {"model": "other", "percent": 30.0}},
]


def models(folder):
    spec = {"source": str(folder / "model"), "kv_cache": "64MiB"}
    options = {
        "good": {},
        "other": {},
        "broken": {"reject": 500},
        "slow": {"token-delay": 30.0},
        "narrow": {"token-delay": 0.05},
    }
    made = {name: {**spec, "engine_args": arguments} for name, arguments in options.items()}
    made["narrow"]["max_in_flight"] = 1
    return made


async def model_of(http, daemon, name, **body):
    request = {"model": name, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, **body}
    async with http.post(f"{daemon.base}/v1/chat/completions", json=request) as answer:
        assert answer.status == 200, await answer.text()
        await answer.read()
        return answer.headers["X-Axiond-Model"]


async def metric(http, daemon, name, **labels):
    """The sample's value; 0 where there is none."""
    async with http.get(f"{daemon.base}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    wanted = name + "{" + ",".join(f'{label}="{value}"' for label, value in labels.items()) + "} "
    return next((float(line.removeprefix(wanted)) for line in lines if line.startswith(wanted)), 0.0)


async def until(ask, is_so):
    """Ask until the answer is as wanted."""
    async with asyncio.timeout(20):
        while True:
            if is_so(await ask()):
                return
            await asyncio.sleep(0.02)


async def test_routes_of_every_kind_are_in_force(folder, http):
    """One daemon, for its engines take the most time."""
    manifest = {"models": models(folder), "routes": ROUTES, "server": {"max_queue": 0}}
    async with running(folder, manifest) as daemon:
        async with openai.AsyncOpenAI(base_url=f"{daemon.base}/v1", api_key="k", max_retries=0) as client:
            ask = client.chat.completions.with_raw_response.create
            messages = [{"role": "user", "content": "hi"}]
            raw = await ask(model="adds", messages=messages)
            told = {name: raw.headers.get(f"X-Axiond-{name}") for name in ("Model", "Route")}
            assert (told, raw.parse().usage.completion_tokens) == ({"Model": "good", "Route": "adds"}, 2)
            assert raw.headers["X-Axiond-Reason"].startswith("route=adds")
            with pytest.raises(openai.APIStatusError, match="Not for blue") as refused:
                await ask(model="good", messages=messages, extra_headers={"X-Team": "blue"})
            assert (refused.value.status_code, refused.value.response.headers["X-Axiond-Route"]) == (451, "wall")
            with pytest.raises(openai.InternalServerError, match="rejected as told") as failed:
                await ask(model="no-fallback", messages=messages)
            assert failed.value.response.headers["X-Axiond-Model"] == "broken"

        assert await model_of(http, daemon, "on-error") == "good"
        async with http.post(f"{daemon.base}/v1/completions", json={"model": "on-timeout", "prompt": "x"}) as answer:
            assert (answer.status, answer.headers["X-Axiond-Model"]) == (200, "good")
        assert answer.headers["X-Axiond-Reason"].endswith("; not slow: timeout")

        long = asyncio.create_task(chat(http, daemon.base, "narrow", max_tokens=10_000))
        await until(daemon.status, lambda status: any(model.name == "narrow" and model.in_flight for model in status.models))
        assert await model_of(http, daemon, "on-overload") == "good"
        long.cancel()

        for _ in range(3):
            assert await model_of(http, daemon, "copied") == "good"
        labels = {"model": "other", "outcome": "answered", "route": "copied"}
        copies = "axiond_route_shadow_requests_total"
        await until(lambda: metric(http, daemon, copies, **labels), lambda count: count == 3)
        for reason, route in (("error", "on-error"), ("timeout", "on-timeout"), ("overload", "on-overload")):
            assert await metric(http, daemon, "axiond_route_fallbacks_total", reason=reason, route=route) >= 1

        asked = [model_of(http, daemon, "tried-out", messages=[{"role": "user", "content": f"number {n}"}]) for n in range(100)]
        assert 10 < Counter(await asyncio.gather(*asked))["other"] < 55
        assert len({await model_of(http, daemon, "tried-out") for _ in range(5)}) == 1


async def test_rules_change_while_requests_run(folder):
    """Each request is answered by what its rules said when it came; none is lost, and no engine restarts."""
    manifest = {"models": {name: spec for name, spec in models(folder).items() if name in ("good", "other")}}
    manifest["routes"] = [{"name": "r", "models": ["good"]}]
    seen = Counter()
    async with running(folder, manifest) as daemon, aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as http:
        pids = {engine.pids for engine in (await daemon.status()).engines}
        is_over = asyncio.Event()

        async def ask():
            while not is_over.is_set():
                seen[await model_of(http, daemon, "r", max_tokens=3)] += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(ask())
            for models_now in (["other"], ["good", "other"], ["good"], ["other"]):
                daemon.manifest["routes"] = [{"name": "r", "models": models_now}]
                daemon.write()
                assert (await daemon.reloaded()).is_realised
            is_over.set()
        assert await model_of(http, daemon, "r") == "other"
        assert set(seen) == {"good", "other"}
        assert {engine.pids for engine in (await daemon.status()).engines} == pids
