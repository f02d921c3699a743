"""The one loop: look, plan, act, until nothing is left to do; then sleep until something happens."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from axiond import log
from axiond.engine.engine import Endpoint
from axiond.errors import ManifestError
from axiond.events import Events
from axiond.manifest.diff import server_changes
from axiond.manifest.spec import Change, Manifest, ModelSpec, Server
from axiond.reconcile.actions import Publish, Reject
from axiond.reconcile.conditions import Facts, conditions, troubles, unserved, unsettled
from axiond.reconcile.execute import EngineRecord, Executor, World
from axiond.reconcile.generation import Generation
from axiond.reconcile.history import History
from axiond.reconcile.memory import held_bytes
from axiond.reconcile.plan import next_wake_s, plan
from axiond.reconcile.state import EngineKey, EngineState, Observed, Published
from axiond.reconcile.tables import route_table
from axiond.report import Condition, RejectionReport, ReloadReport
from axiond.resources.estimate import Prediction, predict, processes_of
from axiond.resources.memory import Memory
from axiond.routing.router import Router
from axiond.routing.rules import Rules

WHOLE = "100%"


@dataclass(frozen=True, slots=True)
class Listener:
    """
    Who wants to hear what.

    *realised*: a generation whose engines are all ready, the last good manifest. *round_ended*: a sentence that says what
    is going on, whether something is on its way, and whether any model is served. *change_ended*: a manifest's outcome
    and the seconds it took.
    """

    realised: Callable[[Generation], None] = lambda _generation: None
    round_ended: Callable[[str, bool, bool], None] = lambda _text, _is_busy, _is_up: None
    change_ended: Callable[[str, float], None] = lambda _outcome, _took_s: None


class Reconciler:
    """
    Holds what is wanted and what is served, and drives the executor.

    *server* are the settings the daemon was started with; later changes to `daemon` fields are reported, not applied.
    """

    def __init__(
        self,
        world: World,
        events: Events,
        tasks: asyncio.TaskGroup,
        server: Server,
        memory: Memory,
        listener: Listener = Listener(),
    ) -> None:
        self._wake = asyncio.Event()
        self._round_ended = asyncio.Condition()
        self.router = Router(self._note_requests)
        self.executor = Executor(world, events, self._wake.set, tasks)
        self._world, self._events, self._server = world, events, server
        self.memory, self._listener = memory, listener
        self.desired: Generation | None = None
        self.serving: Generation | None = None
        self.published: Published | None = None
        self.rejection: RejectionReport | None = None
        self.refusal = ""
        self.newest_number, self.newest_etag = 0, ""
        self.conditions: tuple[Condition, ...] = ()
        self.history = History()
        self._realised_number = self._ended_number = 0
        self._changed_at = 0.0
        self._started_at = int(time.time())

    def resume(self, number: int, etag: str, manifest: Manifest, rules: Rules | None = None, *, lack: str = "") -> None:
        """Take up a generation from an earlier life of the daemon as the last good one; *rules* and *lack* as of `submit()`."""
        self.serving = self.desired = Generation.of(number, etag, manifest, rules, lack)
        self.newest_number, self.newest_etag, self._changed_at = number, etag, self._world.now()
        self._wake.set()

    def is_known(self, etag: str) -> bool:
        """Whether this is the manifest that was last accepted, and nothing newer was refused."""
        return etag == self.newest_etag and self.desired is not None and not self.refusal

    def submit(self, etag: str, manifest: Manifest, rules: Rules | None = None, *, lack: str = "", again: bool = False) -> int:
        """
        Want a manifest; return its generation.

        Args:
            etag: what tells it from others.
            manifest: what is wanted.
            rules: its own, compiled; thousands take longer than the event loop may be held up.
            lack: what its rules have to do without, in words.
            again: one that is wanted already is a new generation if it failed.
        """
        lacked = self.desired.lack if self.desired else ""
        if self.is_known(etag) and lack == lacked and not (again and (self.rejection or self._has_failures())):
            return self.newest_number
        self._new_number(etag)
        self.refusal, self.rejection = "", None
        self.desired = Generation.of(self.newest_number, etag, manifest, rules, lack)
        self.executor.forget_lost_sources()
        self._events.emit(log.MANIFEST_WAS_ACCEPTED, generation=self.newest_number, models=len(manifest.models))
        return self.newest_number

    def refuse(self, error: ManifestError) -> int:
        """Note that the newest manifest is no manifest; what was wanted stays wanted."""
        if str(error) != self.refusal:
            self._new_number("")
            self.refusal = str(error)
            self._events.emit(log.MANIFEST_WAS_REJECTED, level="error", generation=self.newest_number, problems=self.refusal)
        return self.newest_number

    async def run(self) -> None:
        """Run rounds for ever."""
        while True:
            timeout_s = self._round(self.desired) if self.desired else None
            async with self._round_ended:
                self._round_ended.notify_all()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    async def settled(self, number: int, timeout_s: float | None = None) -> ReloadReport:
        """Wait until generation *number* is realised, rejected or overtaken, and nothing is on its way any more."""
        try:
            async with asyncio.timeout(timeout_s), self._round_ended:
                await self._round_ended.wait_for(lambda: self._ended_number >= number)
        except TimeoutError:
            return ReloadReport(generation=number, is_accepted=not self.refusal, is_realised=False, message="still converging")
        return self.outcome(number)

    @property
    def is_settled(self) -> bool:
        """Nothing is on its way: the newest manifest has been acted on to its end."""
        is_acted_on = self._ended_number == self.newest_number
        return is_acted_on and self.desired is not None and not unsettled(self.desired.target, self.observe(), self._world.now())

    def outcome(self, number: int) -> ReloadReport:
        """How generation *number* ended, or the newer one that overtook it."""
        number = max(number, self.newest_number)
        message = self.refusal or (f"{self.rejection.model}: {self.rejection.reason}" if self.rejection else "")
        if not message and self._ended_number < number:
            message = "accepted, and not in force yet"
        is_realised = not message and self.serving is not None and not unserved(self.observe())
        if not message and not is_realised:
            message = "not every model is served: " + ", ".join(unserved(self.observe()))
        return ReloadReport(generation=number, is_accepted=not self.refusal, is_realised=is_realised, message=message)

    def observe(self) -> Observed:
        records = self.executor.engines.items()
        seen = Observed(
            engines={key: record.view(self.router.in_flight(key), self.ceiling_bytes(record)) for key, record in records},
            sources={source: record.view for source, record in self.executor.sources.items()},
            serving=self.serving.target if self.serving else None,
            published=self.published,
            demand=self.router.demand(),
            predictions=self._predictions(),
        )
        setting = self.desired.manifest.server.memory_budget if self.desired else WHOLE
        return replace(seen, budget_bytes=self.memory.budget_bytes(setting, held_bytes(seen, ())))

    def spec_of(self, key: EngineKey) -> ModelSpec | None:
        """The spec that an engine is built from; None if no manifest wants it any more."""
        generations = (self.desired, self.serving)
        return next((spec for generation in generations if generation and (spec := generation.spec_of(key))), None)

    def folder_of(self, model: str) -> Path | None:
        """Where the files of a served model are; None while they are not on this machine."""
        target = self.serving.target.models.get(model) if self.serving else None
        return self.executor.folder_of(target.source) if target else None

    def look_at_memory(self) -> None:
        """What engines use has been measured again, or what there is."""
        self._wake.set()

    def restart_fields(self) -> tuple[str, ...]:
        """Settings in the wanted manifest that only a restart of the daemon brings into force."""
        if self.desired is None:
            return ()
        changes = server_changes(self._server, self.desired.manifest.server)
        return tuple(change.path for change in changes if change.change == Change.DAEMON)

    def endpoint(self, key: EngineKey) -> Endpoint:
        return self.executor.engines[key].engine.endpoint

    def _predictions(self) -> Mapping[str, Prediction]:
        found: dict[str, Prediction] = {}
        for generation in (one for one in (self.desired, self.serving) if one):
            for name, model in generation.target.models.items():
                source = self.executor.sources.get(model.source)
                if model.digest not in found:
                    checkpoint = source.view.checkpoint if source else None
                    spec, measured = generation.manifest.models[name], self.memory.measured.get(model.digest)
                    found[model.digest] = predict(spec, checkpoint, measured, processes_of(self._server))
        return found

    def ceiling_bytes(self, record: EngineRecord) -> int:
        """What an engine may grow to before it is replaced."""
        spec = self.spec_of(record.key)
        return record.prediction.ceiling_bytes(spec.memory_ceiling if spec else None)

    def _round(self, desired: Generation) -> float | None:
        now = self._world.now()
        actions = plan(desired.target, self.observe(), now)
        for action in actions:
            match action:
                case Publish(routing):
                    self._publish(routing)
                case Reject():
                    self._reject(action)
                case _:
                    self.executor.execute(action)
                    self.history.note(action)
        timeout_s = self._close_round(now)
        return 0.0 if actions else timeout_s

    def _close_round(self, now: float) -> float | None:
        assert self.desired is not None
        observed = self.observe()
        self._refresh_table(observed, now)
        lack = self.serving.lack if self.serving else ""
        facts = Facts(self.desired.target, observed, now, self.newest_number, self.refusal, self.rejection, self.restart_fields(), lack)
        before, self.conditions = self.conditions, conditions(self.conditions, facts, datetime.now(UTC))
        self._tell_changes(before)
        moving = unsettled(self.desired.target, observed, now)
        self._note_end(observed, now, bool(moving))
        self._note_realised(observed, bool(moving))
        self._listener.round_ended("; ".join(moving) or self._summary(observed, now), bool(moving), self.router.table.serves_any)
        return next_wake_s(observed, self.desired.target, now)

    def _publish(self, routing: Published) -> None:
        assert self.desired is not None
        is_flip = self.serving is None or routing.generation != self.serving.number
        if is_flip:
            self.serving = self.desired
            log.set_level(self.desired.manifest.server.log_level)
            self._events.emit(log.GENERATION_WAS_PUBLISHED, generation=routing.generation)
        self.published = routing

    def _reject(self, action: Reject) -> None:
        tail = next((r.tail for r in self.executor.engines.values() if r.key.model == action.model and r.reason == action.reason), ())
        self.rejection = RejectionReport(generation=action.generation, model=action.model, reason=action.reason, tail=tail)
        self.desired = self.serving
        self._events.emit(
            log.GENERATION_WAS_ROLLED_BACK, level="error", generation=action.generation, model=action.model, reason=action.reason
        )

    def _refresh_table(self, observed: Observed, now: float) -> None:
        if self.serving is None or self.published is None:
            return
        table = route_table(self.serving, self.published, observed, self.endpoint, now, self._started_at)
        if table != self.router.table:
            self.router.publish(table)

    def _tell_changes(self, before: tuple[Condition, ...]) -> None:
        known = {condition.type: condition.status for condition in before}
        for condition in self.conditions:
            if known.get(condition.type) != condition.status:
                self._events.emit(
                    log.CONDITION_CHANGED,
                    condition=condition.type.value,
                    status=condition.status,
                    reason=condition.reason,
                    message=condition.message,
                )

    def _note_realised(self, observed: Observed, is_moving: bool) -> None:
        serving = self.serving
        if serving is None or serving.number == self._realised_number or is_moving or unserved(observed):
            return
        if self.desired is serving and not self.rejection:
            self._realised_number = serving.number
            self._listener.realised(serving)

    def _note_end(self, observed: Observed, now: float, is_moving: bool) -> None:
        if is_moving or self._ended_number == self.newest_number:
            return
        self._ended_number = self.newest_number
        if self.refusal:
            outcome = "rejected"
        elif self.rejection:
            outcome = "rolled_back"
        else:
            outcome = "degraded" if unserved(observed) else "realised"
        self._listener.change_ended(outcome, now - self._changed_at)

    def _summary(self, observed: Observed, now: float) -> str:
        ready = sum(view.state is EngineState.READY for view in observed.engines.values())
        number = self.serving.number if self.serving else 0
        return "; ".join((f"generation {number}, engines ready: {ready}", *troubles(observed, now)))

    def _note_requests(self) -> None:
        """An engine's last request ended or a model without engine was asked for. Most such news is no reason for a round."""
        is_draining = any(record.state is EngineState.DRAINING for record in self.executor.engines.values())
        if is_draining or any(demand.oldest_s is not None for demand in self.router.demand().values()):
            self._wake.set()

    def _has_failures(self) -> bool:
        engines, sources = self.executor.engines.values(), self.executor.sources.values()
        return any(e.failures and e.state is not EngineState.READY for e in engines) or any(s.is_lost() for s in sources)

    def _new_number(self, etag: str) -> None:
        now = self._world.now()
        if self._ended_number != self.newest_number:
            self._listener.change_ended("superseded", now - self._changed_at)
        self.newest_number, self.newest_etag, self._changed_at = self.newest_number + 1, etag, now
        self._wake.set()
