"""What an engine is, which state it is in, and what one round of the loop sees."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True, order=True)
class EngineKey:
    """One engine: a model, the digest of all that reaches its process, and which of its replicas."""

    model: str
    digest: str
    replica: int = 0

    def __str__(self) -> str:
        return f"{self.model}@{self.digest}" + (f"#{self.replica}" if self.replica else "")


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


@dataclass(frozen=True, slots=True)
class EngineView:
    """
    One engine as a round sees it.

    *since* and *retry_at* are loop times in seconds; *generation* is the one that last started it;
    *failures* counts starts and crashes since it last stayed up.
    """

    key: EngineKey
    state: EngineState
    since: float
    generation: int
    reason: str = ""
    retry_at: float = 0.0
    failures: int = 0
    in_flight: int = 0
    memory_bytes: int = 0


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

    def engines(self) -> tuple[EngineKey, ...]:
        return tuple(EngineKey(self.name, self.digest, replica) for replica in range(self.replicas))


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
class Observed:
    """Everything a round knows. *serving* is the last good target: the one that routing follows."""

    engines: Mapping[EngineKey, EngineView] = field(default_factory=dict)
    sources: Mapping[SourceKey, SourceView] = field(default_factory=dict)
    serving: Target | None = None
    published: Published | None = None
    demanded: frozenset[str] = frozenset()
    budget_bytes: int = 2**63
