"""
How long an engine takes from the request to start until it has proven ready: forked, executed, and stock vLLM.

All are started as the daemon starts them. Forked engines come from a process that has imported vLLM, executed ones import it
themselves, and stock ones have axiond's kernels off beside. Every round starts every engine anew, in turn; figures are medians
over rounds. The caches are warm: models are inspected, weights are packed and graphs are compiled by a start that does not
count. The first answer is that of the first request; memory is the proportional set size of all processes of the engine.

`python -m bench.start --write` makes `bench/results/start.md`, on an idle machine.
"""

import argparse
import asyncio
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from axiond.engine.argv import environment
from axiond.engine.forkclient import ForkServer
from axiond.engine.process import Launch, ProcessEngine
from axiond.engine.spawn import PLAIN, Spawner
from axiond.manifest.spec import ModelSpec
from axiond.reconcile.state import EngineKey
from axiond.resources.usage import usage
from bench.engine import MODELS, STATE, ask, context, median
from bench.models import make

RESULT = Path(__file__).parent / "results" / "start.md"
NOTE = (__doc__ or "").split("\n\n")[1]
OUTPUT, REPEATS = 64, 3
DUMMY = {"load-format": "dummy"}


@dataclass(frozen=True)
class Subject:
    """One model, as one of the three."""

    title: str
    model: str
    start: str
    is_eager: bool = True

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec.model_validate({
            "source": str(make(MODELS, self.model)), "kernels": "off" if self.start == "stock" else "auto",
            "enforce_eager": self.is_eager, "engine_args": DUMMY if self.model.startswith("qwen15") else {}, "start_timeout_s": 600,
        })  # fmt: skip


SUBJECTS = (
    *(Subject("SmolLM2-135M, bf16", "smollm2", start) for start in ("forked", "executed", "stock")),
    *(Subject("Qwen2.5-1.5B shape, bf16, dummy weights", "qwen15", start) for start in ("forked", "executed", "stock")),
    *(Subject("SmolLM2-135M, bf16, compiled", "smollm2", start, is_eager=False) for start in ("forked", "executed", "stock")),
)


@dataclass
class Figures:
    """Of every round: seconds to ready, milliseconds to the first token of the first request and for each token, memory."""

    ready_s: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    decode_ms: list[float] = field(default_factory=list)
    memory_gb: list[float] = field(default_factory=list)
    problem: str = ""


@asynccontextmanager
async def fork_server(runtime: Path) -> AsyncIterator[ForkServer]:
    """Keep one, and say how long it took."""
    forks = ForkServer(environment(ModelSpec(source="-"), (), runtime, STATE, os.environ), runtime)
    began, keeping = time.perf_counter(), asyncio.create_task(forks.keep())
    try:
        while forks.state != "ready":
            if forks.problem:
                raise RuntimeError(forks.problem)
            await asyncio.sleep(0.02)
        print(f"the fork server was ready after {time.perf_counter() - began:.1f} s", file=sys.stderr)
        yield forks
    finally:
        keeping.cancel()
        await asyncio.wait({keeping})


async def measure(subject: Subject, spawner: Spawner, runtime: Path, figures: Figures) -> None:
    spec, folder = subject.spec, MODELS / subject.model
    engine = ProcessEngine(Launch(EngineKey("m", spec.digest()), "m", spec, folder, runtime, STATE), spawner=spawner)
    began = time.perf_counter()
    try:
        await engine.start()
        figures.ready_s.append(time.perf_counter() - began)
        connector = aiohttp.UnixConnector(str(engine.endpoint.socket), limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(900)) as http:
            figures.first_ms.append((await ask(http, 20, 2)).first_s * 1e3)
            answers = [await ask(http, 20, OUTPUT) for _ in range(REPEATS)]
        figures.decode_ms.append(statistics.median(answer.rest_s / (answer.output_tokens - 1) * 1e3 for answer in answers))
        figures.memory_gb.append(usage(engine.pids).bytes / 1e9)
    finally:
        await engine.stop()


def table(results: dict[Subject, Figures]) -> Iterator[str]:
    yield "| model | started | ready after s | first answer after ms | decode, ms/token | memory, GB |"
    yield "|---|---|---|---|---|---|"
    for subject, found in results.items():
        cells = (median(found.ready_s, 1), median(found.first_ms), median(found.decode_ms, 1), median(found.memory_gb, 2))
        yield f"| {subject.title} | {subject.start} | {found.problem or ' | '.join(cells)} |"


async def run(subjects: list[Subject], rounds: int) -> tuple[dict[Subject, Figures], str]:
    results = {subject: Figures() for subject in subjects}
    with tempfile.TemporaryDirectory(prefix="axd") as runtime:
        async with fork_server(Path(runtime)) as forks:
            for turn in range(-1, rounds):
                for subject in subjects:
                    figures = results[subject] if turn >= 0 else Figures()
                    try:
                        await measure(subject, forks if subject.start == "forked" else PLAIN, Path(runtime), figures)
                    except Exception as exc:
                        figures.problem = f"failed: {str(exc).splitlines()[0][:200]}"
                    print(turn, subject, figures, file=sys.stderr, flush=True)
            assert forks.pid
            shared = f"The fork server itself takes {usage([forks.pid]).bytes / 1e6:.0f} MB while no engine shares its pages."
    return results, shared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only subjects whose title, with how they are started, matches this regular expression")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="keep the table under bench/results")
    options = parser.parse_args()
    options.urgent = False
    subjects = [subject for subject in SUBJECTS if re.search(options.only, f"{subject.title}, {subject.start}")]
    results, shared = asyncio.run(run(subjects, options.rounds))
    text = "\n".join(["# Starts", "", NOTE, "", *table(results), "", shared, "", *context(options), ""])
    print(text)
    if options.write:
        RESULT.write_text(text)


if __name__ == "__main__":
    main()
