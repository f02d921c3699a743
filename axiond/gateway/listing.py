"""What `/v1/models` and `/readyz` say about a routing table."""

from collections.abc import Iterable
from typing import Any

from axiond.errors import RequestError
from axiond.manifest.routes import AUTO, Route
from axiond.routing.choose import has_auto
from axiond.routing.table import Pool, RouteTable

Entry = dict[str, Any]


def list_models(table: RouteTable) -> dict[str, Any]:
    """Every name a request may use, in OpenAI's shape, with its state under `axiond`."""
    routed = _routed(table)
    names = (*table.names, *routed, *((AUTO,) if has_auto(table) else ()))
    return {"object": "list", "data": [_entry(table, name, routed.get(name)) for name in names]}


def show_model(table: RouteTable, name: str) -> Entry:
    """One name. Raises RequestError 404."""
    route = _routed(table).get(name)
    if name not in table.names and route is None and not (name == AUTO and has_auto(table)):
        raise RequestError(404, "model_not_found", f"The model `{name[:128]}` does not exist.", param="model")
    return _entry(table, name, route)


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


def _entry(table: RouteTable, name: str, route: Route | None) -> Entry:
    entry = {"id": name, "object": "model", "created": table.created, "owned_by": "axiond"}
    if model := table.names.get(name):
        return {**entry, "axiond": _model(table.pools[model], name)}
    return {**entry, "axiond": _route(table, route) if route else _auto(table)}


def _routed(table: RouteTable) -> dict[str, Route]:
    """Names that are no model's, and the first route that answers to each: its own name, or one that it waits for."""
    found: dict[str, Route] = {}
    for route in table.routes.values():
        for name in route.when.model if route.when else (route.name,):
            if route.models and "*" not in name and name not in table.names:
                found.setdefault(name, route)
    return found


def _model(pool: Pool, name: str) -> Entry:
    kind = "adapter" if name in pool.spec.lora else "alias" if name in pool.spec.aliases else "model"
    parent = None if kind == "model" else pool.model
    return {"kind": kind, "parent": parent, "root": pool.spec.source, "state": pool_state(pool), "reason": pool.reason}


def _route(table: RouteTable, route: Route) -> Entry:
    models, fallback = [share.model for share in route.models], list(route.fallback)
    return {"kind": "route", "models": models, "fallback": fallback, "state": _best_state(table, (*models, *fallback))}


def _auto(table: RouteTable) -> Entry:
    return {"kind": "auto", "models": [*table.pools], "state": _best_state(table, table.pools)}


def _best_state(table: RouteTable, models: Iterable[str]) -> str:
    states = {pool_state(table.pools[model]) for model in models if model in table.pools}
    return next((state for state in ("ready", "starting", "unloaded") if state in states), "unavailable")
