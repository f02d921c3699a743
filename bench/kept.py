"""
What a start leaves for the next: packed weights and compiled code.

Every model is started four times by the fork server: with nothing kept; again, with what the first left; a second replica
beside that; and, eager only, with a folder that takes nothing. A start is measured from the request until the engine has
proven ready. Memory is the proportional set size of all processes of an engine, at its peak while it started and
when it was ready; of two replicas it is that of both.

`python -m bench.kept --write` makes `bench/results/kept.md`, on an idle machine. With a folder as argument, that checkpoint is
another model.
"""

import argparse
import asyncio
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from axiond.engine.process import Launch, ProcessEngine
from axiond.engine.spawn import Spawner
from axiond.manifest.spec import ModelSpec
from axiond.reconcile.state import EngineKey
from axiond.resources.usage import usage
from bench.engine import MODELS, STATE, context
from bench.memory import Watch, working
from bench.models import make
from bench.start import fork_server

RESULT = Path(__file__).parent / "results" / "kept.md"
NOTE = (__doc__ or "").split("\n\n")[1]
KEPT_WITHIN_S = 300


@dataclass(frozen=True)
class Start:
    """One start; *said* is what the engine reports of itself."""

    ready_s: float
    peak_bytes: int
    ready_bytes: int
    said: str


@asynccontextmanager
async def started(spec: ModelSpec, state: Path, runtime: Path, spawner: Spawner) -> AsyncIterator[tuple[ProcessEngine, Start]]:
    launch = Launch(EngineKey("m", spec.digest()), "m", spec, Path(spec.source), runtime, state)
    engine = ProcessEngine(launch, spawner=spawner)
    watch, began = Watch(engine), time.perf_counter()
    try:
        async with working(watch.run()):
            await engine.start()
            ready_s = time.perf_counter() - began
            memory = usage(engine.pids).bytes
        yield engine, Start(ready_s, max(memory, watch.most_bytes), memory, said(engine))
    finally:
        await engine.stop()


def said(engine: ProcessEngine) -> str:
    found = json.loads(engine.kernels() or b"{}")
    return f"{found.get('mode')}; weights {found.get('weights')}"


async def measure(folder: Path, is_eager: bool, runtime: Path, spawner: Spawner) -> AsyncIterator[tuple[str, Start]]:
    spec = ModelSpec.model_validate({"source": str(folder), "enforce_eager": is_eager, "max_model_len": 2048, "start_timeout_s": 900})
    with tempfile.TemporaryDirectory(dir=STATE.parent) as kept:
        state = Path(kept)
        shutil.copytree(STATE / "cache" / "vllm" / "modelinfos", state / "cache" / "vllm" / "modelinfos")
        async with started(spec, state, runtime, spawner) as (engine, start):
            yield "nothing kept", start
            for _ in range(KEPT_WITHIN_S):
                if "not kept" in said(engine) or "and kept" in said(engine):
                    break
                await asyncio.sleep(1)
        async with started(spec, state, runtime, spawner) as (engine, start):
            yield "kept", start
            async with started(spec, state, runtime, spawner) as (other, second):
                both = usage(engine.pids).bytes + usage(other.pids).bytes
                yield "kept, two replicas", Start(second.ready_s, second.peak_bytes, both, second.said)
        if is_eager:
            shutil.rmtree(state / "cache" / "packed")
            (state / "cache" / "packed").write_text("")
            async with started(spec, state, runtime, spawner) as (_, start):
                yield "nothing can be kept", start


def table(rows: list[tuple[str, str, Start]]) -> Iterator[str]:
    yield "| model | start | ready after s | at its peak, MiB | ready, MiB | says |"
    yield "|---|---|---|---|---|---|"
    for model, kind, start in rows:
        yield f"| {model} | {kind} | {start.ready_s:.1f} | {start.peak_bytes >> 20} | {start.ready_bytes >> 20} | {start.said} |"


async def run(folders: list[Path], only: str) -> list[tuple[str, str, Start]]:
    rows: list[tuple[str, str, Start]] = []
    with tempfile.TemporaryDirectory(prefix="axd") as runtime:
        async with fork_server(Path(runtime)) as forks:
            for folder in folders:
                for is_eager in (True, False):
                    title = f"{folder.name}, {'eager' if is_eager else 'compiled'}"
                    if re.search(only, title):
                        async for kind, start in measure(folder, is_eager, Path(runtime), forks):
                            rows.append((title, kind, start))
                            print(title, kind, start, file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="*", type=Path, help="checkpoints beside SmolLM2-135M in bfloat16 and as AWQ")
    parser.add_argument("--only", default="", help="only models whose title matches this regular expression")
    parser.add_argument("--write", action="store_true", help="keep the table under bench/results")
    options = parser.parse_args()
    options.urgent, options.rounds = False, 1
    rows = asyncio.run(run([make(MODELS, "smollm2"), make(MODELS, "smollm2-awq"), *options.folder], options.only))
    text = "\n".join(["# Kept from one start to the next", "", NOTE, "", *table(rows), "", *context(options), ""])
    print(text)
    if options.write:
        RESULT.write_text(text)


if __name__ == "__main__":
    main()
