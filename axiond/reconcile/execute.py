"""Carry out what a plan asks of engines and sources: one method for each action, no policy."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, assert_never

from axiond import log
from axiond.engine.engine import Engine
from axiond.errors import EngineError, IllegalTransition, SourceError
from axiond.events import Events
from axiond.reconcile import actions as do
from axiond.reconcile.backoff import failures_after_exit, retry_delay_s
from axiond.reconcile.state import TRANSITIONS, EngineKey, EngineState, EngineView, SourceKey, SourceState, SourceView
from axiond.resources.checkpoint import Checkpoint
from axiond.resources.estimate import Prediction

ADOPTED = "adopted"


class Fetched(Protocol):
    """A source on this machine."""

    @property
    def folder(self) -> Path: ...

    @property
    def weight_bytes(self) -> int: ...

    @property
    def note(self) -> str: ...

    @property
    def checkpoint(self) -> Checkpoint | None: ...


@dataclass(frozen=True, slots=True)
class World:
    """What the executor needs from outside: engines, sources, the clock and chance."""

    build_engine: Callable[[EngineKey, Path], Engine]
    fetch: Callable[[SourceKey, Callable[[str], None]], Awaitable[Fetched]]
    now: Callable[[], float]
    jitter: Callable[[], float]


@dataclass(slots=True)
class EngineRecord:
    """One engine, and the only place where its state is written."""

    key: EngineKey
    engine: Engine
    since: float
    generation: int
    prediction: Prediction
    state: EngineState = EngineState.STARTING
    reason: str = ""
    retry_at: float = 0.0
    failures: int = 0
    since_wall: float = field(default_factory=time.time)
    tail: tuple[str, ...] = ()
    life: asyncio.Task[None] | None = None
    used_bytes: int = 0
    load_s: float | None = None
    is_measured: bool = False
    doom: str = ""

    def become(self, state: EngineState, now: float, reason: str) -> None:
        if state not in TRANSITIONS[self.state]:
            raise IllegalTransition(str(self.key), self.state, state)
        self.state, self.since, self.since_wall, self.reason = state, now, time.time(), reason

    def backdate(self, ready_at: float) -> None:
        """It was ready before this daemon knew of it."""
        self.since -= max(0.0, self.since_wall - ready_at)
        self.since_wall = min(self.since_wall, ready_at)

    def view(self, in_flight: int, ceiling_bytes: int = 2**63) -> EngineView:
        return EngineView(
            key=self.key,
            state=self.state,
            since=self.since,
            generation=self.generation,
            reason=self.reason,
            retry_at=self.retry_at,
            failures=self.failures,
            in_flight=in_flight,
            prediction=self.prediction,
            used_bytes=self.used_bytes,
            ceiling_bytes=ceiling_bytes,
        )


@dataclass(slots=True)
class SourceRecord:
    view: SourceView
    folder: Path = Path()
    bringing: asyncio.Task[None] | None = None

    def is_lost(self) -> bool:
        return self.view.state is SourceState.FAILED or (self.view.state is SourceState.READY and not self.folder.exists())


class Executor:
    def __init__(self, world: World, events: Events, wake: Callable[[], None], tasks: asyncio.TaskGroup) -> None:
        self.engines: dict[EngineKey, EngineRecord] = {}
        self.sources: dict[SourceKey, SourceRecord] = {}
        self._world, self._events, self._wake, self._tasks = world, events, wake, tasks

    def execute(self, action: do.EngineAction) -> None:
        match action:
            case do.Fetch(source):
                self._fetch(source)
            case do.Drop(source):
                self._drop(source)
            case do.Start():
                self._start(action)
            case do.Drain(key, _, reason):
                self._become(key, EngineState.DRAINING, reason)
            case do.Resume(key):
                self._become(key, EngineState.READY, "wanted again")
            case do.Stop(key, reason):
                self._become(key, EngineState.STOPPING, reason)
                self._cancel(self.engines[key].life)
                self._tasks.create_task(self._stop(self.engines[key]), name=f"stop {key}")
            case do.GiveUp(key):
                self._become(key, EngineState.FAILED, self.engines[key].reason)
            case do.Forget(key):
                self._forget(key)
            case _:
                assert_never(action)

    def folder_of(self, source: SourceKey) -> Path | None:
        """Where the files of *source* are, once they are all there."""
        record = self.sources.get(source)
        return record.folder if record and record.view.state is SourceState.READY else None

    def forget_lost_sources(self) -> None:
        """A changed manifest is a new chance for every source that failed or has gone since."""
        for source, record in list(self.sources.items()):
            if record.is_lost():
                del self.sources[source]

    def sacrifice(self, key: EngineKey, reason: str) -> None:
        """Kill an engine's processes now, whatever they do, and let its host clear up. It counts as a crash. One without any is let be."""
        record = self.engines[key]
        pids = record.engine.pids[1:]
        if not pids:
            return
        record.doom = reason
        self._events.emit(log.ENGINE_WAS_SACRIFICED, level="error", key=str(key), reason=reason)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def adopt(self, engine: Engine, prediction: Prediction, ready_at: float) -> None:
        """
        Take up an engine that an earlier daemon started; it is ready once it answers.

        Args:
            prediction: what it is expected to hold.
            ready_at: since when it serves, by the wall clock. A failure is no failure of this daemon's generations.
        """
        key = engine.endpoint.key
        record = self.engines[key] = EngineRecord(key, engine, self._world.now(), 0, prediction, reason=ADOPTED)
        self._events.emit(log.ENGINE_WAS_FOUND, key=str(key), pids=list(engine.pids))
        record.life = self._tasks.create_task(self._live(record, ready_at), name=f"engine {key}")

    async def stop_all(self) -> None:
        """End every engine and fetch at once, for shutdown."""
        await self._let_go(lambda engine: engine.stop())

    async def leave_all(self) -> int:
        """As `stop_all()`, but engines that may outlive this daemon run on; returns how many."""
        left: list[bool] = []

        async def leave(engine: Engine) -> None:
            left.append(await engine.leave())

        await self._let_go(leave)
        return sum(left)

    async def _let_go(self, end: Callable[[Engine], Awaitable[None]]) -> None:
        for source in self.sources.values():
            self._cancel(source.bringing)
        async with asyncio.TaskGroup() as group:
            for record in self.engines.values():
                group.create_task(_end(record, end))

    def _become(self, key: EngineKey, state: EngineState, reason: str = "") -> None:
        record, now = self.engines[key], self._world.now()
        was, after_s = record.state, round(now - record.since, 3)
        record.become(state, now, reason)
        self._events.emit(log.ENGINE_CHANGED_STATE, key=str(key), state=state.value, was=was.value, after_s=after_s, reason=reason)
        self._wake()

    def _start(self, action: do.Start) -> None:
        key = action.key
        engine = self._world.build_engine(key, self.sources[action.source].folder)
        if key in self.engines:
            self._become(key, EngineState.STARTING, "again")
            self.engines[key].engine, self.engines[key].prediction = engine, action.prediction
        else:
            self.engines[key] = EngineRecord(key, engine, self._world.now(), action.generation, action.prediction)
            self._events.emit(log.ENGINE_WAS_STARTED, key=str(key), memory_bytes=action.prediction.peak_bytes)
        self.engines[key].life = self._tasks.create_task(self._live(self.engines[key]), name=f"engine {key}")

    async def _live(self, record: EngineRecord, ready_at: float | None = None) -> None:
        try:
            await record.engine.start()
        except EngineError as exc:
            self._fail(record, exc.problem, exc.tail, was_ready_for_s=0.0)
            return
        except Exception as exc:  # a bug; it costs this engine, not the daemon
            self._events.emit(log.ENGINE_FAILED_UNEXPECTEDLY, level="exception", key=str(record.key))
            self._fail(record, f"failed unexpectedly: {exc!r}", record.engine.tail, was_ready_for_s=0.0)
            return
        record.load_s, record.is_measured = None if ready_at else self._world.now() - record.since, False
        self._become(record.key, EngineState.READY, ADOPTED if ready_at else "")
        if ready_at:
            record.backdate(ready_at)
        began = self._world.now()
        how = await record.engine.wait()
        if record.state is EngineState.DRAINING:
            self._become(record.key, EngineState.STOPPED, record.doom or how)
        else:
            self._fail(record, how, record.engine.tail, was_ready_for_s=self._world.now() - began)

    def _fail(self, record: EngineRecord, problem: str, tail: tuple[str, ...], was_ready_for_s: float) -> None:
        record.tail = tail
        record.failures = failures_after_exit(record.failures, was_ready_for_s)
        record.retry_at = self._world.now() + retry_delay_s(record.failures, self._world.jitter())
        self._become(record.key, EngineState.BACKOFF, record.doom or problem)
        record.doom, record.used_bytes = "", 0

    async def _stop(self, record: EngineRecord) -> None:
        await _end(record, lambda engine: engine.stop())
        self._become(record.key, EngineState.STOPPED, record.reason)

    def _forget(self, key: EngineKey) -> None:
        if self.engines[key].state is not EngineState.STOPPED:
            self._become(key, EngineState.STOPPED, self.engines[key].reason)
        del self.engines[key]
        self._wake()

    def _drop(self, source: SourceKey) -> None:
        self._cancel(self.sources.pop(source).bringing)

    @staticmethod
    def _cancel(task: asyncio.Task[None] | None) -> None:
        if task is not None:
            task.cancel()

    def _fetch(self, source: SourceKey) -> None:
        failures = self.sources[source].view.failures if source in self.sources else 0
        record = self.sources[source] = SourceRecord(SourceView(SourceState.FETCHING, failures=failures))
        record.bringing = self._tasks.create_task(self._bring(source, record), name=f"fetch {source}")

    async def _bring(self, source: SourceKey, record: SourceRecord) -> None:
        failures = record.view.failures + 1

        def progressed(text: str) -> None:
            record.view = SourceView(SourceState.FETCHING, text, failures=failures - 1)
            self._events.emit(log.SOURCE_FETCH_PROGRESSED, source=str(source), progress=text)
            self._wake()

        try:
            fetched = await self._world.fetch(source, progressed)
        except SourceError as exc:
            self._lose(source, record, exc.problem, failures)
        except Exception as exc:  # a bug; it costs this source, not the daemon
            self._lose(source, record, f"failed unexpectedly: {exc!r}", failures, level="exception")
        else:
            record.folder = fetched.folder
            record.view = SourceView(SourceState.READY, fetched.note, fetched.weight_bytes, checkpoint=fetched.checkpoint)
        self._wake()

    def _lose(self, source: SourceKey, record: SourceRecord, problem: str, failures: int, level: str = "error") -> None:
        retry_at = self._world.now() + retry_delay_s(failures, self._world.jitter())
        record.view = SourceView(SourceState.FAILED, problem, retry_at=retry_at, failures=failures)
        self._events.emit(log.SOURCE_FETCH_FAILED, level=level, source=str(source), problem=problem)


async def _end(record: EngineRecord, end: Callable[[Engine], Awaitable[None]]) -> None:
    if record.life is not None:
        record.life.cancel()
        await asyncio.wait([record.life])
    await end(record.engine)
