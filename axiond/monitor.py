"""Looks at engines' processes and at the memory that is left, remembers what it saw, and ends an engine before the kernel does."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import structlog
from pydantic import ValidationError

from axiond import log
from axiond.engine.engine import Engine
from axiond.engine.forkclient import ForkServer
from axiond.numa import preferred_nodes
from axiond.reconcile.execute import EngineRecord
from axiond.reconcile.loop import Reconciler
from axiond.reconcile.sacrifice import sacrifice
from axiond.reconcile.state import EngineKey, EngineState
from axiond.report import KernelsReport
from axiond.resources.affinity import NOWHERE, Held, held_to
from axiond.resources.budget import Room, read_room
from axiond.resources.usage import NOTHING, Usage, usage

SAMPLE_INTERVAL_S = 10.0
FRESH_S = 1.0
STILL_GROWING = 1.02
# Memory is looked at often enough that engines which grow so fast do not outrun it.
GROWTH_BYTES_PER_S = 2 * 2**30
LOOK_INTERVALS_S = (0.05, 2.0)


@dataclass(frozen=True, slots=True)
class Sample:
    """
    An engine's processes as the operating system shows them, and what they say about their kernels.

    *held* is where they may run, *nodes* where they take memory from.
    """

    pids: tuple[int, ...] = ()
    held: Held = NOWHERE
    nodes: str = ""
    memory: Usage = NOTHING
    kernels: KernelsReport | None = None

    @classmethod
    def of(cls, engine: Engine) -> "Sample":
        pids = engine.pids
        nodes = preferred_nodes(pids[-1]) if pids else ""
        return cls(pids, held_to(pids), nodes, usage(pids), kernels_report(engine.kernels()))


def kernels_report(text: bytes | None) -> KernelsReport | None:
    if text is None:
        return None
    try:
        return KernelsReport.model_validate_json(text)
    except ValidationError:
        return KernelsReport(problem="its report about kernels cannot be read")


class Monitor:
    """*samples* are of every engine, *room* is what memory was left when it was last looked at."""

    def __init__(self, reconciler: Reconciler, forks: ForkServer | None = None) -> None:
        self._reconciler, self._memory, self.forks = reconciler, reconciler.memory, forks
        self.samples: Mapping[EngineKey, Sample] = {}
        self.fork_server_bytes = 0
        self._sampled_at = 0.0

    async def sample(self, fresh_s: float = FRESH_S) -> None:
        """Look at the engines' processes, off the loop: the kernel takes milliseconds for each. Not again while what is known is fresh."""
        records = dict(self._reconciler.executor.engines)
        now = asyncio.get_running_loop().time()
        if records.keys() == self.samples.keys() and now < self._sampled_at + fresh_s and not any(map(_is_unmeasured, records.values())):
            return
        self._sampled_at = now
        room, self.samples = await asyncio.to_thread(lambda: (read_room(), {key: Sample.of(r.engine) for key, r in records.items()}))
        if self.forks and self.forks.pid:
            self.fork_server_bytes = (await asyncio.to_thread(usage, (self.forks.pid,))).bytes
        for key, sample in self.samples.items():
            self._remember(records[key], sample.memory)
        self._memory.room, self._memory.used_bytes = room, sum(sample.memory.own_bytes for sample in self.samples.values())
        self._reconciler.look_at_memory()

    async def run(self) -> None:
        """Look for ever: at what is left often, at the processes seldom unless there is a reason."""
        while True:
            try:
                pause_s = await self._look()
            except OSError as exc:  # without free descriptors nothing can be seen, which is no end of the daemon
                structlog.get_logger().warning(log.MEMORY_WAS_NOT_SEEN, problem=exc.strerror)
                pause_s = LOOK_INTERVALS_S[1]
            await asyncio.sleep(pause_s)

    async def _look(self) -> float:
        """Look once; tell how soon it should be done again."""
        room = await asyncio.to_thread(read_room)
        news = any(map(_is_unmeasured, self._reconciler.executor.engines.values()))
        if room.is_short or news or asyncio.get_running_loop().time() >= self._sampled_at + SAMPLE_INTERVAL_S:
            await self.sample(0.0 if room.is_critical else FRESH_S)
            await self._save()
        if room.is_critical:
            self._relieve()
        return look_again_s(room)

    def _remember(self, record: EngineRecord, memory: Usage) -> None:
        is_settled = memory.bytes <= STILL_GROWING * record.used_bytes  # a KV cache gets its pages after its engine is ready
        record.used_bytes = memory.bytes
        digest, known = record.key.digest, self._memory.measured.get(record.key.digest)
        is_too_large = memory.bytes > self._reconciler.ceiling_bytes(record)
        if record.state is EngineState.BACKOFF or is_too_large:
            self._memory.measured.forget_growth(digest)
        if record.state is not EngineState.READY or not memory.bytes:
            return
        if _is_unmeasured(record):
            assert record.load_s is not None
            if not is_settled:
                return
            record.is_measured = True
            known = known.after_start(memory.bytes, memory.peak_bytes, record.load_s)
            self._memory.measured.put(digest, known)
        if not is_too_large:
            self._memory.measured.put(digest, known.after_sample(memory.bytes))

    async def _save(self) -> None:
        try:
            await asyncio.to_thread(self._memory.measured.save)
        except OSError as exc:
            structlog.get_logger().warning(log.MEASURED_WAS_NOT_STORED, problem=exc.strerror)

    def _relieve(self) -> None:
        desired, records = self._reconciler.desired, self._reconciler.executor.engines.values()
        if desired and not any(record.doom for record in records) and (found := sacrifice(desired.target, self._reconciler.observe())):
            self._reconciler.executor.sacrifice(*found)


def look_again_s(room: Room) -> float:
    shortest_s, longest_s = LOOK_INTERVALS_S
    left_bytes = room.free_bytes - room.reserve_bytes // 2
    return min(longest_s, max(shortest_s, left_bytes / GROWTH_BYTES_PER_S))


def _is_unmeasured(record: EngineRecord) -> bool:
    """Whether an engine has become ready since it was last looked at."""
    return record.state is EngineState.READY and record.load_s is not None and not record.is_measured
