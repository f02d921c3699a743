"""What an engine is, which state it is in, and what one round of the loop sees."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from axiond.resources.checkpoint import Checkpoint
from axiond.resources.estimate import Prediction


@dataclass(frozen=True, slots=True, order=True)
class EngineKey:
    """One engine: a model, the digest of all that reaches its process, which of its replicas, and how often that was recycled."""

    model: str
    digest: str
    replica: int = 0
    turn: int = 0

    def __str__(self) -> str:
        replica, turn = f"#{self.replica}" if self.replica else "", f"~{self.turn}" if self.turn else ""
        return f"{self.model}@{self.digest}{replica}{turn}"


class EngineState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    FAILED = "failed"
    STOPPED = "stopped"


TRANSITIONS: Mapping[EngineState, frozenset[EngineState]] = {
    EngineState.STARTING: frozenset({EngineState.READY, EngineState.BACKOFF, EngineState.FAILED, EngineState.STOPPING}),
    EngineState.READY: frozenset({EngineState.DRAINING, EngineState.BACKOFF, EngineState.FAILED}),
    EngineState.DRAINING: frozenset({EngineState.READY, EngineState.STOPPING, EngineState.STOPPED}),
    EngineState.STOPPING: frozenset({EngineState.STOPPED}),
    EngineState.BACKOFF: frozenset({EngineState.STARTING, EngineState.FAILED, EngineState.STOPPED}),
    EngineState.FAILED: frozenset({EngineState.STOPPED}),
    EngineState.STOPPED: frozenset(),
}


HOLDS_MEMORY = frozenset({EngineState.STARTING, EngineState.READY, EngineState.DRAINING, EngineState.STOPPING})
LEAVING = frozenset({EngineState.DRAINING, EngineState.STOPPING})
FAILING = frozenset({EngineState.BACKOFF, EngineState.FAILED})


@dataclass(frozen=True, slots=True)
class EngineView:
    """
    One engine as a round sees it.

    *since* and *retry_at* are loop times in seconds; *generation* is the one that last started it;
    *failures* counts starts and crashes since it last stayed up. *prediction* is what it was started with; *used_bytes* is its
    memory as last measured, 0 if never; beyond *ceiling_bytes* it is to be replaced.
    """

    key: EngineKey
    state: EngineState
    since: float
    generation: int
    reason: str = ""
    retry_at: float = 0.0
    failures: int = 0
    in_flight: int = 0
    prediction: Prediction = field(default_factory=Prediction)
    used_bytes: int = 0
    ceiling_bytes: int = 2**63

    @property
    def is_troubled(self) -> bool:
        """Whether it has failed and is not back yet."""
        return self.state in FAILING or (self.state is EngineState.STARTING and self.failures > 0)


class SourceState(StrEnum):
    FETCHING = "fetching"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, order=True)
class SourceKey:
    """Where a model's weights come from, as the manifest says it."""

    source: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.source}@{self.revision}" if self.revision else self.source


@dataclass(frozen=True, slots=True)
class SourceView:
    """One model source: on its way, here with its weight in bytes, or not to be had until *retry_at*."""

    state: SourceState
    reason: str = ""
    weight_bytes: int = 0
    retry_at: float = 0.0
    failures: int = 0
    checkpoint: Checkpoint | None = None


@dataclass(frozen=True, slots=True)
class ModelTarget:
    """What one generation wants of one model. *fixed_bytes* is the memory estimate less the weights."""

    name: str
    digest: str
    source: SourceKey
    replicas: int = 1
    is_lazy: bool = False
    priority: int = 0
    fixed_bytes: int = 0
    drain_grace_s: float = 30.0
    idle_unload_s: float | None = None
    min_resident_s: float | None = None
    is_pinned: bool = False

    @property
    def is_unloadable(self) -> bool:
        """Whether it may have to make room for others."""
        return self.is_lazy and not self.is_pinned


@dataclass(frozen=True, slots=True)
class Target:
    """One accepted manifest, reduced to what planning needs."""

    generation: int
    models: Mapping[str, ModelTarget] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Published:
    """The routing that is in force: a generation, and per model the engines that take its requests."""

    generation: int
    endpoints: Mapping[str, tuple[EngineKey, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Demand:
    """
    What requests want of one model.

    *queued* wait now. *oldest_s* is the loop time at which the longest waiting one came, or at which one came that another
    model answered instead; None: nobody asks. *last_used_s* is when a request last came or ended.
    """

    queued: int = 0
    oldest_s: float | None = None
    last_used_s: float = -math.inf


@dataclass(frozen=True, slots=True)
class Observed:
    """
    Everything a round knows.

    *serving* is the last good target: the one that routing follows. *predictions* are by digest, of the models of the desired
    and of the serving target, as far as their checkpoints are known.
    """

    engines: Mapping[EngineKey, EngineView] = field(default_factory=dict)
    sources: Mapping[SourceKey, SourceView] = field(default_factory=dict)
    serving: Target | None = None
    published: Published | None = None
    demand: Mapping[str, Demand] = field(default_factory=dict)
    budget_bytes: int = 2**63
    predictions: Mapping[str, Prediction] = field(default_factory=dict)

    def is_asked_for(self, model: str) -> bool:
        return model in self.demand and self.demand[model].oldest_s is not None
