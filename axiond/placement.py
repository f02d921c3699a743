"""Keeps every engine on its cores, and the daemon off them: plans when one starts and after every round, and moves what runs."""

import asyncio
import os
from collections.abc import Iterable

from axiond import log
from axiond.events import Events
from axiond.reconcile.claims import GONE, about_to_start, core_claims, slot_of
from axiond.reconcile.execute import EngineRecord
from axiond.reconcile.loop import Reconciler
from axiond.reconcile.state import EngineKey
from axiond.resources.affinity import confine
from axiond.resources.cores import ANYWHERE, Claim, CorePlan, Slot, plan_cores, reserved_cores
from axiond.resources.machine import Topology, format_cpu_list


class Placement:
    """
    The plan of cores that is in force.

    *topology* is the machine as it was when the daemon started; *reserved* are the CPUs that are left to the daemon.
    """

    def __init__(self, reconciler: Reconciler, topology: Topology, events: Events) -> None:
        self._reconciler, self.topology, self._events = reconciler, topology, events
        self._plans: dict[Slot, CorePlan] = {}
        # Rounds are many, and on a large machine a plan takes a hundredth of a second.
        self._planned: tuple[tuple[Claim, ...], int | None, dict[Slot, CorePlan]] | None = None
        self.reserved: frozenset[int] = frozenset()
        self._confined_to = topology.allowed
        self._changed = asyncio.Event()

    def plan_of(self, key: EngineKey) -> CorePlan:
        """Where an engine is to run; nowhere in particular if it is gone."""
        return self._plans.get(slot_of(key), ANYWHERE)

    def place(self, key: EngineKey) -> CorePlan:
        """Plan for an engine that starts now; the others make room after this round."""
        self._plan((key,))
        return self.plan_of(key)

    def look(self) -> None:
        """Something may have changed: plan again."""
        self._plan(())
        self._changed.set()

    async def run(self) -> None:
        """Follow the plan for ever."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._confine_daemon()
            for record in list(self._reconciler.executor.engines.values()):
                await self._move(record)

    def _plan(self, starting: Iterable[EngineKey]) -> None:
        reconciler = self._reconciler
        observed = reconciler.observe()
        generation = reconciler.desired or reconciler.serving
        reserved = generation.manifest.server.reserved_cores if generation else None
        soon = about_to_start(generation.target, observed, asyncio.get_running_loop().time()) if generation else ()
        claims = core_claims(observed.engines, (*soon, *starting), reconciler.spec_of)
        found = {slot_of(key): record.engine.placed for key, record in reconciler.executor.engines.items() if record.engine.placed.cores}
        before = found | self._plans
        if (claims, reserved, before) == self._planned:
            return
        self._planned = claims, reserved, before
        self._plans = plan_cores(self.topology, claims, reserved, before)
        self.reserved = frozenset(cpu for core in reserved_cores(self.topology, claims, reserved) for cpu in core.cpus)

    async def _confine_daemon(self) -> None:
        wanted = self.reserved or self.topology.allowed
        if wanted != self._confined_to:
            self._confined_to = wanted
            try:
                await asyncio.to_thread(confine, os.getpid(), wanted)
            except OSError as exc:
                self._refused("daemon", wanted, exc)

    async def _move(self, record: EngineRecord) -> None:
        plan, engine = self.plan_of(record.key), record.engine
        if record.state in GONE or not plan.cores or plan == engine.placed:
            return
        try:
            await asyncio.to_thread(engine.rebind, plan)
        except FileNotFoundError:
            return  # it has ended meanwhile
        except OSError as exc:
            self._refused(str(record.key), plan.cores, exc)
        else:
            cores = format_cpu_list(plan.cores)
            self._events.emit(log.ENGINE_WAS_REBOUND, key=str(record.key), cores=cores, threads=len(plan.compute))

    def _refused(self, process: str, cpus: Iterable[int], exc: OSError) -> None:
        self._events.emit(log.CORES_WERE_REFUSED, level="error", process=process, cores=format_cpu_list(cpus), problem=exc.strerror)
