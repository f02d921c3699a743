"""Which model answers a name, and which of its engines."""

import math
from collections.abc import Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rapidfuzz import process

from axiond.engine.engine import Endpoint
from axiond.errors import RequestError
from axiond.manifest.routes import AUTO
from axiond.manifest.spec import ModelSpec, Weighted
from axiond.reconcile.state import EngineKey
from axiond.routing.table import Pool, RouteTable

LONGEST_NAME = 128
VLLM_MAX_NUM_SEQS = 128  # what its server takes on a CPU unless told otherwise


def candidates(table: RouteTable, requested: str, draw: float) -> tuple[str, ...]:
    """
    Name the models that may answer *requested*, best first.

    Args:
        table: the routing in force.
        requested: a model's name, alias or adapter, or a declared route; "" if nothing was named.
        draw: in [0, 1); chooses among a route's weighted models.

    Raises:
        RequestError: 404 with the nearest names, 400 without a name, or 503 before any generation is served.
    """
    if (model := table.names.get(requested)) in table.pools:
        return (model,) if model is not None else ()
    route = table.routes.get(requested)
    known = known_models(table, (draw_model(route.models, draw), *route.fallback)) if route and route.models and not route.when else ()
    if known:
        return known
    if table.generation == 0:
        raise RequestError(503, "not_ready", "No manifest is served yet; try again shortly.", retry_after_s=5)
    if not requested:
        message = "Several models are served: say which `model`, or ask for `auto`; GET /v1/models lists them."
        raise RequestError(400, "missing_model", message, param="model")
    raise RequestError(404, "model_not_found", _unknown(table, requested), param="model")


def has_auto(table: RouteTable) -> bool:
    """Whether requests for `auto` have all models scored: there are models, and none of them and no route is called so."""
    return bool(table.pools) and AUTO not in table.names and AUTO not in table.routes


def only_name(table: RouteTable) -> str:
    """A name of the only model there is; "" if there are others."""
    return next(iter(table.names), "") if len(table.pools) == 1 else ""


def known_models(table: RouteTable, names: Iterable[str]) -> tuple[str, ...]:
    """The models behind *names*, each once; names without a model are left out."""
    models = dict.fromkeys(name if name in table.pools else table.names.get(name, "") for name in names)
    return tuple(model for model in models if model in table.pools)


def can_answer(pool: Pool) -> bool:
    """Whether its model has an engine, or will have one."""
    return bool(pool.endpoints) or pool.is_coming or (pool.is_lazy and not pool.reason)


def draw_model(shares: Sequence[Weighted], draw: float) -> str:
    """Shares without weights are equal."""
    weights = [1.0 if share.weight is None else share.weight for share in shares]
    point = draw * sum(weights)
    for share, weight in zip(shares, weights, strict=True):
        point -= weight
        if point < 0:
            return share.model
    return next(share.model for share, weight in reversed([*zip(shares, weights, strict=True)]) if weight)


@dataclass(slots=True)
class Load:
    """What one engine has: the number of its requests, and since when those run that the limit counts."""

    in_flight: int = 0
    running_s: dict[Hashable, float] = field(default_factory=dict)


_IDLE = Load()


def pick(pool: Pool, loads: Mapping[EngineKey, Load], exclude: Container[EngineKey] = (), most: float = math.inf) -> Endpoint | None:
    """The engine with the fewest requests among those that run less than *most*; the first of equals."""
    best, fewest = None, math.inf
    for endpoint in pool.endpoints:
        load = loads.get(endpoint.key) or _IDLE
        if load.in_flight < fewest and len(load.running_s) < most and endpoint.key not in exclude:
            best, fewest = endpoint, load.in_flight
    return best


def slots(spec: ModelSpec) -> int:
    """Requests that one engine has at a time: `max_in_flight`, or else as many as it takes into one step."""
    batch_tokens = spec.chunked_prefill.max_num_batched_tokens or VLLM_MAX_NUM_SEQS
    return spec.max_in_flight or spec.max_num_seqs or min(VLLM_MAX_NUM_SEQS, batch_tokens)


def engine_name(pool: Pool, endpoint: Endpoint, requested: str) -> str:
    """What *endpoint* calls *requested*: adapters keep their name, everything else is the engine's model."""
    is_adapter = requested in endpoint.adapters or requested in pool.spec.lora
    return requested if is_adapter else endpoint.model_name


def _unknown(table: RouteTable, requested: str) -> str:
    shown = requested[:LONGEST_NAME]
    routed = table.rules.names if table.rules else (name for name, route in table.routes.items() if not route.when)
    names = process.extract(shown, (*table.names, *routed), limit=3, score_cutoff=60)
    near = ", ".join(f"`{name}`" for name, _, _ in names)
    return f"The model `{shown}` does not exist." + (f" Did you mean {near}?" if near else " GET /v1/models lists what there is.")
