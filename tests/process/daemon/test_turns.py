"""What a request is told while the whole daemon loads a model for it, or its engine is full."""

import asyncio

import aiohttp

from tests.fakes.running import chat, running


async def until(daemon, is_so):
    """Wait until *is_so* of the only model's report."""
    async with asyncio.timeout(20):
        while True:
            (model,) = (await daemon.status()).models
            if is_so(model):
                return model
            await asyncio.sleep(0.02)


async def test_a_measured_load_is_told_and_a_deadline_that_it_breaks_refused(folder, http):
    spec = {"source": str(folder / "model"), "kv_cache": "64MiB", "load": "lazy", "idle_unload": 0.2, "min_resident": 0}
    manifest = {"models": {"a": {**spec, "engine_args": {"ready-after": 1.5}}}}
    async with running(folder, manifest) as daemon:
        assert (await daemon.status()).models[0].wait_s is None
        headers = {"X-Request-Timeout": "0.3"}
        first = http.post(f"{daemon.base}/v1/completions", json={"model": "a", "prompt": "x"}, headers=headers)
        async with first as answer:  # nothing is known yet, so it is tried
            assert (answer.status, (await answer.json())["error"]["code"]) == (504, "deadline_exceeded")
        assert (await chat(http, daemon.base, "a"))[0] == 200
        wait_s = (await until(daemon, lambda model: model.state == "unloaded")).wait_s
        assert wait_s is not None
        assert 1.0 < wait_s < 10
        async with http.post(f"{daemon.base}/v1/completions", json={"model": "a", "prompt": "x"}, headers=headers) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (504, "deadline_unreachable")
            assert 1.0 < float(answer.headers["X-Axiond-Queue-Estimate"]) <= wait_s + 0.1
            assert 1 < int(answer.headers["Retry-After"]) <= wait_s + 1


async def test_a_full_engine_is_shared_by_turns(folder):
    spec = {"source": str(folder / "model"), "kv_cache": "64MiB", "max_in_flight": 1, "engine_args": {"token-delay": 0.02}}
    manifest = {"models": {"a": spec}, "server": {"api_keys": ["many", "one"]}}
    order = []

    async def ask(http, key):
        status, _ = await chat(http, daemon.base, "a", max_tokens=5)
        order.append(key)
        return status

    many, one = (aiohttp.ClientSession(headers={"X-Api-Key": key}) for key in ("many", "one"))
    async with running(folder, manifest) as daemon, many, one:
        long = asyncio.create_task(chat(many, daemon.base, "a", max_tokens=10_000))
        await until(daemon, lambda model: model.in_flight == 1)
        asked = [asyncio.create_task(ask(many, "many")) for _ in range(20)]
        await until(daemon, lambda model: model.queued == 20)
        asked.append(asyncio.create_task(ask(one, "one")))
        await until(daemon, lambda model: model.queued == 21)
        long.cancel()
        assert set(await asyncio.gather(*asked)) == {200}
        assert order.index("one") <= 2
