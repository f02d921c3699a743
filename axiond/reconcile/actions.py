"""The closed set of things a plan can ask for. Those on engines go to the executor, those on generations to the loop."""

from dataclasses import dataclass
from typing import Literal

from axiond.reconcile.state import EngineKey, Published, SourceKey
from axiond.resources.estimate import Prediction

Cause = Literal["change", "idle", "room", "recycle"]


@dataclass(frozen=True, slots=True)
class Fetch:
    """Bring a source onto this machine."""

    source: SourceKey


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget a source that nothing wants any more, and stop bringing it."""

    source: SourceKey


@dataclass(frozen=True, slots=True)
class Start:
    """Spawn an engine and prove it: ready probe, then golden prompt. The rest is what its record has to remember."""

    key: EngineKey
    source: SourceKey
    generation: int
    prediction: Prediction


@dataclass(frozen=True, slots=True)
class Publish:
    """Make this the routing in force, in one assignment."""

    routing: Published


@dataclass(frozen=True, slots=True)
class Drain:
    """Wait for the requests of an engine that is no longer routed."""

    key: EngineKey
    cause: Cause
    reason: str


@dataclass(frozen=True, slots=True)
class Resume:
    """Take an engine back out of draining: it is wanted again."""

    key: EngineKey


@dataclass(frozen=True, slots=True)
class Stop:
    """End an engine's process: SIGTERM, then SIGKILL."""

    key: EngineKey
    reason: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Stop retrying an engine of the serving generation until the manifest changes."""

    key: EngineKey


@dataclass(frozen=True, slots=True)
class Forget:
    """Drop the record of an engine that is gone."""

    key: EngineKey


@dataclass(frozen=True, slots=True)
class Reject:
    """The candidate generation cannot be realised; the last good one is desired again."""

    generation: int
    model: str
    reason: str


EngineAction = Fetch | Drop | Start | Drain | Resume | Stop | GiveUp | Forget
Action = EngineAction | Publish | Reject
