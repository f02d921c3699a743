"""
How often models are loaded when more are asked for than memory holds, and how long requests wait: plan() against plain LRU.

Requests of generated traces meet engines in virtual time. The engines of the first are driven by the daemon's own plan(),
those of the second by a cache that loads what the oldest waiting request needs and unloads what was used longest ago.

    python -m bench.swaps simulate    families of traces, at several paces
    python -m bench.swaps engines     one trace on real engines (bench/models.py made them), with room for one

Prints a table or rows, and last one JSON line.
"""

import argparse
import asyncio
import heapq
import itertools
import json
import math
import random
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import aiohttp
from rich.console import Console
from rich.table import Table

from axiond import log
from axiond.reconcile import actions as do
from axiond.reconcile.plan import next_wake_s, plan
from axiond.reconcile.state import (
    Demand,
    EngineKey,
    EngineState,
    EngineView,
    ModelTarget,
    Observed,
    Published,
    SourceKey,
    SourceState,
    SourceView,
    Target,
)
from axiond.resources.estimate import Prediction
from axiond.resources.measured import Measured
from bench.machine import describe
from tests.fakes.running import REAL, chat, running

LOAD_S = 8.0
PACES = (0.1, 0.3, 1.0, 3.0)  # a request comes after so many times a load's seconds
BENCH_MODELS = Path("var/bench-models").absolute()
REAL_MODELS, BUDGET = ("smollm2", "smollm2-awq", "tiny"), "1400MiB"  # the largest takes 1320 MiB, the smallest two 2000
REAL_GAP_S = 1.5
FIGURES = ("loads", "p50 s", "p99 s")
SLOTS = 8  # requests that an engine serves at a time
STOP_S = 1.0


@dataclass(frozen=True, slots=True)
class Request:
    arrives_s: float
    model: str
    service_s: float


@dataclass(frozen=True, slots=True)
class Setting:
    """*room* models fit at a time; each takes *load_s* to load."""

    load_s: float
    room: int
    min_resident_s: float | None = None


@dataclass(slots=True)
class Result:
    loads: int = 0
    waits_s: list[float] = field(default_factory=list)

    def wait_s(self, share: float) -> float:
        return sorted(self.waits_s)[min(len(self.waits_s) - 1, int(share * len(self.waits_s)))]


class Policy(Protocol):
    """Acts on the engines of a simulation; returns when it wants to be asked again if nothing happens, in virtual seconds."""

    def act(self, sim: "Simulation") -> float | None: ...

    def may_serve(self, request: Request, sim: "Simulation") -> bool: ...


class Simulation:
    """Engines that load, serve `SLOTS` requests at a time, and stop; requests that wait in the order of their arrival."""

    def __init__(self, trace: Iterable[Request], setting: Setting, policy: Policy) -> None:
        self.setting, self._policy, self.now, self.result = setting, policy, 0.0, Result()
        self.models = sorted({request.model for request in trace})
        self.engines: dict[EngineKey, EngineView] = {}
        self.open: set[str] = set()
        self.queues: dict[str, deque[Request]] = {model: deque() for model in self.models}
        self.in_flight = dict.fromkeys(self.models, 0)
        self.used_s = dict.fromkeys(self.models, -math.inf)
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        for request in trace:
            self._at(request.arrives_s, partial(self._arrive, request))

    def run(self) -> Result:
        while self._events:
            self.now = self._events[0][0]
            while self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
            due_s = self._policy.act(self)
            self._serve()
            if due_s is not None and any(self.queues.values()):
                self._at(due_s, lambda: None)
        assert not any(self.queues.values()), "requests were never served"
        return self.result

    def load(self, key: EngineKey) -> None:
        assert sum(view.state is not EngineState.STOPPED for view in self.engines.values()) < self.setting.room
        self.result.loads += 1
        self._become(key, EngineState.STARTING)
        self._at(self.now + self.setting.load_s, lambda: self._become(key, EngineState.READY))

    def drain(self, key: EngineKey) -> None:
        self._become(key, EngineState.DRAINING)

    def resume(self, key: EngineKey) -> None:
        self._become(key, EngineState.READY)

    def stop(self, key: EngineKey) -> None:
        assert not self.in_flight[key.model], "a busy engine was stopped"
        self._become(key, EngineState.STOPPING)
        self._at(self.now + STOP_S, lambda: self._become(key, EngineState.STOPPED))

    def view(self, key: EngineKey) -> EngineView:
        return replace(self.engines[key], in_flight=self.in_flight[key.model])

    def _become(self, key: EngineKey, state: EngineState) -> None:
        self.engines[key] = EngineView(key, state, self.now, 1, prediction=Prediction(fixed_bytes=1))

    def _arrive(self, request: Request) -> None:
        self.queues[request.model].append(request)
        self.used_s[request.model] = self.now

    def _serve(self) -> None:
        """Let in whoever may be let in, in the order of arrival."""
        heads = sorted((queue[0].arrives_s, model) for model, queue in self.queues.items() if queue)
        served = [self._serve_model(model) for _, model in heads]
        if any(served):
            self._serve()

    def _serve_model(self, model: str) -> bool:
        queue, is_any = self.queues[model], False
        while model in self.open and queue and self.in_flight[model] < SLOTS and self._policy.may_serve(queue[0], self):
            request = queue.popleft()
            self.result.waits_s.append(self.now - request.arrives_s)
            self.in_flight[model] += 1
            self._at(self.now + request.service_s, lambda: self._end(model))
            is_any = True
        return is_any

    def _end(self, model: str) -> None:
        self.in_flight[model] -= 1
        self.used_s[model] = self.now

    def _at(self, when_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when_s, next(self._order), what))


class Planned:
    """The daemon's own plan(), round after round until it has nothing to do."""

    def __init__(self, setting: Setting, models: Iterable[str]) -> None:
        source = SourceKey("/m")
        self._target = Target(1, {m: ModelTarget(m, "d", source, is_lazy=True, min_resident_s=setting.min_resident_s) for m in models})
        self._sources = {source: SourceView(SourceState.READY)}
        self._predictions = {"d": Prediction(fixed_bytes=1, measured=Measured(load_s=setting.load_s))}
        self._published: Published | None = None

    def may_serve(self, request: Request, sim: Simulation) -> bool:
        return True

    def act(self, sim: Simulation) -> float | None:
        while actions := plan(self._target, self._observe(sim), sim.now):
            for action in actions:
                self._do(action, sim)
        after_s = next_wake_s(self._observe(sim), self._target, sim.now)
        return None if after_s is None else sim.now + after_s

    def _observe(self, sim: Simulation) -> Observed:
        demand = {
            model: Demand(len(queue), queue[0].arrives_s if queue else None, sim.used_s[model]) for model, queue in sim.queues.items()
        }
        engines = {key: sim.view(key) for key in sim.engines}
        return Observed(engines, self._sources, self._target, self._published, demand, sim.setting.room, self._predictions)

    def _do(self, action: do.Action, sim: Simulation) -> None:
        match action:
            case do.Publish(routing):
                self._published = routing
                sim.open = {model for model, keys in routing.endpoints.items() if keys}
            case do.Start(key):
                sim.load(key)
            case do.Drain(key):
                sim.drain(key)
            case do.Resume(key):
                sim.resume(key)
            case do.Stop(key):
                sim.stop(key)
            case do.Forget(key):
                del sim.engines[key]
            case _:
                raise AssertionError(f"unexpected here: {action}")


class LeastRecentlyUsed:
    """
    In the order of arrival: what the oldest waiting request needs takes the place of what was used longest ago.

    *is_together*: a model that is up serves those behind it too; else none is served before those that came earlier.
    """

    def __init__(self, is_together: bool) -> None:
        self._is_together = is_together

    def may_serve(self, request: Request, sim: Simulation) -> bool:
        return self._is_together or request.arrives_s <= min(queue[0].arrives_s for queue in sim.queues.values() if queue)

    def act(self, sim: Simulation) -> None:
        for key in [key for key, view in sim.engines.items() if view.state is EngineState.STOPPED]:
            del sim.engines[key]
        states = {key.model: view.state for key, view in sim.engines.items()}
        heads = [(queue[0].arrives_s, model) for model, queue in sim.queues.items() if queue and model not in states]
        if heads and not {EngineState.DRAINING, EngineState.STOPPING} & set(states.values()):
            if len(states) < sim.setting.room:
                sim.load(EngineKey(min(heads)[1], "d"))
            elif ready := [key for key in sim.engines if states[key.model] is EngineState.READY and self._is_after(key, sim, min(heads))]:
                sim.drain(min(ready, key=lambda key: sim.used_s[key.model]))
        for key, view in list(sim.engines.items()):
            if view.state is EngineState.DRAINING and not sim.in_flight[key.model]:
                sim.stop(key)
        sim.open = {key.model for key, view in sim.engines.items() if view.state is EngineState.READY}

    @staticmethod
    def _is_after(key: EngineKey, sim: Simulation, head: tuple[float, str]) -> bool:
        """Whether a model has served all that came before *head*."""
        queue = sim.queues[key.model]
        return not queue or (queue[0].arrives_s, key.model) > head


def walk(rng: random.Random, gap_s: float, count: int = 400, models: str = "ABC", stay: float = 0.35) -> Iterator[Request]:
    """A B A A C A B: now and then the same model again, else any other."""
    model, now = models[0], 0.0
    for _ in range(count):
        now += rng.expovariate(1 / gap_s)
        model = model if rng.random() < stay else rng.choice([other for other in models if other != model])
        yield Request(now, model, rng.uniform(0.5, 3))


def round_robin(rng: random.Random, gap_s: float, count: int = 400, models: str = "ABC") -> Iterator[Request]:
    for index in range(count):
        yield Request((index + rng.random()) * gap_s, models[index % len(models)], rng.uniform(0.5, 3))


def bursts(rng: random.Random, gap_s: float, count: int = 400, models: str = "ABC") -> Iterator[Request]:
    """Conversations and jobs of 3 to 12 requests each, which overlap."""
    made, now = 0, 0.0
    while made < count:
        now, model, at = now + rng.expovariate(1 / (7.5 * gap_s)), rng.choice(models), now
        for _ in range(rng.randint(3, 12)):
            at += rng.expovariate(1 / (2 * gap_s))
            made += 1
            yield Request(at, model, rng.uniform(0.5, 3))


def zipf(rng: random.Random, gap_s: float, count: int = 400, models: str = "ABCDEF") -> Iterator[Request]:
    now, weights = 0.0, [1 / rank for rank in range(1, len(models) + 1)]
    for _ in range(count):
        now += rng.expovariate(1 / gap_s)
        yield Request(now, rng.choices(models, weights)[0], rng.uniform(0.5, 3))


def interactive_and_batch(rng: random.Random, gap_s: float, count: int = 400) -> Iterator[Request]:
    """One who asks A now and then, and jobs of 40 long requests to B or C."""
    now = 0.0
    for _ in range(count // 2):
        now += rng.expovariate(1 / (2 * gap_s))
        yield Request(now, "A", rng.uniform(0.5, 3))
    for job in range(count // 80):
        begin = (job + rng.random()) * 80 * gap_s
        yield from (Request(begin + rng.random(), rng.choice("BC"), rng.uniform(5, 15)) for _ in range(40))


FAMILIES: dict[str, Callable[[random.Random, float], Iterator[Request]]] = {
    "A B A A C A B": walk,
    "round robin": round_robin,
    "bursts": bursts,
    "zipf, 6 models": zipf,
    "interactive and batch": interactive_and_batch,
}


def replay(family: str, gap_s: float, setting: Setting, seeds: int) -> dict[str, Result]:
    """All loads and waits of *seeds* traces, by policy."""
    totals = {"plan": Result(), "lru": Result(), "lru, together": Result()}
    for seed in range(seeds):
        trace = sorted(FAMILIES[family](random.Random(seed), gap_s), key=lambda request: request.arrives_s)
        policies: tuple[Policy, ...] = (
            Planned(setting, {request.model for request in trace}),
            LeastRecentlyUsed(False),
            LeastRecentlyUsed(True),
        )
        for total, policy in zip(totals.values(), policies, strict=True):
            result = Simulation(trace, setting, policy).run()
            total.loads += result.loads
            total.waits_s += result.waits_s
    return totals


def simulate(seeds: int) -> list[dict[str, Any]]:
    """A row for each family, room and pace; prints the table."""
    console, rows = Console(width=160), []
    table = Table("trace", "fit", "gap / load", *(f"{policy}: {what}" for policy in ("plan", "lru", "together") for what in FIGURES))
    for family, room, pace in itertools.product(FAMILIES, (1, 2), PACES):
        totals = replay(family, pace * LOAD_S, Setting(LOAD_S, room), seeds)
        figures = {policy: (found.loads, round(found.wait_s(0.5), 1), round(found.wait_s(0.99), 1)) for policy, found in totals.items()}
        rows.append({"trace": family, "fit": room, "gap_per_load": pace} | figures)
        table.add_row(family, str(room), str(pace), *(str(figure) for found in figures.values() for figure in found))
    console.print(table)
    return rows


async def serve(folder: Path, trace: Sequence[Request], sources: Mapping[str, str], *, in_order: bool) -> Result:
    """Send *trace* to a real daemon with room for one of the models; *in_order*: none before those that came earlier have begun."""
    shared = {"load": "lazy", "kv_cache": "64MiB", "max_model_len": 512, **({"min_resident": 0.0} if in_order else {})}
    models = {name: {"source": source, **shared} for name, source in sources.items()}
    server = {"queue_timeout_s": 1800.0, "memory_budget": BUDGET}
    async with running(folder, {"server": server, "models": models}, *REAL, ready_within_s=300) as daemon:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(1800)) as http:
            for name in sources:  # each is loaded once, so that its load is measured and its packed weights are kept
                await chat(http, daemon.base, name, max_tokens=4)
            before = daemon.log.count(log.ENGINE_WAS_STARTED)
            began = time.monotonic()
            turns, result = [asyncio.Event() for _ in (*trace, None)], Result()
            turns[0].set()

            async def ask(index: int, request: Request) -> None:
                await asyncio.sleep(began + request.arrives_s - time.monotonic())
                if in_order:
                    await turns[index].wait()
                body = {"model": request.model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 24, "stream": True}
                async with http.post(f"{daemon.base}/v1/chat/completions", json=body) as response:
                    assert response.status == 200, await response.text()
                    async for line in response.content:  # until then, comments say that it waits
                        if line.startswith(b"data:"):
                            break
                    result.waits_s.append(time.monotonic() - began - request.arrives_s)
                    turns[index + 1].set()
                    await response.read()

            await asyncio.gather(*(ask(index, request) for index, request in enumerate(trace)))
        result.loads = daemon.log.count(log.ENGINE_WAS_STARTED) - before
    return result


async def engines(count: int) -> list[dict[str, Any]]:
    """The same trace twice: as axiond serves it, and one after the other, as a server does that swaps for each request."""
    sources = {name: str(BENCH_MODELS / folder) for name, folder in zip("ABC", REAL_MODELS, strict=True)}
    trace = list(walk(random.Random(7), REAL_GAP_S, count))
    rows = []
    for name, in_order in (("axiond", False), ("in the order of arrival", True)):
        with tempfile.TemporaryDirectory() as folder:
            result = await serve(Path(folder), trace, sources, in_order=in_order)
        rows.append(
            {"served": name, "requests": count, "loads": result.loads} | {f"p{p}_s": round(result.wait_s(p / 100), 1) for p in (50, 99)}
        )
        print(rows[-1], flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("simulate", "engines"))
    parser.add_argument("--seeds", type=int, default=3, help="traces of each family")
    parser.add_argument("--requests", type=int, default=40, help="for real engines")
    options = parser.parse_args()
    rows = simulate(options.seeds) if options.what == "simulate" else asyncio.run(engines(options.requests))
    print(json.dumps({"bench": f"swaps.{options.what}", "rows": rows} | describe()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
