"""What an operator can ask of a running daemon: the admin endpoint speaks to this."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import psutil

from axiond import __version__, log
from axiond.boot import Boot
from axiond.cpumap import cpus_report
from axiond.engine.forkclient import ForkServer
from axiond.errors import DomainsError, ManifestError, RequestError
from axiond.events import Events
from axiond.explain import explain
from axiond.gateway.listing import pool_state
from axiond.gateway.route import scene
from axiond.manifest.files import replace_file
from axiond.manifest.load import Loaded, load, parse
from axiond.manifest.spec import Manifest
from axiond.monitor import Monitor, Sample
from axiond.placement import Placement
from axiond.reconcile.execute import EngineRecord
from axiond.reconcile.loop import Reconciler
from axiond.reconcile.memory import held_bytes
from axiond.reconcile.preview import preview
from axiond.reconcile.state import LEAVING, EngineState, Observed
from axiond.report import (
    CpusReport,
    EngineReport,
    Event,
    ForkServerReport,
    MemoryReport,
    ModelReport,
    PlanReport,
    ReloadReport,
    SourceReport,
    Status,
    TrafficPlan,
)
from axiond.resources.cores import differences
from axiond.resources.fit import expectations
from axiond.resources.machine import format_cpu_list
from axiond.routereport import RouteExplanation, RouteQuestion
from axiond.routing.answers import Answers
from axiond.routing.count import TokenCounter
from axiond.routing.replay import Replay, candidate_table
from axiond.routing.rules import Rules
from axiond.routing.table import Pool
from axiond.semantic.classify import Classifier
from axiond.semantic.index import SemanticIndex
from axiond.semantic.prepare import DEADLINE_S, Prepared, Semantics
from axiond.semantic.reading import classify

SLOW_S = 2.0
EXPLAIN_WITHIN_S = 10.0
REPLAY_WITHIN_S = 2.0
PLAN_WITHIN_S = 20.0  # whoever asked waits for 30


class Control:
    """
    Reads the manifest file on request and tells about the reconciler.

    Every trigger (file event, SIGHUP, `axiond reload`, PUT) ends in `reload()`: one path, one order.
    """

    def __init__(
        self,
        path: Path,
        reconciler: Reconciler,
        events: Events,
        monitor: Monitor,
        placement: Placement,
        semantics: Semantics,
        counter: TokenCounter | None = None,
        replay: Replay | None = None,
    ) -> None:
        self.path, self._reconciler, self._events, self._monitor, self._placement = path, reconciler, events, monitor, placement
        self._semantics, self._counter, self._replay = semantics, counter, replay
        self.files: tuple[Path, ...] = (path,)
        self._has_started, self._writing = asyncio.Event(), asyncio.Lock()
        self._reads = self._newest_read = 0
        self._look, self._again = asyncio.Event(), False

    def look(self) -> None:
        """The file may have changed."""
        self._look.set()

    def look_again(self) -> None:
        """As `look()`, and what failed is tried once more."""
        self._again = True
        self._look.set()

    async def start(self, boot: Boot) -> None:
        """
        Want what there is: the last good manifest, to fall back on, and then the file. Everything else waits for this.

        What is missing does not keep a daemon from serving: domains whose embedding model is, are told by keywords alone,
        unless the last good manifest can do better.
        """
        fallback, has_fallback = Prepared(), boot.stored is not None
        if stored := boot.stored:
            fallback = await self._semantics.prepare_anyhow(stored.manifest)
            rules = await asyncio.to_thread(Rules.of, stored.manifest, fallback.index)
            self._reconciler.resume(stored.generation, stored.etag, stored.manifest, rules, lack=fallback.lack)
            self._events.emit(log.LAST_GOOD_WAS_LOADED, generation=stored.generation)
        newest = fallback
        if loaded := boot.loaded:
            self.files = loaded.files
            if not self._reconciler.is_known(loaded.etag):
                found = await self._semantics.prepare_anyhow(loaded.manifest)
                if (error := found.error) and has_fallback and not fallback.error:
                    self._reconciler.refuse(_placed(loaded, error))
                else:
                    rules = await asyncio.to_thread(Rules.of, loaded.manifest, found.index)
                    self._reconciler.submit(loaded.etag, loaded.manifest, rules, lack=found.lack)
                newest = found
        elif boot.error:
            self._reconciler.refuse(boot.error)
        if newest.error and newest.error.is_unfinished:
            self.look_again()
        self._has_started.set()

    async def run(self) -> None:
        """Follow `look()` for ever. A look that waits for an embedding model holds up no later one."""
        again, reading = False, None
        async with asyncio.TaskGroup() as readings:
            while True:
                await self._look.wait()
                self._look.clear()
                again = self._again or (again and reading is not None and not reading.done())
                self._again = False
                reading = readings.create_task(self.reload(again=again))
                await asyncio.wait((reading,), timeout=SLOW_S)

    async def reload(self, wait: bool = False, timeout_s: float | None = None, *, again: bool = True) -> ReloadReport:
        """
        Read the manifest and make it the wanted one.

        Args:
            wait: return only when it is realised, rolled back or overtaken; otherwise as soon as it is read.
            timeout_s: longest wait.
            again: an unchanged manifest that failed is tried once more.
        """
        number = await self._read(again)
        if wait:
            return await self._reconciler.settled(number, timeout_s)
        return self._reconciler.outcome(number)

    async def _read(self, again: bool) -> int:
        """A look that began later knows better, also when it is ready earlier."""
        await self._has_started.wait()
        self._reads += 1
        number = self._reads
        try:
            loaded = await asyncio.to_thread(load, self.path)
            is_known = not again and self._reconciler.is_known(loaded.etag)
            rules = None if is_known else await asyncio.to_thread(Rules.of, loaded.manifest, await self._prepare(loaded))
        except ManifestError as exc:
            if self._is_newest(number):
                self.files = exc.files or self.files
                self._reconciler.refuse(exc)
        else:
            if self._is_newest(number):
                self.files = loaded.files
                if not is_known:
                    self._reconciler.submit(loaded.etag, loaded.manifest, rules, again=again)
        return self._reconciler.newest_number

    def _is_newest(self, number: int) -> bool:
        self._newest_read = max(number, self._newest_read)
        return number == self._newest_read

    async def _prepare(self, loaded: Loaded, within_s: float = DEADLINE_S) -> SemanticIndex | None:
        """What tells the manifest's domains. Raises ManifestError."""
        try:
            return await self._semantics.prepare(loaded.manifest, within_s)
        except DomainsError as exc:
            raise _placed(loaded, exc) from exc

    async def manifest(self) -> tuple[bytes, str]:
        """The root file's text and its etag."""
        return await asyncio.to_thread(lambda: (self.path.read_bytes(), self._etag()))

    async def put_manifest(self, text: bytes, if_match: str | None, wait: bool = False, timeout_s: float | None = None) -> ReloadReport:
        """
        Replace the manifest file and follow it.

        Raises:
            ManifestError: *text* is no manifest; the file is untouched.
            RequestError: 412, the file is no longer the one that *if_match* names.
        """
        candidate = await asyncio.to_thread(self._candidate, text, if_match)
        index = await self._prepare(candidate)
        async with self._writing:
            await asyncio.to_thread(self._replace, text, if_match)
        number = await self._read(again=False)
        del index  # was held until here, so that it need not be made twice
        return await self._reconciler.settled(number, timeout_s) if wait else self._reconciler.outcome(number)

    def _candidate(self, text: bytes, if_match: str | None) -> Loaded:
        self._check_match(if_match)
        return parse(text, self.path)

    def _replace(self, text: bytes, if_match: str | None) -> None:
        self._check_match(if_match)
        replace_file(self.path.resolve(), text)

    def _check_match(self, if_match: str | None) -> None:
        if if_match is not None and if_match != self._etag():
            raise RequestError(412, "precondition_failed", "The manifest has changed since you read it; read it again and redo your edit.")

    def _etag(self) -> str:
        """The etag of the file as it is; of a broken one, the hash of its text."""
        try:
            return load(self.path).etag
        except ManifestError:
            return hashlib.sha256(self.path.read_bytes()).hexdigest()

    async def plan(self, text: bytes, is_json: bool) -> PlanReport:
        """What *text* would do. Raises ManifestError."""
        loaded = await asyncio.to_thread(parse, text, self.path.with_suffix(".json" if is_json else ".toml"))
        index = await self._prepare(loaded, PLAN_WITHIN_S)
        reconciler, memory = self._reconciler, self._reconciler.memory
        served = reconciler.serving.manifest if reconciler.serving else Manifest()
        expected = await asyncio.to_thread(expectations, loaded.manifest, memory.measured)
        observed = reconciler.observe()
        # What the daemon has fetched is known to it alone.
        expected = {digest: observed.predictions.get(digest, prediction) for digest, prediction in expected.items()}
        budget_bytes = memory.budget_bytes(loaded.manifest.server.memory_budget, held_bytes(observed, ()))
        observed = replace(observed, budget_bytes=budget_bytes)
        report = preview(reconciler.newest_number + 1, served, loaded.manifest, observed, expected)
        return report.model_copy(update={"traffic": await self._traffic(loaded.manifest, index)})

    async def _traffic(self, manifest: Manifest, index: SemanticIndex | None) -> TrafficPlan | None:
        """Where the latest requests would go under *manifest*; None before any is served."""
        router, replay = self._reconciler.router, self._replay
        rules = await asyncio.to_thread(Rules.of, manifest, index)
        table = router.table
        if replay is None or table.generation == 0:
            return None
        waits_s = {model: router.outlook_s(model) for model in table.pools}
        moves = replay.moves(table, candidate_table(table, manifest, rules), waits_s)
        until_s = time.monotonic() + REPLAY_WITHIN_S
        by_text = partial(classify, index) if index else None
        return await asyncio.to_thread(moves.report, lambda: time.monotonic() >= until_s, by_text)

    async def explain(self, asked: RouteQuestion) -> RouteExplanation:
        """How a request would be routed now. Raises RequestError."""
        router, generation = self._reconciler.router, self._reconciler.serving
        classifier = Classifier(EXPLAIN_WITHIN_S)  # one of its own: what is explained is neither counted nor remembered
        try:
            rules = router.table.rules or Rules()
            explanation = await explain(asked, rules, scene(router.table, router), Answers(classifier, self._counter))
        finally:
            classifier.close()
        return explanation.model_copy(update={"lack": generation.lack}) if generation else explanation

    def subscribe(self) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        return self._events.follow()

    async def cpus(self) -> CpusReport:
        """Which engine runs on which core, now."""
        status = await self.status()
        return cpus_report(self._placement.topology, self._placement.reserved, status.engines)

    async def status(self) -> Status:
        """Everything there is to know, now."""
        await self._monitor.sample()
        return self.last_status()

    def last_status(self) -> Status:
        """As `status()`, with processes as they were last looked at."""
        reconciler = self._reconciler
        records = sorted(reconciler.executor.engines.values(), key=lambda record: record.key)
        observed = reconciler.observe()
        desired, serving = reconciler.desired, reconciler.serving
        return Status(
            version=__version__,
            manifest=str(self.path),
            etag=reconciler.newest_etag,
            generation=reconciler.newest_number,
            observed_generation=desired.number if desired else 0,
            serving_generation=serving.number if serving else 0,
            is_settled=reconciler.is_settled,
            conditions=reconciler.conditions,
            models=self._models(),
            engines=tuple(self._engine(record, observed) for record in records),
            sources=tuple(
                SourceReport(source=str(source), state=record.view.state, reason=record.view.reason, weight_bytes=record.view.weight_bytes)
                for source, record in sorted(reconciler.executor.sources.items())
            ),
            rejection=reconciler.rejection,
            memory=self._memory(observed),
            daemon_memory_bytes=psutil.Process().memory_info().rss,
            fork_server=self._fork_server(self._monitor.forks) if self._monitor.forks else None,
        )

    def _fork_server(self, forks: ForkServer) -> ForkServerReport:
        memory = self._monitor.fork_server_bytes if forks.pid else 0
        return ForkServerReport(state=forks.state, pid=forks.pid or 0, memory_bytes=memory, forked=forks.forked, problem=forks.problem)

    def _memory(self, observed: Observed) -> MemoryReport:
        used = sum(sample.memory.bytes for sample in self._monitor.samples.values())
        free = self._reconciler.memory.room.free_bytes
        return MemoryReport(budget_bytes=observed.budget_bytes, promised_bytes=held_bytes(observed, ()), used_bytes=used, free_bytes=free)

    def _models(self) -> tuple[ModelReport, ...]:
        return tuple(self._model(name, pool) for name, pool in self._reconciler.router.table.pools.items())

    def _model(self, name: str, pool: Pool) -> ModelReport:
        router, history = self._reconciler.router, self._reconciler.history
        state, since, reason = self._residence(name, pool)
        return ModelReport(
            name=name,
            names=pool.spec.names(name),
            load=pool.spec.load,
            replicas=pool.spec.replicas,
            state=state,
            since=None if since is None else datetime.fromtimestamp(since, UTC),
            reason=reason,
            queued=router.queued(name),
            wait_s=router.outlook_s(name),
            in_flight=sum(router.in_flight(endpoint.key) for endpoint in pool.endpoints),
            loads=history.loads[name],
            unloads={cause: count for (model, cause), count in sorted(history.unloads.items()) if model == name},
        )

    def _residence(self, name: str, pool: Pool) -> tuple[str, float | None, str]:
        """A model's state, since when, and why."""
        records = [record for key, record in self._reconciler.executor.engines.items() if key.model == name]
        state, last = pool_state(pool), self._reconciler.history.last.get(name)
        if state == "unloaded" and any(record.state in LEAVING for record in records):
            state = "unloading"
        if last and not pool.reason and state in ("unloaded", "unloading"):
            return state, last.at_s, last.reason
        mine = EngineState.READY if state == "ready" else EngineState.STARTING
        return state, min((record.since_wall for record in records if record.state is mine), default=None), pool.reason

    def _engine(self, record: EngineRecord, observed: Observed) -> EngineReport:
        key, sample = record.key, self._monitor.samples.get(record.key, Sample())
        published, plan = self._reconciler.published, self._placement.plan_of(key)
        prediction = observed.predictions.get(key.digest, record.prediction)
        return EngineReport(
            key=str(key),
            model=key.model,
            digest=key.digest,
            replica=key.replica,
            state=record.state,
            since=datetime.fromtimestamp(record.since_wall, UTC),
            reason=record.reason,
            is_routed=published is not None and key in published.endpoints.get(key.model, ()),
            pids=sample.pids,
            cores=format_cpu_list(sample.held.cores),
            compute_cores=format_cpu_list(sample.held.computing),
            memory_nodes=sample.nodes,
            core_notes=(*plan.notes, *differences(plan, sample.held.cores, sample.held.bound)),
            memory_estimate_bytes=prediction.steady_bytes,
            memory_arithmetic=prediction.arithmetic(),
            memory_ceiling_bytes=observed.engines[key].ceiling_bytes,
            memory_bytes=sample.memory.bytes,
            in_flight=self._reconciler.router.in_flight(key),
            failures=record.failures,
            kernels=sample.kernels,
            tail=record.tail or record.engine.tail,
        )


def _placed(loaded: Loaded, error: DomainsError) -> ManifestError:
    return loaded.refusal(error.at, error.problem, error.remedy)
