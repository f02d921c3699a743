"""Real vLLM, forked: it answers as it does when it is executed, and whatever is killed with SIGKILL, nothing remains."""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import aiohttp
import pytest

from axiond.engine.argv import environment
from axiond.engine.forkclient import ForkServer
from axiond.engine.process import Launch, ProcessEngine
from axiond.manifest.spec import GoldenPrompt, ModelSpec
from axiond.reconcile.state import EngineKey
from tests.fakes import owner
from tests.fakes.remains import all_ended, folder_of, is_alive, remains, segments

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SPEC = ModelSpec(
    source="smollm2",
    kv_cache="256MiB",
    max_model_len=2048,
    start_timeout_s=240,
    golden=GoldenPrompt(prompt="What is the capital of France?", expect="Paris"),
)
STOCK = SPEC.model_copy(update={"kernels": ModelSpec(source="-", kernels="off").kernels})


def titles(pids: tuple[int, ...]) -> list[str]:
    return [Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].decode() for pid in pids]


def bound(pid: int) -> set[int]:
    """The cores of those threads that are bound to one."""
    cores = [os.sched_getaffinity(int(task.name)) for task in Path(f"/proc/{pid}/task").iterdir()]
    return set().union(*(each for each in cores if len(each) == 1))


async def test_a_forked_engine_answers_and_leaves_nothing(smollm2: Path, state_dir: Path, runtime_dir: Path) -> None:
    """Two at once, of one fork server that dies between them: the first one answers on. Each thread that computes has its core."""
    forks = ForkServer(environment(SPEC, (), runtime_dir, state_dir, os.environ), runtime_dir)
    keeping = asyncio.create_task(forks.keep())
    first, second = (
        ProcessEngine(Launch(EngineKey("m", spec.digest()), "m", spec, smollm2, runtime_dir, state_dir), spawner=forks)
        for spec in (SPEC, STOCK)
    )
    try:
        await first.start()
        assert (forks.forked, forks.problem) == (1, "")
        assert forks.pid
        folder, pids = folder_of(first.endpoint), first.pids
        mark = f"AXIOND_ENGINE={folder}".encode()
        assert all(mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in pids)
        (core,) = (pid for pid, title in zip(pids, titles(pids), strict=True) if title == "VLLM::EngineCore")
        # The main thread is on the first one, or free.
        assert bound(core) >= set(sorted(os.sched_getaffinity(0))[1:])
        assert not any(b"GOMP" in Path(f"/proc/{pid}/environ").read_bytes().replace(b"GOMP_SPINCOUNT", b"") for pid in pids)
        os.kill(forks.pid, signal.SIGKILL)
        await second.start()
        assert forks.forked == 2
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(first.endpoint.socket))) as http:
            question = {"model": "m", "max_tokens": 8, "temperature": 0, "messages": [{"role": "user", "content": "Capital of France?"}]}
            async with http.post("http://engine/v1/chat/completions", json=question) as response:
                assert response.status == 200
        os.kill(pids[0], signal.SIGKILL)
        assert (await asyncio.wait_for(first.wait(), 6.0)).startswith("lost its host")
        assert remains(folder, pids) == {}
        folder, pids = folder_of(second.endpoint), second.pids
        assert segments(folder)
        os.kill(next(pid for pid, title in zip(pids, titles(pids), strict=True) if title.startswith("VLLM::Worker")), signal.SIGKILL)
        assert (await asyncio.wait_for(second.wait(), 8.0)).startswith("lost its process Vllm")
        assert remains(folder, pids) == {}
    finally:
        await first.stop()
        await second.stop()
        keeping.cancel()
        await asyncio.wait({keeping})


async def test_nothing_remains_of_a_killed_daemon(smollm2: Path, state_dir: Path, runtime_dir: Path) -> None:
    arguments = (STOCK.model_dump_json(exclude_defaults=True), *map(str, (smollm2, runtime_dir, state_dir)))
    environ = environment(SPEC, (), runtime_dir, state_dir, os.environ)
    daemon = await asyncio.create_subprocess_exec(
        *(sys.executable, owner.__file__, "--fork", "axiond.engine.preload", *arguments), stdout=asyncio.subprocess.PIPE, env=environ
    )
    try:
        assert daemon.stdout
        pids = [int(word) for word in (await asyncio.wait_for(daemon.stdout.readline(), 240)).split()]
        assert all(map(is_alive, pids))
        (folder,) = (runtime_dir / "e").iterdir()
        daemon.kill()
        await all_ended(pids, within_s=8.0)
        assert remains(folder, pids) == {}
    finally:
        with contextlib.suppress(ProcessLookupError):
            daemon.kill()
        await daemon.wait()
