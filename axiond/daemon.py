"""The composition root: builds every object, owns the one TaskGroup, hears signals. The only file that knows all."""

import asyncio
import fcntl
import os
import random
import signal
import stat
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
import uvloop

from axiond import __version__, log
from axiond.announce import Announcer
from axiond.control import Control
from axiond.engine.engine import Engine
from axiond.engine.process import Launch, ProcessEngine, clean_leftovers
from axiond.errors import AxiondError, ManifestError, StoreError
from axiond.events import Events
from axiond.gateway.app import serve_admin, serve_rest
from axiond.gateway.metrics import Metrics
from axiond.manifest.load import Loaded, load
from axiond.manifest.spec import Manifest, Server
from axiond.manifest.store import LastGood, Stored, state_folder
from axiond.manifest.watch import watch
from axiond.notify import Notifier
from axiond.reconcile.execute import Fetched, World
from axiond.reconcile.generation import Generation
from axiond.reconcile.loop import Listener, Reconciler
from axiond.reconcile.state import EngineKey, SourceKey
from axiond.resources.budget import budget_bytes
from axiond.resources.cores import cores_of
from axiond.sources.fetch import Progress, fetch


@dataclass(frozen=True, slots=True)
class Settings:
    """What tests and benchmarks may change: the engines' command and the memory that they share."""

    engine_command: tuple[str, ...] = ()
    budget_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Boot:
    """What there is to start from: the file if it is good, else why not; and the last good manifest if there is one."""

    loaded: Loaded | None
    error: ManifestError | None
    stored: Stored | None

    @property
    def manifest(self) -> Manifest:
        """Raises ManifestError when there is nothing to serve."""
        if self.loaded:
            return self.loaded.manifest
        if self.stored:
            return self.stored.manifest
        assert self.error is not None
        raise self.error


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
    store = LastGood(state_folder(), path)
    boot = _read_boot(path, store)
    server = boot.manifest.server
    log.configure(server.log_level, server.log_format)
    with _only_daemon(server.runtime_dir):
        clean_leftovers(server.runtime_dir)
        async with asyncio.TaskGroup() as tasks:
            await _Daemon(path, boot, store, server, settings, tasks).serve()


def _read_boot(path: Path, store: LastGood) -> Boot:
    stored, why_not = store.load()
    if why_not:
        structlog.get_logger().warning(log.LAST_GOOD_WAS_LOADED, problem=why_not)
    try:
        return Boot(load(path), None, stored)
    except ManifestError as exc:
        return Boot(None, exc, stored)


class _Daemon:
    def __init__(self, path: Path, boot: Boot, store: LastGood, server: Server, settings: Settings, tasks: asyncio.TaskGroup) -> None:
        self._server, self._settings, self._tasks, self._boot, self._store = server, settings, tasks, boot, store
        self._events, self._notifier = Events(), Notifier()
        self._announcer = Announcer(self._notifier, self._events)
        self._realised: asyncio.Queue[Generation] = asyncio.Queue()
        budget = settings.budget_bytes or budget_bytes()
        world = World(self._build_engine, self._fetch, asyncio.get_running_loop().time, random.random)
        listener = Listener(self._realised.put_nowait, self._announcer.after_round, self._change_ended)
        self._reconciler = Reconciler(world, self._events, tasks, server, budget, listener)
        self._control = Control(path, self._reconciler, self._events)
        self._metrics = Metrics(self._reconciler.router, self._control.last_status)
        self._is_over = asyncio.Event()

    async def serve(self) -> None:
        """Serve until a signal; then end running requests, engines and tasks, in that order."""
        self._events.emit(log.DAEMON_WAS_STARTED, version=__version__, manifest=str(self._control.path), pid=os.getpid())
        self._start_from(self._boot)
        self._hear_signals()
        endless = [self._tasks.create_task(work, name=name) for name, work in self._endless().items()]
        rest = serve_rest(self._reconciler.router, self._server, self._metrics)
        async with serve_admin(self._control, self._admin_socket(), self._metrics), rest:
            await self._is_over.wait()
            self._events.emit(log.DAEMON_BEGAN_STOPPING)
            self._notifier.stopping("ending running requests")
        await self._reconciler.executor.stop_all()
        for task in endless:
            task.cancel()
        self._events.emit(log.DAEMON_WAS_STOPPED)

    def _start_from(self, boot: Boot) -> None:
        if boot.stored:
            self._reconciler.resume(boot.stored.generation, boot.stored.etag, boot.stored.manifest)
            self._events.emit(log.LAST_GOOD_WAS_LOADED, generation=boot.stored.generation)
        if boot.loaded:
            self._control.files = boot.loaded.files
            self._reconciler.submit(boot.loaded.etag, boot.loaded.manifest)
        elif boot.error:
            self._reconciler.refuse(boot.error)

    def _hear_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._is_over.set)
        loop.add_signal_handler(signal.SIGHUP, self._control.look_again)

    def _endless(self) -> Mapping[str, Coroutine[None, None, None]]:
        return {
            "reconcile": self._reconciler.run(),
            "watch": watch(self._control.path, lambda: self._control.files, self._control.look),
            "look": self._control.run(),
            "sample": self._control.keep_sampling(),
            "heartbeat": self._announcer.heartbeat(),
            "watchdog": self._notifier.feed_watchdog(),
            "keep last good": self._keep_last_good(),
            "greet": self._greet(),
        }

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
        ready = [name for name, pool in self._reconciler.router.table.pools.items() if pool.endpoints]
        self._events.emit(log.DAEMON_BECAME_READY, listen=self._server.listen, models=ready)
        if ready and sys.stderr.isatty():
            print(GREETING.format(listen=self._server.listen, model=ready[0]), file=sys.stderr)
        await asyncio.Event().wait()

    def _build_engine(self, key: EngineKey, folder: Path) -> Engine:
        spec = self._reconciler.spec_of(key)
        launch = Launch(
            key=key,
            name=key.model,
            spec=spec,
            folder=folder,
            runtime_dir=self._server.runtime_dir,
            state_dir=self._server.state_dir,
            cores=cores_of(spec, key.replica, os.sched_getaffinity(0)),
            **({"command": self._settings.engine_command} if self._settings.engine_command else {}),
        )
        return ProcessEngine(launch, lambda line: structlog.get_logger().debug(log.ENGINE_PRINTED, key=str(key), line=line))

    async def _fetch(self, key: SourceKey, on_progress: Callable[[str], None]) -> Fetched:
        return await fetch(key.source, key.revision, self._server.state_dir, _in_words(on_progress))

    def _admin_socket(self) -> Path:
        return self._server.admin_socket or self._server.runtime_dir / "admin.sock"


GREETING = """
axiond is ready. Try:

  curl http://{listen}/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "What is the capital of France?"}}]}}'

Edit the manifest at any time: it is followed at once. Ctrl-C stops.
"""


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


@contextmanager
def _only_daemon(runtime_dir: Path) -> Iterator[None]:
    """Own the runtime folder, or say who does."""
    runtime_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
    if runtime_dir.stat().st_uid != os.geteuid() or runtime_dir.stat().st_mode & stat.S_IWOTH:
        raise AxiondError(f"{runtime_dir} belongs to another user or is writable for all: choose another server.runtime_dir")
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


def _leaves(group: BaseExceptionGroup[BaseException]) -> Sequence[BaseException]:
    return [leaf for error in group.exceptions for leaf in (_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])]
