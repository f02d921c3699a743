"""
What engines take of the memory, and what axiond expected.

Every engine is started as the daemon starts it, by the fork server or as a program of its own, and asked for what takes most:
a prompt that fills a step, then as many short answers at once as fit a step. Its processes' proportional set size is looked at
all the while; the peak while loading is the kernel's own high-water mark. Each engine is alone, so shared pages are its own.

`python -m bench.memory --write` makes `bench/results/memory.md`.
"""

import argparse
import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from axiond.engine.argv import environment
from axiond.engine.forkclient import ForkServer
from axiond.engine.process import Launch, ProcessEngine
from axiond.engine.spawn import PLAIN, Spawner
from axiond.manifest.spec import ModelSpec
from axiond.reconcile.state import EngineKey
from axiond.resources.checkpoint import read_checkpoint
from axiond.resources.estimate import EXECUTED, FORKED, Prediction, predict
from axiond.resources.usage import NOTHING, Usage, usage
from bench.machine import describe
from bench.models import make

ROOT = Path(__file__).parents[1]
MODELS, STATE = ROOT / "var" / "bench-models", ROOT / "var" / "state"
RESULT = Path(__file__).parent / "results" / "memory.md"
NOTE = (__doc__ or "").split("\n\n")[1]
WITHIN = 0.15
SAMPLE_S = 0.05
MIB = 2**20
STREAMS, ANSWER_TOKENS = 128, 3


@dataclass(frozen=True)
class Subject:
    model: str
    kv_cache: str
    tokens: int
    kernels: str = "auto"
    rest: dict[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> ModelSpec:
        engine_args = {"load-format": "dummy"} if self.model.startswith("qwen15") else {}
        return ModelSpec.model_validate({
            "source": str(MODELS / self.model), "kv_cache": self.kv_cache, "kernels": self.kernels, "max_model_len": 2048,
            "chunked_prefill": {"max_num_batched_tokens": self.tokens}, "engine_args": engine_args, **self.rest,
        })  # fmt: skip


SUBJECTS = (
    Subject("smollm2", "256MiB", 512),
    Subject("smollm2", "2GiB", 4096),
    Subject("smollm2-awq", "256MiB", 512),
    Subject("smollm2-awq", "1GiB", 2048),
    Subject("qwen15", "256MiB", 512),
    Subject("qwen15", "1GiB", 4096),
    Subject("qwen15-awq", "256MiB", 512),
    Subject("qwen15-awq", "1GiB", 4096),
    Subject("smollm2", "256MiB", 512, kernels="off"),
    Subject("qwen15-awq", "256MiB", 512, kernels="off"),
)


@dataclass(frozen=True)
class Row:
    subject: Subject
    is_forked: bool
    expected: Prediction
    ready: Usage
    peak_bytes: int
    problem: str = ""

    @property
    def error(self) -> float:
        return self.expected.peak_bytes / self.peak_bytes - 1 if self.peak_bytes else 0.0


class Watch:
    """Looks at an engine's processes for ever; *most* is the largest it has seen."""

    def __init__(self, engine: ProcessEngine) -> None:
        self._engine, self.most_bytes = engine, 0

    async def run(self) -> None:
        while True:
            self.most_bytes = max(self.most_bytes, (await asyncio.to_thread(usage, self._engine.pids)).bytes)
            await asyncio.sleep(SAMPLE_S)


@contextlib.asynccontextmanager
async def working(work: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def load(socket: Path, subject: Subject) -> None:
    connector = aiohttp.UnixConnector(str(socket), limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(900)) as http:

        async def ask(prompt_tokens: int, tokens: int, first: int) -> None:
            prompt = [100 + (first + index * 7919) % 40000 for index in range(prompt_tokens)]
            body = {"model": "m", "prompt": prompt, "max_tokens": tokens, "temperature": 0.7, "ignore_eos": True}
            async with http.post("http://engine/v1/completions", json=body) as response:
                response.raise_for_status()
                await response.read()

        # Prompts are no longer than max_model_len; several fill a step.
        await ask(8, 2, 0)
        longest = min(subject.tokens, 2000)
        await asyncio.gather(*(ask(longest, 2, 1000 * index + 1) for index in range(-(-subject.tokens // longest))))
        await asyncio.gather(*(ask(4, ANSWER_TOKENS, 50 * index) for index in range(STREAMS)))


async def measure(subject: Subject, spawner: Spawner, runtime: Path, is_forked: bool) -> Row:
    spec, folder = subject.spec, make(MODELS, subject.model)
    expected = predict(spec, read_checkpoint(folder), processes=FORKED if is_forked else EXECUTED)
    engine = ProcessEngine(Launch(EngineKey("m", spec.digest()), "m", spec, folder, runtime, STATE), spawner=spawner)
    watch, ready, peak_bytes = Watch(engine), NOTHING, 0
    try:
        async with working(watch.run()):
            await engine.start()
            await asyncio.sleep(3)
            ready = await asyncio.to_thread(usage, engine.pids)
            assert engine.endpoint.socket
            await load(engine.endpoint.socket, subject)
            final = await asyncio.to_thread(usage, engine.pids)
            peak_bytes = max(watch.most_bytes, ready.peak_bytes, final.peak_bytes)
    except Exception as exc:
        return Row(subject, is_forked, expected, ready, peak_bytes, f"{type(exc).__name__}: {exc}"[:200])
    finally:
        await engine.stop()
    return Row(subject, is_forked, expected, ready, peak_bytes)


async def run(options: argparse.Namespace) -> list[Row]:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="axd") as folder:
        for is_forked in (True, False) if options.mode == "both" else (options.mode == "forked",):
            runtime = Path(folder)
            forks = ForkServer(environment(ModelSpec(source="-"), (), runtime, STATE, os.environ), runtime)
            async with working(forks.keep()) if is_forked else contextlib.nullcontext():
                for subject in SUBJECTS:
                    if not options.only or options.only in subject.model:
                        rows.append(await measure(subject, forks if is_forked else PLAIN, runtime, is_forked))
                        print(line(rows[-1]), flush=True)
    return rows


HEAD = (
    "| model | kernels | kv_cache | tokens a step | start | expected: weights + KV cache + activations + processes "
    "| expected peak | measured peak | error | measured ready |\n|---|---|---|---|---|---|---|---|---|---|"
)


def line(row: Row) -> str:
    one, expected = row.subject, row.expected
    parts = (expected.weights_bytes, expected.kv_cache_bytes, expected.activations_bytes, expected.fixed_bytes)
    cells = (
        one.model, one.kernels, one.kv_cache, str(one.tokens), "forked" if row.is_forked else "executed",
        " + ".join(f"{part / MIB:.0f}" for part in parts), f"{expected.peak_bytes / MIB:.0f}", f"{row.peak_bytes / MIB:.0f}",
        row.problem or f"{row.error:+.1%}", f"{row.ready.bytes / MIB:.0f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=NOTE)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    parser.add_argument("--only", default="", help="models whose name holds this")
    parser.add_argument("--mode", choices=("both", "forked", "executed"), default="both")
    options = parser.parse_args()
    print(HEAD)
    rows = asyncio.run(run(options))
    worst = max((abs(row.error) for row in rows), default=0.0)
    verdict = f"All sizes in MiB. The worst prediction is off by {worst:.1%}; {WITHIN:.0%} is the goal."
    print(verdict)
    machine = "\n".join(f"- {name}: {value}" for name, value in describe().items())
    if options.write:
        RESULT.write_text("\n\n".join(("# Memory of engines", NOTE, machine, verdict, "\n".join((HEAD, *map(line, rows))))) + "\n")


if __name__ == "__main__":
    main()
