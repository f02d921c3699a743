"""A real engine moves to other cores while it runs: what it answers stays, how fast it is follows."""

import os
import statistics
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from axiond.engine.process import Launch, ProcessEngine
from axiond.manifest.spec import ModelSpec
from axiond.reconcile.state import EngineKey
from axiond.resources.affinity import held_to
from axiond.resources.cores import CorePlan

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores"),
]

TEXT = (Path(__file__).parents[1] / "data" / "alice.txt").read_text()


@asynccontextmanager
async def started(folder: Path, runtime_dir: Path, state_dir: Path, plan: CorePlan) -> AsyncIterator[ProcessEngine]:
    spec = ModelSpec.model_validate({"source": "s", "kv_cache": "256MiB", "max_model_len": 2048, "dtype": "float32"})
    engine = ProcessEngine(Launch(EngineKey("m", spec.digest()), "m", spec, folder, runtime_dir, state_dir, plan))
    try:
        await engine.start()
        yield engine
    finally:
        await engine.stop()


async def ask(engine: ProcessEngine, prompt: str, tokens: int) -> str:
    body = {"model": "m", "prompt": prompt, "temperature": 0, "max_tokens": tokens, "ignore_eos": True}
    connector = aiohttp.UnixConnector(str(engine.endpoint.socket))
    async with aiohttp.ClientSession("http://engine", connector=connector) as http, http.post("/v1/completions", json=body) as response:
        answer = await response.json()
    assert response.status == 200, answer
    return str(answer["choices"][0]["text"])


def cpu_s(pids: tuple[int, ...]) -> dict[int, float]:
    """The time that each thread has computed."""
    stats = [(int(path.name), (path / "stat").read_text()) for pid in pids for path in Path(f"/proc/{pid}/task").iterdir()]
    return {thread: int(stat.rpartition(")")[2].split()[11]) / os.sysconf("SC_CLK_TCK") for thread, stat in stats}


async def prefill(engine: ProcessEngine, number: int) -> tuple[float, float]:
    """Have a prompt read that was never read before; the seconds that the two busiest threads computed."""
    before = cpu_s(engine.pids)
    await ask(engine, f"{number}. {TEXT[:6000]}", tokens=1)
    first, second, *_ = sorted((after - before.get(thread, 0.0) for thread, after in cpu_s(engine.pids).items()), reverse=True)
    return first, second


async def test_answers_stay_and_speed_follows(smollm2: Path, runtime_dir: Path, state_dir: Path) -> None:
    """From two threads to one and back, twice: the kernel says what the plan says, and what one thread did, two share."""
    first, second = sorted(os.sched_getaffinity(0))[:2]
    two, one, other = CorePlan((first, second), nodes=(0,)), CorePlan((first,)), CorePlan((second,))
    async with started(smollm2, runtime_dir, state_dir, two) as engine:
        prompts = [TEXT[start : start + 400] for start in (0, 1000, 2000)]
        expected = [await ask(engine, prompt, tokens=24) for prompt in prompts]
        alone_s, shared_s = [], []
        policies = [line.split()[1] for pid in engine.pids for line in Path(f"/proc/{pid}/numa_maps").read_text().splitlines()[:1]]
        assert policies == ["prefer:0"] * len(engine.pids), "vLLM would have bound it"
        for number, plan in enumerate((two, one, two, other, two)):
            engine.rebind(plan)
            assert [await ask(engine, prompt, tokens=24) for prompt in prompts] == expected
            held = held_to(engine.pids)
            assert (held.cores, held.computing) == (plan.cores, set(plan.compute))
            main_s, second_s = await prefill(engine, number)
            if plan == two:
                shared_s.append(main_s)
                assert second_s > 0.5 * main_s
            else:
                alone_s.append(main_s)
                assert second_s < 0.25 * main_s
        assert statistics.median(shared_s) < 0.75 * statistics.median(alone_s)
