"""One engine as a child process: spawn, probe, prove, terminate, kill, clean up."""

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import aiohttp

from axiond.engine.argv import checkpoint_problem, environment, server_argv
from axiond.engine.engine import Endpoint
from axiond.engine.golden import GoldenRequestFailed, ask, judge
from axiond.engine.output import Output, how_ended
from axiond.engine.sweep import LOCK, descendants, sweep
from axiond.errors import EngineError, EngineStartError, GoldenPromptFailed, ProbeTimeout
from axiond.kernels.settings import REPORT
from axiond.manifest.spec import ModelSpec
from axiond.reconcile.state import EngineKey

ENGINES = "e"
STOP_DEADLINE_S = 10.0
LONGEST_PARTIAL_LINE = 8192
PROBE_INTERVAL_S = 0.1
PROBE_TIMEOUT_S = 5.0
OUR_OWN_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
LONGEST_SOCKET_PATH = 107
# vLLM puts sockets with names of this length beside ours.
LONGEST_SOCKET_NAME = 36


@dataclass(frozen=True, slots=True)
class Launch:
    """Everything that a start needs. *cores* are the CPUs the engine may use; all that the daemon may use if empty."""

    key: EngineKey
    name: str
    spec: ModelSpec
    folder: Path
    runtime_dir: Path
    state_dir: Path
    cores: frozenset[int] = frozenset()
    command: tuple[str, ...] = (sys.executable, "-P", "-m", "axiond.engine.server")


@dataclass(frozen=True, slots=True)
class Liveness:
    """How a ready engine is watched: it is hung after *misses* probes in a row without an answer. Patient, for busy machines."""

    interval_s: float = 10.0
    timeout_s: float = 30.0
    misses: int = 3


class ProcessEngine:
    """An engine under its own host process, in a private folder that nothing outlives."""

    def __init__(self, launch: Launch, on_line: Callable[[str], None] = lambda _line: None, liveness: Liveness = Liveness()) -> None:
        self._launch, self._on_line, self._liveness = launch, on_line, liveness
        self._folder = launch.runtime_dir.absolute() / ENGINES / secrets.token_hex(4)
        self._socket = self._folder / "s"
        self._output = Output()
        self._host: subprocess.Popen[bytes] | None = None
        self._life: asyncio.Task[str] | None = None
        self._stopping: asyncio.Task[None] | None = None

    @property
    def endpoint(self) -> Endpoint:
        spec = self._launch.spec
        name = (spec.served_names or (self._launch.name,))[0]
        return Endpoint(self._launch.key, name, socket=self._socket, adapters=tuple(spec.lora))

    @property
    def pids(self) -> tuple[int, ...]:
        if self._host is None or self._host.returncode is not None:
            return ()
        return (self._host.pid, *sorted(descendants(self._host.pid)))

    def kernels(self) -> bytes | None:
        try:
            return (self._folder / REPORT).read_bytes()
        except OSError:
            return None

    @property
    def tail(self) -> tuple[str, ...]:
        return self._output.tail

    async def start(self) -> None:
        spec, key = self._launch.spec, str(self._launch.key)
        try:
            async with asyncio.timeout(spec.start_timeout_s):
                await self._check()
                self._spawn()
                await self._prove()
        except TimeoutError:
            await self.stop()
            raise ProbeTimeout(key, f"was not ready within {spec.start_timeout_s:g} s", self.tail) from None
        except BaseException as exc:
            await self.stop()
            if isinstance(exc, EngineError) or not isinstance(exc, Exception):
                raise
            raise EngineStartError(key, f"could not be started: {exc or type(exc).__name__}", self.tail) from exc

    async def wait(self) -> str:
        assert self._life, "wait() before start()"
        watching = asyncio.create_task(self._until_hung(), name=f"health of {self._launch.key}")
        try:
            await asyncio.wait({self._life, watching}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watching.cancel()
            await asyncio.wait({watching})
        if self._life.done():
            return self._life.result()
        await self.stop()
        return f"hung: {self._liveness.misses} health probes in a row had no answer"

    async def stop(self) -> None:
        if self._life is None:
            return
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._terminate(self._life), name=f"stop {self._launch.key}")
        await uninterrupted(self._stopping)

    async def _check(self) -> None:
        """Refuse what would fail later with less clear words, or be ignored in silence."""
        launch = self._launch
        problem = checkpoint_problem(launch.spec, await asyncio.to_thread(read_config, launch.folder))
        if not launch.folder.is_dir():
            problem = f"could not be started: there is no folder {launch.folder}"
        if missing := launch.cores - os.sched_getaffinity(0):
            problem = f"asks for cores that the daemon may not use: {', '.join(map(str, sorted(missing)))}"
        if (over := len(os.fsencode(self._folder)) + 1 + LONGEST_SOCKET_NAME - LONGEST_SOCKET_PATH) > 0:
            problem = f"could not be started: server.runtime_dir is {over} bytes too long for Unix sockets: {launch.runtime_dir}"
        if problem:
            raise EngineStartError(str(launch.key), problem)

    def _spawn(self) -> None:
        launch = self._launch
        cores = launch.cores or frozenset(os.sched_getaffinity(0))
        self._folder.mkdir(mode=0o700, parents=True)
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, self._folder, ignore_errors=True)
            lock = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            undo.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX)
            host = (sys.executable, "-P", "-m", "axiond.engine.host", "--folder", str(self._folder), "--lock", str(lock))
            argv = server_argv(launch.name, launch.spec, launch.folder, self._socket)
            self._host = subprocess.Popen(
                [*host, "--cores", ",".join(map(str, sorted(cores))), "--", *launch.command, *argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                env=environment(launch.spec, cores, self._folder, launch.state_dir, os.environ),
                pass_fds=(lock,),
                start_new_session=True,
            )
            undo.push(self._host)
            undo.callback(self._host.kill)
            descriptor = os.pidfd_open(self._host.pid)
            undo.pop_all()
        self._life = asyncio.create_task(self._live(self._host, lock, descriptor), name=f"host of {launch.key}")

    async def _live(self, host: subprocess.Popen[bytes], lock: int, descriptor: int) -> str:
        """Read the engine's output until its host ends, or cannot be watched; leave nothing behind; tell how it ended."""
        assert host.stdin
        assert host.stdout
        with contextlib.ExitStack() as held:
            held.callback(os.close, descriptor)
            held.callback(os.close, lock)
            held.callback(host.stdin.close)
            reading = asyncio.create_task(self._read(host.stdout))
            held.callback(reading.cancel)
            broken = ""
            try:
                await ended(descriptor)
            except OSError as exc:
                broken = f"was killed by SIGKILL, because its host could not be watched: {exc.strerror}"
            finally:
                await uninterrupted(asyncio.create_task(asyncio.to_thread(bury, host.pid, descriptor, self._folder)))
                code = host.wait()
            await asyncio.wait({reading}, timeout=1.0)
        return broken or self._output.ending or f"lost its host, which {how_ended(code)}"

    async def _read(self, pipe: IO[bytes]) -> None:
        loop, reader, partial = asyncio.get_running_loop(), asyncio.StreamReader(), b""
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        with contextlib.closing(transport):
            while chunk := await reader.read(65536):
                *lines, partial = (partial + chunk).split(b"\n")
                if len(partial) > LONGEST_PARTIAL_LINE:
                    lines, partial = [*lines, partial], b""
                for line in lines:
                    text = line.decode(errors="replace")
                    self._output.add(text)
                    self._on_line(text)

    async def _prove(self) -> None:
        connector = aiohttp.UnixConnector(str(self._socket))
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(PROBE_TIMEOUT_S)) as http:
            await self._unless_ended(self._until_ready(http))
            await self._unless_ended(self._ask_golden(http))

    async def _unless_ended(self, step: Coroutine[Any, Any, None]) -> None:
        """Await a step of the start; raise EngineStartError when the engine ends before."""
        assert self._life
        task = asyncio.create_task(step)
        try:
            await asyncio.wait({task, self._life}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
        finally:
            task.cancel()
            await asyncio.wait({task})
        cause = "".join(f": {line}" for line in self._output.errors[:1])
        raise EngineStartError(str(self._launch.key), f"{self._life.result()} before it was ready{cause}", self.tail)

    async def _until_hung(self) -> None:
        misses, watch = 0, self._liveness
        timeout = aiohttp.ClientTimeout(watch.timeout_s)
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self._socket)), timeout=timeout) as http:
            while misses < watch.misses:
                await asyncio.sleep(watch.interval_s)
                try:
                    is_healthy = await served_names(http, self.endpoint.base_url) is not None
                except (aiohttp.ClientError, OSError, ValueError) as exc:
                    if isinstance(exc, OSError) and exc.errno in OUR_OWN_SHORTAGES:
                        continue
                    is_healthy = False
                misses = 0 if is_healthy else misses + 1

    async def _until_ready(self, http: aiohttp.ClientSession) -> None:
        endpoint = self.endpoint
        names: list[str] | None = None
        while names is None:
            await asyncio.sleep(PROBE_INTERVAL_S)
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                names = await served_names(http, endpoint.base_url)
        if endpoint.model_name not in names:
            raise EngineStartError(str(self._launch.key), f"serves {', '.join(names)} instead of {endpoint.model_name}", self.tail)

    async def _ask_golden(self, http: aiohttp.ClientSession) -> None:
        if (golden := self._launch.spec.golden) is None:
            return
        try:
            answer = await ask(http, self.endpoint.base_url, self.endpoint.model_name, golden)
            problem = await judge(golden, answer)
        except (GoldenRequestFailed, aiohttp.ClientError, ValueError) as exc:
            problem = f"failed its golden prompt: {exc}"
        if problem:
            raise GoldenPromptFailed(str(self._launch.key), problem, self.tail)

    async def _terminate(self, life: asyncio.Task[str]) -> None:
        self._signal(signal.SIGTERM)
        _, pending = await asyncio.wait({life}, timeout=STOP_DEADLINE_S)
        if pending:
            self._signal(signal.SIGKILL)
            await asyncio.wait({life})

    def _signal(self, number: int) -> None:
        """Signal the host. Not by Popen's methods: they reap it, and its id is needed until all of its session is gone."""
        if self._host and self._host.returncode is None:
            os.kill(self._host.pid, number)


async def served_names(http: aiohttp.ClientSession, base_url: str) -> list[str] | None:
    """
    Ask an engine which models it serves; None while it is not healthy.

    Raises:
        ValueError: it answers with something else.
    """
    async with http.get(f"{base_url}/health") as response:
        if response.status != 200:
            return None
    async with http.get(f"{base_url}/v1/models") as response:
        answer = await response.read()
    try:
        return [str(model["id"]) for model in json.loads(answer)["data"]]
    except (ValueError, LookupError, TypeError, RecursionError) as exc:
        raise ValueError(f"/v1/models answers with no list of models: {answer[:200]!r}") from exc


async def uninterrupted(task: asyncio.Task[None]) -> None:
    """Await a task to its end even if the caller is cancelled meanwhile; the cancellation is raised afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled:
        raise cancelled


async def ended(descriptor: int) -> None:
    """Wait until the process behind a descriptor has ended; it is left to be reaped."""
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, over.set)
    try:
        await over.wait()
    finally:
        loop.remove_reader(descriptor)


def bury(host: int, descriptor: int, folder: Path) -> None:
    """End a host, if it still lives, and everything that is left of its engine; it is left to be reaped."""
    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    over = select.poll()
    over.register(descriptor, select.POLLIN)
    over.poll()
    # Without free descriptors /proc cannot be read; then the host's own sweep has to do.
    with contextlib.suppress(OSError):
        sweep(folder, host)


def read_config(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's config.json; empty if there is none or it is broken, which vLLM tells better."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if isinstance(config := json.loads((folder / "config.json").read_bytes()), dict):
            return config
    return {}


def clean_leftovers(runtime_dir: Path) -> tuple[str, ...]:
    """Sweep every engine folder under *runtime_dir* that neither a daemon nor a host holds any more; return their names."""
    swept = []
    for folder in sorted(runtime_dir.glob(f"{ENGINES}/*")):
        with contextlib.suppress(OSError), (folder / LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sweep(folder)
            swept.append(folder.name)
    return tuple(swept)


def memory_bytes(pids: Iterable[int]) -> int:
    """Sum the proportional set sizes of processes: shared pages count once. Slow for the kernel: call it off the loop."""
    return sum(map(_pss_bytes, pids))


def _pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(b"Pss:"))
