"""The routing in force, as one immutable value that is replaced in one assignment."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from axiond.engine.engine import Endpoint
from axiond.manifest.spec import ModelSpec, Route

if TYPE_CHECKING:
    from axiond.routing.rules import Rules


@dataclass(frozen=True, slots=True)
class Pool:
    """
    The engines of one model.

    *is_coming*: with no endpoint, one is on its way and requests wait for it; otherwise they are told *reason* and to
    retry after *retry_after_s*. *is_lazy*: nothing is on its way until the model is demanded; with no *reason* against it,
    that is worth waiting for. *ready_in_s*: with no endpoint, how long until there is one, as far as loads were measured.
    """

    model: str
    spec: ModelSpec
    endpoints: tuple[Endpoint, ...] = ()
    is_coming: bool = False
    is_lazy: bool = False
    reason: str = ""
    retry_after_s: int = 5
    ready_in_s: float | None = None


@dataclass(frozen=True, slots=True)
class RouteTable:
    """Generation, pools by model name, public names to model names, declared routes by their name, and the same compiled to *rules*."""

    generation: int = 0
    pools: Mapping[str, Pool] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    routes: Mapping[str, Route] = field(default_factory=dict)
    created: int = 0
    max_queue: int = 256
    queue_timeout_s: float = 120.0
    api_keys: frozenset[str] = frozenset()
    rules: "Rules | None" = None
    replay_requests: int = 0
    keep_prompts: bool = False

    @property
    def serves_any(self) -> bool:
        """Whether a request for some model would be answered, or start its engine."""
        return any(pool.endpoints for pool in self.pools.values()) or all(pool.is_lazy for pool in self.pools.values())
