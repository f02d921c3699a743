"""The daemon's side of the fork server: start it, ask it for hosts, and replace it when what it has imported is out of date."""

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, assert_never

import structlog

from axiond import log
from axiond.engine.forkserver import LENGTH_BYTES, framed
from axiond.engine.link import is_readable
from axiond.engine.spawn import HostArgs, PlainSpawner
from axiond.engine.sweep import MARK

PRELOAD = "axiond.engine.preload"
PACKAGES = ("axiond", "torch", "transformers", "vllm")
LOG = "forkserver.log"
# A folder that is none, with a name as long as theirs: forked processes write their own into its place.
NO_ENGINE = "e/00000000"
MOST_DEATHS = 2
IMPORT_DEADLINE_S, ANSWER_DEADLINE_S = 180.0, 30.0
CHECK_INTERVAL_S = 5.0
# With these a fork server never starts a thread; an engine sets its number of threads when it has its cores.
ENVIRON = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "GOMP_SPINCOUNT": "10000"}

Verdict = Literal["keep", "start", "replace", "give up"]
State = Literal["off", "starting", "ready", "given up"]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a fork server is made of: libraries loaded before all others, and for each file its path, age and number."""

    preload: str
    files: tuple[tuple[str, int, int], ...]


@dataclass(slots=True)
class Deaths:
    """How often fork servers of one stamp have died, one after the other, before they had forked anything."""

    stamp: Stamp | None = None
    count: int = 0

    def add(self, stamp: Stamp) -> None:
        self.count = self.count + 1 if stamp == self.stamp else 1
        self.stamp = stamp


def judge(running: Stamp | None, wanted: Stamp, deaths: Deaths) -> Verdict:
    """Decide what to do about the fork server that runs, or does not."""
    if running == wanted:
        return "keep"
    if deaths.stamp == wanted and deaths.count >= MOST_DEATHS:
        return "give up"
    return "start" if running is None else "replace"


class ForkServerFailed(Exception):
    """The fork server cannot be used; the message says why."""


class ForkServer:
    """A spawner that has hosts forked, or executed where that is not possible. `keep()` runs as long as it is in use."""

    def __init__(self, environ: Mapping[str, str], runtime_dir: Path, preload: str = PRELOAD) -> None:
        self._environ, self._folder, self._module = environ, runtime_dir.absolute(), preload
        self._plain = PlainSpawner()
        self._turn = asyncio.Lock()
        self._running: _Running | None = None
        self._deaths = Deaths()
        self.state: State = "off"
        self.problem, self.forked = "", 0

    @property
    def pid(self) -> int | None:
        return self._running.process.pid if self._running else None

    async def keep(self) -> None:
        """Have one at hand that is up to date, for ever."""
        try:
            while True:
                try:
                    async with self._turn:
                        await self._current()
                except ForkServerFailed as exc:
                    self._note(str(exc))
                ended = [asyncio.ensure_future(self._running.process.wait())] if self._running else []
                pause = asyncio.ensure_future(asyncio.sleep(CHECK_INTERVAL_S))
                try:
                    await asyncio.wait([*ended, pause], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for waiting in (*ended, pause):
                        waiting.cancel()
        finally:
            await self._end()

    async def spawn(self, args: HostArgs, lock: int) -> int:
        """Fork a host, or execute it. Raises OSError: neither is possible."""
        try:
            async with self._turn:
                pid = await self._fork(args, lock)
            self.forked += 1
            return pid
        except ForkServerFailed as exc:
            self._note(str(exc))
        return await self._plain.spawn(args, lock)

    async def _fork(self, args: HostArgs, lock: int) -> int:
        while True:
            running = await self._current()
            try:
                return await running.fork(args, lock)
            except BrokenPipeError:
                await self._bury(running, "died")

    async def _current(self) -> "_Running":
        if self._running and self._running.process.returncode is not None:
            await self._bury(self._running, f"ended with code {self._running.process.returncode}")
        try:
            wanted = await asyncio.to_thread(look)
        except OSError as exc:
            raise ForkServerFailed(f"what is installed cannot be seen: {exc}") from exc
        verdict = judge(self._running.stamp if self._running else None, wanted, self._deaths)
        match verdict:
            case "keep":
                assert self._running
                return self._running
            case "give up":
                await self._end()
                self.state = "given up"
                raise ForkServerFailed(self.problem)
            case "replace" | "start":
                await self._end()
                return await self._start(wanted)
            case _:
                assert_never(verdict)

    async def _start(self, stamp: Stamp) -> "_Running":
        self.state = "starting"
        mark = self._folder / NO_ENGINE
        environ = {**self._environ, **ENVIRON, "LD_PRELOAD": stamp.preload, MARK: str(mark)}
        try:
            running = self._running = await _Running.begin(self._module, stamp, environ, self._folder / LOG)
        except OSError as exc:
            raise ForkServerFailed(f"the fork server cannot be started: {exc}") from exc
        try:
            await running.hear(IMPORT_DEADLINE_S)
        except ForkServerFailed as exc:
            await self._bury(running, str(exc))
            raise ForkServerFailed(self.problem) from None
        except BaseException:
            await self._end()
            raise
        self.state, self.problem = "ready", ""
        return running

    async def _bury(self, running: "_Running", how: str) -> None:
        """Count a death, and say what it was."""
        await self._end()
        if not running.has_forked:
            self._deaths.add(running.stamp)
        last = await asyncio.to_thread(_last_line, self._folder / LOG)
        self._note(f"the fork server {how}{f': {last}' if last else ''}")

    async def _end(self) -> None:
        running, self._running, self.state = self._running, None, "off"
        if running:
            await running.end()

    def _note(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            structlog.get_logger().warning(log.FORK_SERVER_FAILED, problem=problem)


@dataclass(slots=True)
class _Running:
    """One fork server, and the socket to it."""

    stamp: Stamp
    process: asyncio.subprocess.Process
    channel: socket.socket
    has_forked: bool = field(default=False)

    @classmethod
    async def begin(cls, module: str, stamp: Stamp, environ: Mapping[str, str], log_path: Path) -> "_Running":
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs, log_path.open("wb") as said:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "axiond.engine.forkserver", module),
                stdin=theirs.fileno(),
                stdout=said,
                stderr=subprocess.STDOUT,
                env=environ,
                start_new_session=True,
            )
        return cls(stamp, process, ours)

    async def fork(self, args: HostArgs, lock: int) -> int:
        """
        Have a host forked.

        Raises:
            BrokenPipeError: it was not, and this fork server is dead.
            ForkServerFailed: it was not.
            OSError: it was, but nobody knows its id.
        """
        request = framed(json.loads(args.to_json()))
        # Who is forked holds the pipe open; otherwise it ends with the fork server.
        heard, held = os.pipe()
        try:
            try:
                socket.send_fds(self.channel, [request[:LENGTH_BYTES]], [lock, held])
            finally:
                os.close(held)
            message = await to_its_end(self._exchange(request[LENGTH_BYTES:]), unwanted=kill_host)
        except ForkServerFailed as exc:
            await self._kill()
            if is_readable(heard):
                raise BrokenPipeError from exc
            raise OSError(f"the fork server {exc} when it had forked") from exc
        finally:
            os.close(heard)
        if "pid" not in message:
            raise ForkServerFailed(f"the fork server does not fork: {message.get('problem')}")
        self.has_forked = True
        return int(message["pid"])

    async def _exchange(self, rest: bytes) -> dict[str, Any]:
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().sock_sendall(self.channel, rest)
        return await self.hear(ANSWER_DEADLINE_S)

    async def hear(self, deadline_s: float) -> dict[str, Any]:
        """Read a message. Raises ForkServerFailed: there comes none."""
        try:
            async with asyncio.timeout(deadline_s):
                length = int.from_bytes(await self._read(LENGTH_BYTES), "big")
                message: dict[str, Any] = json.loads(await self._read(length))
                return message
        except TimeoutError:
            raise ForkServerFailed(f"said nothing for {deadline_s:g} s") from None
        except (OSError, EOFError):
            raise ForkServerFailed("died") from None

    async def _read(self, count: int) -> bytes:
        found, loop = b"", asyncio.get_running_loop()
        while len(found) < count:
            if not (chunk := await loop.sock_recv(self.channel, count - len(found))):
                raise EOFError
            found += chunk
        return found

    async def end(self) -> None:
        """End it; its hosts live on."""
        self.channel.close()
        await self._kill()

    async def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


async def to_its_end(work: Coroutine[Any, Any, _T], unwanted: Callable[[_T], None]) -> _T:
    """
    Await a question and its answer however often the caller is cancelled meanwhile, so that the next answer is not this one.

    Nobody gets the answer then but *unwanted*.
    """
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as exc:
            cancelled = exc
    if not cancelled:
        return task.result()
    if not task.exception():
        unwanted(task.result())
    raise cancelled


def kill_host(answer: Mapping[str, Any]) -> None:
    """End a host that nobody will connect to; what it has started ends with it."""
    if "pid" in answer:
        with contextlib.suppress(ProcessLookupError):
            os.kill(answer["pid"], signal.SIGKILL)


def look() -> Stamp:
    """See what a fork server that starts now would be made of. Reads some folders."""
    roots = {name: Path(spec.origin).parent for name in PACKAGES if (spec := importlib.util.find_spec(name)) and spec.origin}
    files = [path for name, root in roots.items() for path in _telling(name, root)]
    return Stamp(_preload(roots), tuple(sorted((str(path), stat.st_mtime_ns, stat.st_ino) for path in files for stat in _stat(path))))


def _telling(name: str, root: Path) -> Iterator[Path]:
    """
    Pick the files of a package that tell whether it was installed anew.

    Whatever an installer changes shows in the folder beside the package. Our own may be worked on where it lies.
    """
    yield root.parent
    yield root / "__init__.py"
    if name == "axiond":
        yield from root.rglob("*.py")


def _stat(path: Path) -> Iterator[os.stat_result]:
    with contextlib.suppress(OSError):
        yield path.stat()


def _preload(roots: Mapping[str, Path]) -> str:
    """
    Name the libraries that vLLM would have its processes load before all others, as its CPU platform does.

    Without torch's OpenMP another one may come first, and binding threads then leaves one core for all of them.
    """
    inherited = os.environ.get("LD_PRELOAD", "")
    found = [inherited] if inherited else []
    if (torch := roots.get("torch")) and not any(name in inherited for name in ("libomp", "libgomp", "libiomp")):
        found += [str(path) for folder in (torch.parent / "torch.libs", torch / "lib") for path in sorted(folder.glob("libgomp*.so*"))][:1]
    if (vllm := roots.get("vllm")) and "libtcmalloc" not in inherited:
        found[:0] = [str(path) for path in sorted((vllm / "libs").glob("libtcmalloc*.so*"))][:1]
    return ":".join(found)


def _last_line(path: Path) -> str:
    with contextlib.suppress(OSError):
        lines = path.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""
    return ""
