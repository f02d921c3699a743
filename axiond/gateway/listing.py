"""What `/v1/models` and `/readyz` say about a routing table."""

from typing import Any

from axiond.errors import RequestError
from axiond.routing.table import Pool, RouteTable

Entry = dict[str, Any]


def list_models(table: RouteTable) -> dict[str, Any]:
    """Every name a request may use, in OpenAI's shape, with its state under `axiond`."""
    return {"object": "list", "data": [_entry(table, name) for name in (*table.names, *table.routes)]}


def show_model(table: RouteTable, name: str) -> Entry:
    """One name. Raises RequestError 404."""
    if name not in table.names and name not in table.routes:
        raise RequestError(404, "model_not_found", f"The model `{name[:128]}` does not exist.", param="model")
    return _entry(table, name)


def not_ready_because(table: RouteTable) -> str:
    """Why requests would be refused now, in words that anybody may read; empty if they would not."""
    if table.generation == 0:
        return "no manifest is served yet"
    if table.serves_any:
        return ""
    return "; ".join(f"model {pool.model}: {pool_state(pool)}" for pool in list(table.pools.values())[:10])


def pool_state(pool: Pool) -> str:
    if pool.endpoints:
        return "ready"
    if pool.is_coming:
        return "starting"
    return "unloaded" if pool.is_lazy else "unavailable"


def _entry(table: RouteTable, name: str) -> Entry:
    entry = {"id": name, "object": "model", "created": table.created, "owned_by": "axiond"}
    model = table.names.get(name)
    return {**entry, "axiond": _route(table, name) if model is None else _model(table.pools[model], name)}


def _model(pool: Pool, name: str) -> Entry:
    kind = "adapter" if name in pool.spec.lora else "alias" if name in pool.spec.aliases else "model"
    parent = None if kind == "model" else pool.model
    return {"kind": kind, "parent": parent, "root": pool.spec.source, "state": pool_state(pool), "reason": pool.reason}


def _route(table: RouteTable, name: str) -> Entry:
    route = table.routes[name]
    models = [share.model for share in route.models]
    states = [pool_state(table.pools[model]) for model in (*models, *route.fallback) if model in table.pools]
    best = next((state for state in ("ready", "starting", "unloaded") if state in states), "unavailable")
    return {"kind": "route", "models": models, "fallback": list(route.fallback), "state": best}
