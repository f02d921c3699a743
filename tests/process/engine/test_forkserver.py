"""Engines that are forked, from a fork server without vLLM: they live and die as executed ones do, and whatever it does."""

import asyncio
import contextlib
import fcntl
import os
import signal
import sys
import termios
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from axiond.engine.forkclient import ForkServer
from axiond.engine.forkserver import LENGTH_BYTES
from axiond.engine.process import Launch, ProcessEngine
from axiond.errors import EngineStartError
from axiond.manifest.spec import ModelSpec
from axiond.reconcile.state import EngineKey
from axiond.resources.cores import ANYWHERE, CorePlan
from tests.fakes.remains import all_ended, folder_of, is_alive, remains, segments

from .conftest import FAKE, FAKES

ROOT = Path(__file__).parents[3]
ENVIRON = os.environ | {"PYTHONPATH": str(ROOT)}
WITHIN_S = 6.0


@pytest.fixture
async def forks(runtime_dir: Path) -> AsyncIterator[ForkServer]:
    server = ForkServer(ENVIRON, runtime_dir, "tests.fakes.preload")
    keeping = asyncio.create_task(server.keep())
    yield server
    keeping.cancel()
    await asyncio.wait({keeping})


class Build:
    """Makes engines, and stops them."""

    def __init__(self, forks: ForkServer, runtime_dir: Path, tmp_path: Path) -> None:
        self._forks, self._runtime_dir, self._tmp_path = forks, runtime_dir, tmp_path
        self.engines: list[ProcessEngine] = []

    async def __call__(self, forks: ForkServer | None = None, cores: CorePlan = ANYWHERE) -> ProcessEngine:
        spec = ModelSpec(source="/model")
        launch = Launch(EngineKey("m", spec.digest()), "m", spec, self._tmp_path, self._runtime_dir, self._tmp_path, command=FAKE)
        engine = ProcessEngine(launch, spawner=forks or self._forks)
        engine.placed = cores
        self.engines.append(engine)
        await engine.start()
        return engine


@pytest.fixture
async def start(forks: ForkServer, runtime_dir: Path, tmp_path: Path) -> AsyncIterator[Build]:
    build = Build(forks, runtime_dir, tmp_path)
    yield build
    for engine in build.engines:
        with contextlib.suppress(Exception):
            await engine.stop()


async def test_why_a_forked_host_has_failed_is_told(forks: ForkServer, start: Build) -> None:
    await start()
    with pytest.raises(EngineStartError, match=r"its host ended at once: OSError: .*Invalid argument"):
        await start(cores=CorePlan((4000,)))
    assert forks.forked == 2


async def family(engine: ProcessEngine) -> dict[str, int]:
    """The processes of an engine from a fork server, each the child of the one before, once all of them are there."""
    async with asyncio.timeout(WITHIN_S):
        while len(engine.pids) < 4 or len(segments(folder_of(engine.endpoint))) < 2:  # noqa: ASYNC110  the kernel does not tell
            await asyncio.sleep(0.02)
    chain = [psutil.Process(engine.pids[0])]
    while children := [child for child in chain[-1].children() if "resource_tracker" not in " ".join(child.cmdline())]:
        chain += children
    return dict(zip(("host", "server", "core", "worker"), [process.pid for process in chain], strict=True))


def marks(pid: int) -> set[bytes]:
    return {word for word in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if word.startswith(b"AXIOND_ENGINE=")}


def opened(pid: int) -> set[str]:
    return {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()}


async def test_a_forked_engine_is_one_of_its_folder(forks: ForkServer, start: Build) -> None:
    """Each of its processes is marked, and none is the fork server's after its end."""
    engine = await start()
    folder, processes, pids = folder_of(engine.endpoint), await family(engine), engine.pids
    assert forks.forked == 1
    assert forks.problem == ""
    assert psutil.Process(processes["host"]).ppid() == forks.pid
    assert os.getsid(processes["server"]) == processes["host"]
    assert {pid: marks(pid) for pid in processes.values()} == {pid: {f"AXIOND_ENGINE={folder}".encode()} for pid in processes.values()}
    await engine.stop()
    assert remains(folder, pids) == {}


@pytest.mark.parametrize(
    ("victim", "words"),
    [
        ("server", "was killed by SIGKILL"),
        ("core", "lost its process EngineCore (pid {core})"),
        ("worker", "lost its process Worker (pid {worker})"),
        ("host", "lost its host"),
    ],
)
async def test_nothing_remains_of_a_forked_engine(start: Build, victim: str, words: str) -> None:
    engine = await start()
    folder, processes, pids = folder_of(engine.endpoint), await family(engine), engine.pids
    os.kill(processes[victim], signal.SIGKILL)
    assert (await asyncio.wait_for(engine.wait(), WITHIN_S)).startswith(words.format(**processes))
    assert remains(folder, pids) == {}


async def test_engines_outlive_their_fork_server(forks: ForkServer, start: Build) -> None:
    first = await start()
    processes, killed = await family(first), forks.pid
    assert killed
    os.kill(killed, signal.SIGKILL)
    second = await start()
    assert forks.forked == 2
    assert forks.pid != killed
    assert all(is_alive(pid) for pid in processes.values())
    assert psutil.Process(second.pids[0]).ppid() == forks.pid


async def test_another_library_to_load_first_is_a_reason_to_start_anew(
    forks: ForkServer, start: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    await start()
    before = forks.pid
    monkeypatch.setenv("LD_PRELOAD", "libgomp-of-another-name.so")
    await start()
    assert forks.pid != before
    assert forks.forked == 2


async def asked_in_vain(forks: ForkServer, start: Build) -> "asyncio.Task[ProcessEngine]":
    """A start whose request lies before the fork server, which is stopped."""
    assert forks._running
    os.kill(forks._running.process.pid, signal.SIGSTOP)
    starting, unread = asyncio.create_task(start()), bytes(4)
    async with asyncio.timeout(WITHIN_S):
        while int.from_bytes(unread, sys.byteorder) <= LENGTH_BYTES:
            await asyncio.sleep(0.02)
            unread = fcntl.ioctl(forks._running.channel, termios.TIOCOUTQ, unread)
    return starting


async def test_a_fork_server_that_dies_before_it_forks_is_replaced(forks: ForkServer, start: Build) -> None:
    await start()
    starting, killed = await asked_in_vain(forks, start), forks.pid
    assert killed
    os.kill(killed, signal.SIGKILL)
    engine = await asyncio.wait_for(starting, WITHIN_S)
    assert forks.pid != killed
    assert psutil.Process(engine.pids[0]).ppid() == forks.pid


async def test_a_start_that_is_cancelled_twice_takes_nobodys_answer_and_leaves_nothing(forks: ForkServer, start: Build) -> None:
    """As `Stop` does: it cancels the start, and again before it stops the engine."""
    first = await start()
    starting = await asked_in_vain(forks, start)
    for _ in range(2):
        starting.cancel()
        await asyncio.sleep(0.01)
    assert forks.pid
    os.kill(forks.pid, signal.SIGCONT)
    third = await asyncio.wait_for(start(), WITHIN_S)
    assert marks(third.pids[0]) == {f"AXIOND_ENGINE={folder_of(third.endpoint)}".encode()}
    with pytest.raises(asyncio.CancelledError):
        await starting
    hosts = {engine.pids[0] for engine in (first, third)}
    async with asyncio.timeout(1):
        while {child.pid for child in psutil.Process(forks.pid).children()} != hosts:  # noqa: ASYNC110  the kernel does not tell
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("preload", "problem", "state"),
    [
        ("tests.fakes.preload_threaded", "the fork server does not fork: it has 2 threads, and a fork keeps one only", "ready"),
        (
            "tests.fakes.no_such_module",
            "the fork server died: ModuleNotFoundError: No module named 'tests.fakes.no_such_module'",
            "given up",
        ),
    ],
)
async def test_without_a_fork_server_engines_are_executed(runtime_dir: Path, start: Build, preload: str, problem: str, state: str) -> None:
    forks = ForkServer(ENVIRON, runtime_dir, preload)
    keeping = asyncio.create_task(forks.keep())
    try:
        for _ in range(2):
            engine = await start(forks)
            assert psutil.Process(engine.pids[0]).ppid() == os.getpid()
        assert (forks.problem, forks.state, forks.forked) == (problem, state, 0)
    finally:
        keeping.cancel()
        await asyncio.wait({keeping})


async def test_nothing_remains_of_a_killed_daemon(runtime_dir: Path, tmp_path: Path) -> None:
    """Not even its fork server; and neither that nor the engine held open what the daemon was started with."""
    spec = ModelSpec(source="/model").model_dump_json(exclude_defaults=True)
    script = (sys.executable, str(FAKES / "owner.py"), "--fork", "tests.fakes.preload")
    arguments = (spec, str(tmp_path), str(runtime_dir), str(tmp_path), *FAKE)
    lent = os.open(tmp_path / "lent", os.O_CREAT | os.O_RDONLY)
    daemon = await asyncio.create_subprocess_exec(*script, *arguments, stdout=asyncio.subprocess.PIPE, env=ENVIRON, pass_fds=(lent,))
    os.close(lent)
    try:
        assert daemon.stdout
        pids = [int(word) for word in (await asyncio.wait_for(daemon.stdout.readline(), 30)).split()]
        (folder,) = (runtime_dir / "e").iterdir()
        holders = {pid for pid in (daemon.pid, *pids) if psutil.pid_exists(pid) and str(tmp_path / "lent") in opened(pid)}
        assert holders == {daemon.pid}
    finally:
        daemon.kill()
        await daemon.wait()
    await all_ended(pids, WITHIN_S)
    assert remains(folder, pids) == {}
