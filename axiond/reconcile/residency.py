"""
Which lazy models are held in memory. Pure.

Who is up stays, until its room is needed or it has been idle for long. Who is asked for gets room in turn: first those that
have lost patience, then by priority, then by who came first. Patience lasts as long as the model's load takes. Room is made
by unloading the models whose loss costs least. A model that has just been loaded or that may not be unloaded stays. One that
has requests stays too, until the one that waits for its room has lost patience: it is then closed to new requests, and
unloaded when the running ones have ended. So requests that arrive while a model is up are served together, at most half of
the time goes into loads however many models contend, and nobody waits for ever.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from axiond.reconcile.memory import load_seconds, needed_bytes
from axiond.reconcile.state import Demand, EngineState, EngineView, ModelTarget, Observed, SourceState, Target
from axiond.resources.sums import lack_of_memory

UNKNOWN_LOAD_S = 30.0

UP = frozenset({EngineState.STARTING, EngineState.READY})


@dataclass(frozen=True, slots=True)
class Leaving:
    cause: Literal["idle", "room"]
    reason: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """*until_s* is the loop time at which there is room, unless requests that run then take longer; inf where that is not known."""

    reason: str
    until_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Residency:
    """
    What to do about lazy models, each by its name.

    *held* is how many engines to have, *leaving* why one that is up is not held, *waiting* what keeps one that is asked for
    from its room, *refused* why one cannot be loaded at all as things are. *is_short*: more have to leave for eager models,
    and cannot yet. *due_s* is the loop time at which time alone changes any of this.
    """

    held: Mapping[str, int] = field(default_factory=dict)
    leaving: Mapping[str, Leaving] = field(default_factory=dict)
    waiting: Mapping[str, Waiting] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    is_short: bool = False
    due_s: float = math.inf


def residency(desired: Target, observed: Observed, now: float) -> Residency:
    """Choose the lazy models of *desired* to hold, given what is asked of them and what all others take."""
    choice = _Choice(desired, observed, now)
    choice.let_idle_go()
    choice.leave_room_for_eager()
    for lazy in choice.turns():
        choice.admit(lazy)
    choice.take_back()
    return choice.result()


@dataclass(frozen=True, slots=True)
class _Lazy:
    model: ModelTarget
    views: tuple[EngineView, ...]
    demand: Demand
    load_s: float
    has_source: bool

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def is_up(self) -> bool:
        return any(view.state in UP for view in self.views)

    @property
    def is_draining(self) -> bool:
        return not self.is_up and any(view.state is EngineState.DRAINING for view in self.views)

    @property
    def is_loading(self) -> bool:
        return any(view.state is EngineState.STARTING for view in self.views)

    @property
    def is_busy(self) -> bool:
        return self.is_asked_for or any(view.in_flight for view in self.views)

    @property
    def is_asked_for(self) -> bool:
        return self.demand.oldest_s is not None

    @property
    def came_s(self) -> float:
        return math.inf if self.demand.oldest_s is None else self.demand.oldest_s

    @property
    def patience_ends_s(self) -> float:
        return self.came_s + self.load_s

    @property
    def min_resident_s(self) -> float:
        return self.load_s / 2 if self.model.min_resident_s is None else self.model.min_resident_s

    @property
    def ready_s(self) -> float:
        return max((view.since for view in self.views if view.state is EngineState.READY), default=-math.inf)

    @property
    def idle_since_s(self) -> float:
        return max(self.demand.last_used_s, self.ready_s)

    def retry_s(self, now: float) -> float | None:
        """When a model whose engines have failed may be tried again; None: it has not failed."""
        failed = [view for view in self.views if view.state is EngineState.FAILED]
        backing = [view.retry_at for view in self.views if view.state is EngineState.BACKOFF and view.retry_at > now]
        return math.inf if failed else max(backing, default=None)


class _Choice:
    def __init__(self, desired: Target, observed: Observed, now: float) -> None:
        self._observed, self._now = observed, now
        self._needs: dict[tuple[str, int], tuple[int, int]] = {}
        self._eager = tuple(model for model in desired.models.values() if not model.is_lazy)
        self._lazy = {model.name: self._lazy_model(model) for model in desired.models.values() if model.is_lazy}
        self._fixed = [(model, model.replicas) for model in self._eager]
        self._fixed += [(lazy.model, lazy.model.replicas) for lazy in self._lazy.values() if lazy.is_up and lazy.model.is_pinned]
        self._held = {lazy.name: self._count(lazy) for lazy in self._lazy.values() if lazy.is_up}
        self._fetching: set[str] = set()
        self._head: tuple[_Lazy, list[_Lazy]] | None = None
        self._leaving: dict[str, Leaving] = {}
        self._is_short = False
        self._waiting: dict[str, Waiting] = {}
        self._due: list[float] = []

    def let_idle_go(self) -> None:
        for lazy in self._up():
            limit_s = lazy.model.idle_unload_s
            if limit_s is None or lazy.is_loading:
                continue
            if lazy.is_busy:
                self._due.append(self._now + limit_s)
            elif self._now >= lazy.idle_since_s + limit_s:
                self._release(lazy, "idle", f"idle for {limit_s:g} s")
            else:
                self._due.append(lazy.idle_since_s + limit_s)

    def leave_room_for_eager(self) -> None:
        for victim in self._victims(None) or ():
            free_s = self._free_s(victim, -math.inf)
            if free_s <= self._now:
                self._release(victim, "room", "memory has become short")
            else:
                self._is_short = True
                self._due.append(free_s)

    def turns(self) -> list[_Lazy]:
        """Models that are asked for and not up, in the order in which they get room."""
        return sorted(
            (lazy for lazy in self._lazy.values() if lazy.is_asked_for and not lazy.is_up),
            key=lambda lazy: (not self._is_overdue(lazy), 0 if self._is_overdue(lazy) else -lazy.model.priority, lazy.came_s, lazy.name),
        )

    def admit(self, lazy: _Lazy) -> None:
        retry_s = lazy.retry_s(self._now)
        if retry_s is not None or self._refusal(lazy):
            self._due.append(math.inf if retry_s is None else retry_s)
        elif not lazy.has_source:
            self._fetching.add(lazy.name)
        elif (victims := self._victims(lazy)) is None or (victims and self._head) or not self._fits_beside_head(lazy):
            self._wait(lazy, "other models come first: " + ", ".join(self._first_ones()))
        elif any(self._free_s(victim, lazy.patience_ends_s) > self._now for victim in victims):
            until_s = max(self._free_s(victim, lazy.patience_ends_s) for victim in victims)
            self._wait(lazy, "; ".join(self._obstacle(victim) for victim in victims), until_s)
            if self._is_overdue(lazy):
                self._head = lazy, victims
        else:
            for victim in victims:
                self._release(victim, "room", f"makes room for {lazy.name}")
            self._held[lazy.name] = self._count(lazy)

    def take_back(self) -> None:
        """What was leaving for a model that is no longer asked for may as well stay."""
        for lazy in self._lazy.values():
            limit_s = lazy.model.idle_unload_s
            is_idle = not lazy.is_busy and limit_s is not None and self._now >= lazy.idle_since_s + limit_s
            if lazy.is_draining and lazy.name not in self._held and not is_idle and self._fits([lazy]):
                self._held[lazy.name] = self._count(lazy)

    def result(self) -> Residency:
        return Residency(
            held=self._held | dict.fromkeys(self._fetching, 1),
            leaving=self._leaving,
            waiting=self._waiting,
            refused={lazy.name: why for lazy in self._lazy.values() if not lazy.is_up and (why := self._refusal(lazy))},
            is_short=self._is_short,
            due_s=min((due for due in self._due if due > self._now), default=math.inf),
        )

    def _lazy_model(self, model: ModelTarget) -> _Lazy:
        observed = self._observed
        views = tuple(view for view in observed.engines.values() if view.key.model == model.name)
        source = observed.sources.get(model.source)
        return _Lazy(
            model,
            views,
            observed.demand.get(model.name, Demand()),
            load_seconds(model, observed) or UNKNOWN_LOAD_S,
            source is not None and source.state is SourceState.READY,
        )

    def _up(self) -> list[_Lazy]:
        return [self._lazy[name] for name in self._held if self._lazy[name].is_up]

    def _count(self, lazy: _Lazy) -> int:
        """As many engines as fit beside what never leaves; at least one."""
        fixed = [(model, count) for model, count in self._fixed if model is not lazy.model]
        counts = range(lazy.model.replicas, 1, -1)
        return next((count for count in counts if self._lacking_bytes([*fixed, (lazy.model, count)]) <= 0), 1)

    def _victims(self, claim: _Lazy | None) -> list[_Lazy] | None:
        """The models that cost least to lose so that *claim*, or all eager ones, have room; None: that is not enough."""
        patience_ends_s = claim.patience_ends_s if claim else -math.inf
        order = sorted((lazy for lazy in self._up() if not lazy.model.is_pinned), key=lambda lazy: self._loss(lazy, patience_ends_s))
        more = [claim] if claim else []
        chosen: list[_Lazy] = []
        for lazy in order:
            if self._fits(more, without=chosen):
                break
            chosen.append(lazy)
        if claim and not self._fits(more, without=chosen):
            return None
        for lazy in reversed(chosen):
            rest = [other for other in chosen if other is not lazy]
            chosen = rest if self._fits(more, without=rest) else chosen
        return chosen

    def _loss(self, lazy: _Lazy, patience_ends_s: float) -> tuple[bool, bool, int, float, str]:
        """What it costs to unload *lazy*: seconds to load it again, for each second since it was last needed."""
        seldom_s = max(1.0, self._now - lazy.idle_since_s)
        return self._free_s(lazy, patience_ends_s) > self._now, lazy.is_busy, lazy.model.priority, lazy.load_s / seldom_s, lazy.name

    def _free_s(self, lazy: _Lazy, patience_ends_s: float) -> float:
        """When *lazy* may be unloaded for one that loses patience at *patience_ends_s*, if nothing happens until then."""
        if lazy.is_loading:
            return math.inf
        if not lazy.is_busy:
            return lazy.ready_s + lazy.min_resident_s
        return max(lazy.ready_s + max(lazy.min_resident_s, lazy.load_s), patience_ends_s)

    def _first_ones(self) -> list[str]:
        """Models that have been given room, and have no engine yet."""
        head = {self._head[0].name} if self._head else set()
        return sorted((head | self._held.keys()) - {lazy.name for lazy in self._up()})

    def _fits_beside_head(self, lazy: _Lazy) -> bool:
        """Whether one that has lost patience gets its room none the later."""
        return self._head is None or self._fits([lazy, self._head[0]], without=self._head[1])

    def _fits(self, more: Iterable[_Lazy], without: Iterable[_Lazy] = ()) -> bool:
        gone = {lazy.name for lazy in without}
        held = [(self._lazy[name].model, count) for name, count in self._held.items() if name not in gone]
        eager = [(model, model.replicas) for model in self._eager]
        return self._lacking_bytes([*eager, *held, *((lazy.model, self._count(lazy)) for lazy in more)]) <= 0

    def _lacking_bytes(self, wanted: Iterable[tuple[ModelTarget, int]]) -> int:
        needs = [self._need(model, count) for model, count in wanted]
        return sum(held for held, _ in needs) + max((extra for _, extra in needs), default=0) - self._observed.budget_bytes

    def _need(self, model: ModelTarget, count: int) -> tuple[int, int]:
        found = self._needs.get((model.name, count)) or needed_bytes(model, count, self._observed)
        return self._needs.setdefault((model.name, count), found)

    def _refusal(self, lazy: _Lazy) -> str:
        fixed = [(model, count) for model, count in self._fixed if model is not lazy.model]
        lacking_bytes = self._lacking_bytes([*fixed, (lazy.model, 1)])
        if lacking_bytes <= 0:
            return ""
        beside = ", ".join(model.name + (" (pinned)" if model.is_lazy else "") for model, _ in fixed)
        return lack_of_memory(lacking_bytes, self._observed.budget_bytes) + (f", beside {beside}" if beside else "")

    def _obstacle(self, lazy: _Lazy) -> str:
        if lazy.is_loading:
            return f"{lazy.name} is being loaded"
        return f"{lazy.name} has requests" if lazy.is_busy else f"{lazy.name} was just loaded"

    def _is_overdue(self, lazy: _Lazy) -> bool:
        return self._now >= lazy.patience_ends_s

    def _wait(self, lazy: _Lazy, why: str, until_s: float = math.inf) -> None:
        self._waiting[lazy.name] = Waiting(why, until_s)
        self._due += [until_s, lazy.patience_ends_s]

    def _release(self, lazy: _Lazy, cause: Literal["idle", "room"], reason: str) -> None:
        del self._held[lazy.name]
        self._leaving[lazy.name] = Leaving(cause, reason)
