"""
How fast an engine answers: stock vLLM, the same with axiond's kernels, and llama.cpp, one after the other on the same cores.

vLLM is started as the daemon starts it and asked over its socket: requests of 100 prompt and 64 output tokens for one
stream and for 16, and prompts of 1,000 tokens whose first token is waited for. llama.cpp runs in a process of its own
without a server. Every round starts every engine anew; figures are medians over rounds.

`python -m bench.engine --llama --write` makes `bench/results/engine.md`, on an idle machine.
"""

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from axiond.engine.process import Launch, ProcessEngine
from axiond.manifest.spec import ModelSpec
from axiond.reconcile.state import EngineKey
from bench.machine import describe
from bench.models import make

ROOT = Path(__file__).parents[1]
MODELS, STATE, LLAMA_VENV = ROOT / "var" / "bench-models", ROOT / "var" / "state", ROOT / "build" / "llama"
LLAMA_PACKAGE = "llama-cpp-python==0.3.36"
RESULT = Path(__file__).parent / "results" / "engine.md"
NOTE = (__doc__ or "").split("\n\n")[1]
WORDS = ["alpha", "beta", "gamma", "delta", "river", "stone", "cloud", "light", "market", "garden", "engine", "window"]
PROMPT, OUTPUT, LONG_PROMPT, STREAMS = 100, 64, 1000, 16
REPEATS = 3


@dataclass(frozen=True)
class Subject:
    """One engine with one model. *kernels* as in the manifest; None is llama.cpp."""

    title: str
    model: str
    kernels: str | None
    is_dummy: bool = False


SUBJECTS = (
    Subject("Qwen2.5-1.5B shape, AWQ, stock", "qwen15-awq", "off", is_dummy=True),
    Subject("Qwen2.5-1.5B shape, AWQ, axiond", "qwen15-awq", "auto", is_dummy=True),
    Subject("Qwen2.5-1.5B shape, bf16, stock", "qwen15", "off", is_dummy=True),
    Subject("Qwen2.5-1.5B shape, bf16, axiond", "qwen15", "auto", is_dummy=True),
    Subject("Qwen2.5-1.5B shape, Q4_0, llama.cpp", "qwen15-gguf", None),
    Subject("SmolLM2-135M, AWQ, stock", "smollm2-awq", "off"),
    Subject("SmolLM2-135M, AWQ, axiond", "smollm2-awq", "auto"),
    Subject("SmolLM2-135M, bf16, stock", "smollm2", "off"),
    Subject("SmolLM2-135M, bf16, axiond", "smollm2", "auto"),
    Subject("SmolLM2-135M, Q4_1, llama.cpp", "smollm2-gguf", None),
)


@dataclass
class Figures:
    """Of every round: milliseconds per output token of one stream, prompt tokens and output tokens per second, seconds to start."""

    decode_ms: list[float] = field(default_factory=list)
    prefill: list[float] = field(default_factory=list)
    batched: list[float] = field(default_factory=list)
    ready_s: list[float] = field(default_factory=list)
    problem: str = ""


@dataclass(frozen=True)
class Answer:
    """Times of one streamed answer."""

    first_s: float
    rest_s: float
    prompt_tokens: int
    output_tokens: int


async def ask(http: aiohttp.ClientSession, words: int, tokens: int) -> Answer:
    """Random words are never answered from a prefix cache."""
    body = {
        "model": "m", "prompt": " ".join(random.choices(WORDS, k=words)), "max_tokens": tokens, "temperature": 0,
        "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    usage: dict[str, int] = {}
    began, first = time.perf_counter(), 0.0
    async with http.post("http://engine/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                first = first or time.perf_counter()
                usage = event.get("usage") or usage
    ended = time.perf_counter()
    return Answer(first - began, ended - first, usage["prompt_tokens"], usage["completion_tokens"])


async def measure(http: aiohttp.ClientSession, figures: Figures) -> None:
    await ask(http, 20, 8)
    single = [await ask(http, PROMPT, OUTPUT) for _ in range(REPEATS)]
    figures.decode_ms.append(statistics.median(answer.rest_s / (answer.output_tokens - 1) * 1e3 for answer in single))
    long = [await ask(http, LONG_PROMPT, 2) for _ in range(REPEATS)]
    figures.prefill.append(statistics.median(answer.prompt_tokens / answer.first_s for answer in long))
    began = time.perf_counter()
    many = await asyncio.gather(*(ask(http, PROMPT, OUTPUT) for _ in range(STREAMS)))
    figures.batched.append(sum(answer.output_tokens for answer in many) / (time.perf_counter() - began))


async def run_vllm(subject: Subject, kernels: str, figures: Figures, options: argparse.Namespace) -> None:
    folder = make(MODELS, subject.model)
    spec = ModelSpec.model_validate({
        "source": str(folder), "kernels": kernels, "engine_args": {"load-format": "dummy"} if subject.is_dummy else {},
    })  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="axd") as runtime:
        engine = ProcessEngine(Launch(EngineKey("m", spec.digest()), "m", spec, folder, Path(runtime), STATE))
        began = time.perf_counter()
        try:
            await engine.start()
            figures.ready_s.append(time.perf_counter() - began)
            if options.urgent:
                put_first(engine.pids)
            connector = aiohttp.UnixConnector(str(engine.endpoint.socket), limit=0)
            async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(900)) as http:
                await measure(http, figures)
        finally:
            await engine.stop()


def put_first(pids: tuple[int, ...]) -> None:
    """Take the cores from whatever else runs here. The kernel shares them out to sessions first, so renicing is not enough."""
    for pid in (*pids[:1], os.getpid()):
        Path(f"/proc/{pid}/autogroup").write_text("-16")


LLAMA = """
import json, os, sys, time
if sys.argv[3] == "True":
    open("/proc/self/autogroup", "w").write("-16")
from llama_cpp import Llama
threads = len(os.sched_getaffinity(0))
model = Llama(sys.argv[1], n_ctx=4096, n_threads=threads, n_threads_batch=threads, n_batch=512, verbose=False)
tokens = model.tokenize(("alpha beta gamma delta " * 400).encode())[:1000]
decode, prefill = [], []
for _ in range(int(sys.argv[2])):
    model.reset()
    start = time.perf_counter()
    model.eval(tokens)
    prefill.append(len(tokens) / (time.perf_counter() - start))
    model.reset()
    model.eval(tokens[:100])
    token, start = tokens[5], time.perf_counter()
    for _ in range(64):
        model.eval([token])
        token = model.sample(temp=0)
    decode.append((time.perf_counter() - start) / 64 * 1e3)
print(json.dumps([sorted(decode)[len(decode) // 2], sorted(prefill)[len(prefill) // 2]]))
"""


def run_llama(subject: Subject, figures: Figures, options: argparse.Namespace) -> None:
    (path,) = make(MODELS, subject.model).glob("*.gguf")
    command = [str(LLAMA_VENV / "bin" / "python"), "-c", LLAMA, str(path), str(REPEATS), str(options.urgent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600, start_new_session=True)
    decode_ms, prefill = json.loads(done.stdout.splitlines()[-1])
    figures.decode_ms.append(decode_ms)
    figures.prefill.append(prefill)


def prepare_llama() -> None:
    """Compile llama.cpp for this CPU, in its own environment."""
    if not LLAMA_VENV.exists():
        subprocess.run([sys.executable, "-m", "venv", str(LLAMA_VENV)], check=True)
        subprocess.run([str(LLAMA_VENV / "bin" / "pip"), "install", "--quiet", LLAMA_PACKAGE], check=True)


def table(results: dict[str, Figures]) -> Iterator[str]:
    yield "| model, engine | decode, 1 stream, ms/token | prefill of 1,000 tokens, tok/s | 16 streams, output tok/s | ready after s |"
    yield "|---|---|---|---|---|"
    for title, figures in results.items():
        cells = (median(figures.decode_ms, 1), median(figures.prefill), median(figures.batched), median(figures.ready_s))
        yield f"| {title} | {figures.problem or ' | '.join(cells)} |"


def median(values: list[float], digits: int = 0) -> str:
    return f"{statistics.median(values):.{digits}f}" if values else "–"


def context(options: argparse.Namespace) -> Iterator[str]:
    """Say on what, and how, it was measured."""
    for name, value in describe().items():
        yield f"- {name}: {' '.join(f'{key} {text}' for key, text in value.items()) if isinstance(value, dict) else value}"
    yield f"- rounds: {options.rounds}{', ahead of other processes' if options.urgent else ''}"


async def run(subjects: list[Subject], options: argparse.Namespace) -> dict[str, Figures]:
    results: dict[str, Figures] = {subject.title: Figures() for subject in subjects}
    for _ in range(options.rounds):
        for subject in subjects:
            figures = results[subject.title]
            try:
                if subject.kernels is None:
                    await asyncio.to_thread(run_llama, subject, figures, options)
                else:
                    await run_vllm(subject, subject.kernels, figures, options)
            except Exception as exc:
                figures.problem = f"failed: {str(exc).splitlines()[0][:200]}"
            print(subject.title, {name: value for name, value in vars(figures).items() if value}, file=sys.stderr, flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only subjects whose title matches this regular expression")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--llama", action="store_true", help="llama.cpp too; compiled at the first use, in ten minutes or so")
    parser.add_argument("--urgent", action="store_true", help="as root: take the cores from other processes")
    parser.add_argument("--write", action="store_true", help="keep the table under bench/results")
    options = parser.parse_args()
    if options.llama:
        prepare_llama()
    subjects = [subject for subject in SUBJECTS if re.search(options.only, subject.title) and (subject.kernels or options.llama)]
    results = asyncio.run(run(subjects, options))
    text = "\n".join(["# Engines", "", NOTE, "", *table(results), "", *context(options), ""])
    print(text)
    if options.write:
        RESULT.write_text(text)


if __name__ == "__main__":
    main()
