"""Turn what is published into the table that requests are routed by. Pure."""

import math
from collections.abc import Callable, Mapping
from typing import TypedDict

from axiond.engine.engine import Endpoint
from axiond.reconcile.generation import Generation
from axiond.reconcile.memory import load_seconds
from axiond.reconcile.plan import without_room
from axiond.reconcile.residency import Residency, residency
from axiond.reconcile.state import EngineKey, EngineState, EngineView, ModelTarget, Observed, Published, SourceState
from axiond.routing.table import Pool, RouteTable

RETRY_WHEN_FAILED_S = 60


def route_table(
    generation: Generation, published: Published, observed: Observed, endpoint: Callable[[EngineKey], Endpoint], now: float, created: int
) -> RouteTable:
    """The table for *generation*, with the endpoints of *published* and, for models without one, whether to wait or why not."""
    homeless = without_room(generation.target, observed, now)
    lazy = residency(generation.target, observed, now)
    manifest, server = generation.manifest, generation.manifest.server
    return RouteTable(
        generation=generation.number,
        pools={
            name: Pool(
                model=name,
                spec=manifest.models[name],
                endpoints=tuple(endpoint(key) for key in published.endpoints.get(name, ())),
                is_lazy=model.is_lazy,
                **_outlook(model, observed, homeless, lazy, now),
            )
            for name, model in generation.target.models.items()
        },
        names=manifest.public_names(),
        routes={route.name: route for route in manifest.routes},
        created=created,
        max_queue=server.max_queue,
        queue_timeout_s=server.queue_timeout_s,
        api_keys=frozenset(key.get_secret_value() for keys in (server.api_keys, *server.key_groups.values()) for key in keys),
        rules=generation.rules,
        replay_requests=server.replay_requests,
        keep_prompts=server.keep_prompts,
    )


class Outlook(TypedDict, total=False):
    is_coming: bool
    reason: str
    retry_after_s: int
    ready_in_s: float | None


def _outlook(model: ModelTarget, observed: Observed, homeless: Mapping[EngineKey, str], lazy: Residency, now: float) -> Outlook:
    views = [view for key, view in observed.engines.items() if key.model == model.name and key.digest == model.digest]
    if any(view.state is EngineState.READY for view in views):
        return {"is_coming": True}
    troubled = [view for view in views if view.is_troubled and not (model.is_lazy and _is_tried_again(view, now))]
    if troubled:
        return {
            "is_coming": False,
            "reason": troubled[0].reason or "restarting after a failure",
            "retry_after_s": _retry_after_s(troubled, now),
        }
    source = observed.sources.get(model.source)
    if source and source.state is SourceState.FAILED:
        return {"is_coming": False, "reason": source.reason, "retry_after_s": max(1, round(source.retry_at - now))}
    if lack := next((reason for key, reason in homeless.items() if key.model == model.name), ""):
        return {"is_coming": False, "reason": lack, "retry_after_s": RETRY_WHEN_FAILED_S}
    if reason := lazy.refused.get(model.name):
        return {"is_coming": False, "reason": reason, "retry_after_s": RETRY_WHEN_FAILED_S}
    load_s = load_seconds(model, observed)
    if model.is_lazy and model.name not in lazy.held and not observed.is_asked_for(model.name):
        return {"is_coming": False, "ready_in_s": load_s}
    if waiting := lazy.waiting.get(model.name):
        ready_in_s = None if load_s is None or waiting.until_s == math.inf else waiting.until_s - now + load_s
        return {"is_coming": True, "reason": f"waits for memory: {waiting.reason}", "ready_in_s": ready_in_s}
    starting = [view.since for view in views if view.state is EngineState.STARTING]
    if starting and load_s is not None:
        load_s = max(0.0, min(starting) + load_s - now)
    return {"is_coming": True, "reason": _progress(views, source.reason if source else ""), "ready_in_s": load_s}


def _is_tried_again(view: EngineView, now: float) -> bool:
    return view.state is EngineState.STARTING or (view.state is EngineState.BACKOFF and now >= view.retry_at)


def _progress(views: list[EngineView], fetching: str) -> str:
    if views:
        return f"engine is {views[0].state}"
    return f"fetching the model: {fetching}" if fetching else "engine has not started yet"


def _retry_after_s(troubled: list[EngineView], now: float) -> int:
    waits = [view.retry_at - now for view in troubled if view.state is EngineState.BACKOFF]
    return max(1, round(min(waits))) if waits else RETRY_WHEN_FAILED_S
