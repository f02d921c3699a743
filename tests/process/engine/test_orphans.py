"""Whichever process is killed with SIGKILL, no process, shared memory or file remains. A fake engine with vLLM's process tree."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from axiond.engine.adopt import clean_leftovers
from axiond.engine.process import ProcessEngine
from axiond.manifest.spec import ModelSpec
from tests.fakes.remains import all_ended, folder_of, remains, segments

from .conftest import FAKES, FAMILY, Build

WITHIN_S = 6.0
LITTER = 4  # a segment and a semaphore each of core and worker


def family(host: int) -> dict[str, int]:
    """Name the processes of the family by their place in the tree."""
    server = next(child for child in psutil.Process(host).children() if "family.py" in " ".join(child.cmdline()))
    core = next(child for child in server.children() if "spawn_main" in " ".join(child.cmdline()))
    worker = next(child for child in core.children() if "spawn_main" in " ".join(child.cmdline()))
    return {"host": host, "server": server.pid, "core": core.pid, "worker": worker.pid}


async def complete(host: int, folder: Path) -> dict[str, int]:
    """Wait until the whole family is there, with all its litter."""
    async with asyncio.timeout(20):
        while len(segments(folder)) < LITTER:  # noqa: ASYNC110  the kernel does not tell
            await asyncio.sleep(0.05)
    return family(host)


@pytest.mark.parametrize(
    ("victim", "words"),
    [
        ("server", "was killed by SIGKILL"),
        ("core", "lost its process EngineCore (pid {core})"),
        ("worker", "lost its process Worker (pid {worker})"),
        ("host", "lost its host, which was killed by SIGKILL"),
    ],
)
async def test_nothing_remains_of_an_engine(build: Build, victim: str, words: str) -> None:
    engine = build(command=(*FAMILY, "--stranger"))
    await engine.start()
    folder = folder_of(engine.endpoint)
    processes = await complete(engine.pids[0], folder)
    pids = engine.pids
    assert set(processes.values()) < set(pids)
    os.kill(processes[victim], signal.SIGKILL)
    assert await asyncio.wait_for(engine.wait(), WITHIN_S) == words.format(**processes)
    assert remains(folder, pids) == {}


async def test_nothing_remains_after_an_orderly_stop(build: Build) -> None:
    engine = build(command=FAMILY)
    await engine.start()
    folder = folder_of(engine.endpoint)
    await complete(engine.pids[0], folder)
    pids = engine.pids
    await engine.stop()
    assert remains(folder, pids) == {}


@pytest.fixture
async def owner(runtime_dir: Path, tmp_path: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A daemon in a process of its own that owns one engine."""
    spec = ModelSpec(source="/model").model_dump_json(exclude_defaults=True)
    script = (sys.executable, str(FAKES / "owner.py"))
    process = await asyncio.create_subprocess_exec(
        *script, spec, str(tmp_path), str(runtime_dir), str(tmp_path), *FAMILY, stdout=asyncio.subprocess.PIPE
    )
    yield process
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


async def owned(owner: asyncio.subprocess.Process, runtime_dir: Path) -> tuple[Path, dict[str, int]]:
    assert owner.stdout
    host = int((await asyncio.wait_for(owner.stdout.readline(), 20)).split()[0])
    (folder,) = (runtime_dir / "e").iterdir()
    return folder, await complete(host, folder)


async def test_nothing_remains_when_the_daemon_is_killed(owner: asyncio.subprocess.Process, runtime_dir: Path) -> None:
    folder, processes = await owned(owner, runtime_dir)
    owner.kill()
    await all_ended(processes.values(), WITHIN_S)
    assert remains(folder) == {}


async def test_the_next_daemon_cleans_up_when_daemon_and_host_were_killed(owner: asyncio.subprocess.Process, runtime_dir: Path) -> None:
    folder, processes = await owned(owner, runtime_dir)
    owner.kill()
    os.kill(processes["host"], signal.SIGKILL)
    await owner.wait()
    await all_ended(processes.values(), WITHIN_S)
    assert clean_leftovers(runtime_dir) == (folder.name,)
    assert remains(folder) == {}


async def test_the_loop_ends_while_an_engine_runs(build: Build) -> None:
    """A daemon that leaves by an exception does not leave its engines."""
    engine = build(command=FAMILY)
    await engine.start()
    folder = folder_of(engine.endpoint)
    await complete(engine.pids[0], folder)
    pids = engine.pids
    assert isinstance(engine, ProcessEngine)
    assert engine._life
    engine._life.cancel()
    with pytest.raises(asyncio.CancelledError):
        await engine.wait()
    assert remains(folder, pids) == {}
