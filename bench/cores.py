"""
Two engines on one machine, each by itself and then both at once.

As axiond places them, each on a core of its own with its own kernels; and stock vLLM, which binds its threads itself
(VLLM_CPU_OMP_THREADS_BIND=auto) and does not know of the other. Every figure is output tokens per second over requests of
100 prompt and 64 output tokens, four at a time for each engine. The last column is both at once against the mean of one
alone: 2 is ideal. Rounds measure one, the other, both, in turn; figures are medians over rounds.

`python -m bench.cores --write` makes `bench/results/cores.md`, on an idle machine with two cores or more.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp

from axiond.engine.process import Launch, ProcessEngine
from axiond.engine.spawn import PLAIN, HostArgs
from axiond.manifest.spec import ModelSpec
from axiond.reconcile.state import EngineKey
from axiond.resources.affinity import held_to
from axiond.resources.cores import ANYWHERE, Claim, CorePlan, Slot, plan_cores
from axiond.resources.machine import format_cpu_list
from axiond.resources.topology import read_topology
from bench.engine import MODELS, OUTPUT, PROMPT, STATE, ask, context, put_first
from bench.models import make

RESULT = Path(__file__).parent / "results" / "cores.md"
NOTE = (__doc__ or "").split("\n\n")[1]
STREAMS = 4
TARGET = 1.8


class AutoBinding:
    """Starts hosts whose vLLM binds its threads by itself."""

    async def spawn(self, args: HostArgs, lock: int) -> int:
        return await PLAIN.spawn(replace(args, environ={**args.environ, "VLLM_CPU_OMP_THREADS_BIND": "auto"}), lock)


@dataclass
class Figures:
    """Of every round: output tokens per second of the first engine, of the second, and of both at once; and where they were."""

    first: list[float] = field(default_factory=list)
    second: list[float] = field(default_factory=list)
    both: list[float] = field(default_factory=list)
    computing: list[str] = field(default_factory=list)

    @property
    def gain(self) -> float:
        alone = statistics.mean((statistics.median(self.first), statistics.median(self.second)))
        return statistics.median(self.both) / alone


def one_core_each() -> list[CorePlan]:
    """The plan for two engines, cut down to a core for each."""
    plans = plan_cores(read_topology(), [Claim(Slot("first")), Claim(Slot("second"))], None)
    return [CorePlan(plan.compute[:1]) for plan in plans.values()]


@asynccontextmanager
async def started(kernels: str, model: str, plan: CorePlan, runtime: Path) -> AsyncIterator[ProcessEngine]:
    folder = make(MODELS, model)
    arguments = {"load-format": "dummy"} if model.startswith("qwen") else {}
    spec = ModelSpec.model_validate({
        "source": str(folder), "kernels": kernels, "kv_cache": "512MiB", "max_model_len": 2048, "engine_args": arguments,
    })  # fmt: skip
    launch = Launch(EngineKey("m", spec.digest()), "m", spec, folder, runtime, STATE, plan)
    engine = ProcessEngine(launch, spawner=PLAIN if plan.cores else AutoBinding())
    try:
        await engine.start()
        yield engine
    finally:
        await engine.stop()


async def tokens_per_s(engines: Sequence[ProcessEngine]) -> float:
    async with AsyncExitStack() as stack:
        clients = []
        for engine in engines:
            connector = aiohttp.UnixConnector(str(engine.endpoint.socket), limit=0)
            client = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(900))
            clients.append(await stack.enter_async_context(client))
        began = time.perf_counter()
        answers = await asyncio.gather(*(ask(client, PROMPT, OUTPUT) for client in clients for _ in range(STREAMS)))
        return sum(answer.output_tokens for answer in answers) / (time.perf_counter() - began)


async def measure(kernels: str, plans: Sequence[CorePlan], options: argparse.Namespace) -> Figures:
    figures = Figures()
    async with AsyncExitStack() as stack:
        runtime = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="axd")))
        engines = [await stack.enter_async_context(started(kernels, options.model, plan, runtime)) for plan in plans]
        if options.urgent:
            for engine in engines:
                put_first(engine.pids)
        for engine in engines:
            await tokens_per_s([engine])
            figures.computing.append(format_cpu_list(held_to(engine.pids).computing))
        for _ in range(options.rounds):
            for chosen, into in ((engines[:1], figures.first), (engines[1:], figures.second), (engines, figures.both)):
                into.append(await tokens_per_s(chosen))
            print(kernels, vars(figures), file=sys.stderr, flush=True)
    return figures


def row(title: str, figures: Figures) -> str:
    alone = " | ".join(f"{statistics.median(values):.1f}" for values in (figures.first, figures.second, figures.both))
    return f"| {title} | {' and '.join(figures.computing)} | {alone} | {figures.gain:.2f} |"


async def run(options: argparse.Namespace) -> str:
    axiond = await measure("auto", one_core_each(), options)
    stock = await measure("off", (ANYWHERE, ANYWHERE), options)
    return "\n".join([
        "# Two engines on one machine", "", NOTE, "",
        "| engines | threads on CPU | first alone, tok/s | second alone | both at once | gain |",
        "|---|---|---|---|---|---|",
        row("axiond, one core each", axiond),
        row("stock vLLM, auto", stock),
        "",
        f"Aim: a gain of {TARGET} or more for axiond's engines. It is {'met' if axiond.gain >= TARGET else 'missed'}.",
        "",
        f"- model: {options.model}, bfloat16" + (", random weights" if options.model.startswith("qwen") else ""),
        *context(options),
        "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen15", help="a model of bench.models")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--urgent", action="store_true", help="as root: take the cores from other processes")
    parser.add_argument("--write", action="store_true", help="keep the table under bench/results")
    options = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("two engines need two cores")
    text = asyncio.run(run(options))
    print(text)
    if options.write:
        RESULT.write_text(text)


if __name__ == "__main__":
    main()
