"""The composition root: builds every object, owns the one TaskGroup, hears signals. The only file that knows all."""

import asyncio
import fcntl
import os
import random
import resource
import signal
import socket
import stat
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import uvloop

from axiond import __version__, log
from axiond.announce import Announcer
from axiond.boot import Boot, read_boot
from axiond.control import Control
from axiond.engine.adopt import AdoptedEngine, end_engines, find_engines
from axiond.engine.argv import environment
from axiond.engine.engine import Engine
from axiond.engine.forkclient import ForkServer
from axiond.engine.plugin import lend_nothing
from axiond.engine.process import SERVER, Launch, ProcessEngine
from axiond.engine.spawn import PLAIN
from axiond.errors import AxiondError, StoreError
from axiond.events import Events
from axiond.gateway.app import serve_admin, serve_rest
from axiond.gateway.listen import inherited_sockets, listen
from axiond.gateway.metrics import Metrics
from axiond.gateway.route import Aids
from axiond.manifest.spec import ModelSpec, Server
from axiond.manifest.store import LastGood, state_folder
from axiond.manifest.watch import watch
from axiond.monitor import Monitor
from axiond.notify import Notifier, is_service
from axiond.placement import Placement
from axiond.reconcile.execute import Fetched, World
from axiond.reconcile.generation import Generation
from axiond.reconcile.loop import Listener, Reconciler
from axiond.reconcile.state import EngineKey, SourceKey
from axiond.resources.budget import read_room
from axiond.resources.estimate import Prediction
from axiond.resources.measured import MeasuredStore
from axiond.resources.memory import Memory
from axiond.resources.topology import read_topology
from axiond.routing.answers import Answers
from axiond.routing.count import TokenCounter
from axiond.routing.replay import Replay
from axiond.semantic.classify import Classifier
from axiond.semantic.kept import KeptProbes
from axiond.semantic.prepare import Semantics
from axiond.sources import cache
from axiond.sources.fetch import Progress, fetch, fetch_encoder

FORK_SERVER_DELAY_S = 5.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What overrides the manifest or the machine: the engines' command and memory for tests, the log's format for people."""

    engine_command: tuple[str, ...] = ()
    budget_bytes: int | None = None
    log_format: log.LogFormat | None = None


def run(path: Path, settings: Settings = Settings()) -> int:
    """Serve the manifest at *path* until SIGTERM or SIGINT; return the exit code."""
    code = 0
    try:
        uvloop.run(_serve(path.absolute(), settings))
    except* AxiondError as group:
        code = 1
        for error in _leaves(group):
            print(f"axiond: {error}", file=sys.stderr)
    return code


async def _serve(path: Path, settings: Settings) -> None:
    inherited = inherited_sockets()
    store = LastGood(state_folder(), path)
    boot = read_boot(path, store)
    server = boot.manifest.server
    log.configure(server.log_level, settings.log_format or server.log_format)
    _raise_file_limit()
    lend_nothing()
    with _only_daemon(server.runtime_dir):
        listener = _listen(server, inherited)
        found = await _find(server)
        async with asyncio.TaskGroup() as tasks:
            await _Daemon(path, boot, store, server, settings, tasks).serve(listener, found)


def _listen(server: Server, inherited: Sequence[socket.socket]) -> socket.socket:
    """Clients that come from now on wait until this daemon is ready for them, and when it is restarted for the next one."""
    notifier = Notifier()
    listener = listen(server.listen, inherited, notifier.drop_kept)
    notifier.keep(listener)
    return listener


def _keeps_engines(server: Server) -> bool:
    return is_service() if server.on_exit == "auto" else server.on_exit == "keep"


async def _find(server: Server) -> tuple[AdoptedEngine, ...]:
    """What a former daemon has left to be adopted; the rest of it is removed."""
    if _keeps_engines(server):
        return await find_engines(server.runtime_dir, _print)
    await end_engines(server.runtime_dir)
    return ()


def _print(key: EngineKey, line: str) -> None:
    structlog.get_logger().debug(log.ENGINE_PRINTED, key=str(key), line=line)


class _Daemon:
    def __init__(self, path: Path, boot: Boot, store: LastGood, server: Server, settings: Settings, tasks: asyncio.TaskGroup) -> None:
        self._server, self._settings, self._tasks, self._boot, self._store = server, settings, tasks, boot, store
        self._events, self._notifier = Events(), Notifier()
        self._keep_s = server.keep_for if _keeps_engines(server) else None
        self._announcer = Announcer(self._notifier, self._events)
        self._realised: asyncio.Queue[Generation] = asyncio.Queue()
        memory = Memory(MeasuredStore(server.state_dir), read_room(), settings.budget_bytes)
        world = World(self._build_engine, self._fetch, asyncio.get_running_loop().time, random.random)
        listener = Listener(self._realised.put_nowait, self._after_round, self._change_ended)
        self._reconciler = Reconciler(world, self._events, tasks, server, memory, listener)
        self._placement = Placement(self._reconciler, read_topology(), self._events)
        self._forks = _fork_server(server) if server.fork_server and not settings.engine_command else None
        self._monitor = Monitor(self._reconciler, self._forks)
        self._semantics = Semantics(lambda source: fetch_encoder(source, server.state_dir), KeptProbes(server.state_dir / "domains"))
        self._counter = TokenCounter(self._reconciler.folder_of)
        self._replay = Replay()
        self._control = Control(
            path, self._reconciler, self._events, self._monitor, self._placement, self._semantics, self._counter, self._replay
        )
        self._classifier = Classifier()
        self._metrics = Metrics(self._reconciler.router, self._control.last_status, self._classifier)
        self._is_over = asyncio.Event()

    async def serve(self, listener: socket.socket, found: Sequence[AdoptedEngine]) -> None:
        """Serve until a signal; then end running requests, engines and tasks, in that order. Engines may be there already."""
        self._events.emit(log.DAEMON_WAS_STARTED, version=__version__, manifest=str(self._control.path), pid=os.getpid())
        executor = self._reconciler.executor
        for engine in found:
            known = engine.identity
            executor.adopt(engine, Prediction(fixed_bytes=known.memory_bytes), known.ready_at)
        self._hear_signals()
        self._tasks.create_task(asyncio.to_thread(cache.sweep, self._server.state_dir))
        telling = [self._tasks.create_task(work) for work in self._tell()]
        aids = Aids(Answers(self._classifier, self._counter), self._replay.note)
        rest = serve_rest(self._reconciler.router, self._server, self._metrics, listener=listener, aids=aids)
        async with serve_admin(self._control, self._admin_socket(), self._metrics):
            await self._start()
            deciding = [self._tasks.create_task(work) for work in self._decide()]
            async with rest:
                await self._is_over.wait()
                self._events.emit(log.DAEMON_BEGAN_STOPPING)
                self._announcer.stopping()
        await _cancel(deciding)
        self._classifier.close()
        await self._counter.close()
        await self._semantics.close()
        if self._keep_s is None:
            await executor.stop_all()
        elif left := await executor.leave_all():
            self._events.emit(log.ENGINES_WERE_LEFT, count=left, for_s=self._keep_s)
        await _cancel(telling)
        self._events.emit(log.DAEMON_WAS_STOPPED)

    async def _start(self) -> None:
        """Want what there is, unless a signal comes first."""
        starting, over = asyncio.create_task(self._control.start(self._boot)), asyncio.create_task(self._is_over.wait())
        await asyncio.wait((starting, over), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
        await _cancel((starting, over))

    def _hear_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._is_over.set)
        loop.add_signal_handler(signal.SIGHUP, self._control.look_again)

    def _decide(self) -> Iterator[Coroutine[None, None, None]]:
        """Endless work that may start engines; it ends before they are stopped."""
        yield self._reconciler.run()
        yield self._placement.run()
        yield self._control.run()
        yield watch(self._control.path, lambda: self._control.files, self._control.look)

    def _tell(self) -> Iterator[Coroutine[None, None, None]]:
        """Endless work that only tells."""
        yield self._monitor.run()
        yield self._announcer.heartbeat()
        if self._forks:
            yield self._keep_forks(self._forks, has_engines=bool(self._reconciler.executor.engines))
        yield self._notifier.feed_watchdog()
        yield self._keep_last_good()
        yield self._greet()

    async def _keep_forks(self, forks: ForkServer, *, has_engines: bool) -> None:
        """Importing vLLM takes a core for seconds. Where engines were found, those who wait for their answers come first."""
        if has_engines:
            await self._announcer.became_ready.wait()
            await asyncio.sleep(FORK_SERVER_DELAY_S)
        await forks.keep()

    def _after_round(self, text: str, is_busy: bool, is_up: bool) -> None:
        self._announcer.after_round(text, is_busy, is_up)
        self._placement.look()

    def _change_ended(self, outcome: str, took_s: float) -> None:
        self._metrics.reload_ended(outcome, took_s)
        self._events.emit(log.GENERATION_WAS_SETTLED, outcome=outcome, took_s=round(took_s, 3))

    async def _keep_last_good(self) -> None:
        while True:
            generation = await self._realised.get()
            try:
                await asyncio.to_thread(self._store.save, generation.manifest, generation.number, generation.etag)
            except StoreError as exc:
                self._events.emit(log.MANIFEST_WAS_NOT_STORED, level="error", problem=str(exc))
            else:
                self._events.emit(log.MANIFEST_WAS_STORED, generation=generation.number)

    async def _greet(self) -> None:
        await self._announcer.became_ready.wait()
        table = self._reconciler.router.table
        names = [name for name, model in table.names.items() if table.pools[model].endpoints]
        example = EXAMPLE.format(listen=self._server.listen, model=names[0]) if names else ""
        self._events.emit(log.DAEMON_BECAME_READY, listen=self._server.listen, models=names, example=" ".join(example.split()))
        if example and sys.stderr.isatty():
            print(GREETING.format(example=example), file=sys.stderr)
        await asyncio.Event().wait()

    def _build_engine(self, key: EngineKey, folder: Path) -> Engine:
        spec = self._reconciler.spec_of(key)
        assert spec, f"{key} is started, and no manifest wants it"
        launch = Launch(
            key=key,
            name=key.model,
            spec=spec,
            folder=folder,
            runtime_dir=self._server.runtime_dir,
            state_dir=self._server.state_dir,
            keep_s=self._keep_s,
            memory_bytes=self._reconciler.observe().predictions.get(key.digest, Prediction()).steady_bytes,
            cores=self._placement.place(key),
            command=self._settings.engine_command or SERVER,
        )
        return ProcessEngine(launch, lambda line: _print(key, line), spawner=self._forks or PLAIN)

    async def _fetch(self, key: SourceKey, on_progress: Callable[[str], None]) -> Fetched:
        return await fetch(key.source, key.revision, self._server.state_dir, _in_words(on_progress))

    def _admin_socket(self) -> Path:
        return self._server.admin_socket or self._server.runtime_dir / "admin.sock"


EXAMPLE = """curl http://{listen}/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "What is the capital of France?"}}]}}'"""
GREETING = """
axiond is ready. Try:

  {example}

Edit the manifest at any time: it is followed at once. Ctrl-C stops.
"""


def _fork_server(server: Server) -> ForkServer:
    """What engines share of their environment is there when vLLM is imported."""
    return ForkServer(environment(ModelSpec(source="-"), (), server.runtime_dir, server.state_dir, os.environ), server.runtime_dir)


def _in_words(on_progress: Callable[[str], None]) -> Callable[[Progress], None]:
    """Say a fetch's progress in words, and only when they change."""
    said = ""

    def tell(progress: Progress) -> None:
        nonlocal said
        if progress.total_bytes:
            tenths = 10 * progress.done_bytes // progress.total_bytes
            words = f"{progress.stage} {10 * tenths} % of {progress.total_bytes / 1e6:.0f} MB"
        else:
            words = progress.stage
        if words != said:
            said = words
            on_progress(words)

    return tell


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@contextmanager
def _only_daemon(runtime_dir: Path) -> Iterator[None]:
    """Own the runtime folder, or say who does."""
    try:
        runtime_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
        found = runtime_dir.lstat()
    except OSError as exc:
        remedy = "choose another server.runtime_dir, or run axiond as a user who may"
        raise AxiondError(f"{runtime_dir} cannot be made: {exc.strerror}: {remedy}") from exc
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & stat.S_IWOTH:
        raise AxiondError(f"{runtime_dir} belongs to another user, is a link or is writable for all: choose another server.runtime_dir")
    with (runtime_dir / "daemon.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "?"
            raise AxiondError(
                f"axiond runs already on {runtime_dir} (process {holder}): stop it, or choose another server.runtime_dir"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _raise_file_limit() -> None:
    """Each request takes two descriptors, and the usual soft limit is 1024."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _leaves(group: BaseExceptionGroup[BaseException]) -> Sequence[BaseException]:
    return [leaf for error in group.exceptions for leaf in (_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])]
