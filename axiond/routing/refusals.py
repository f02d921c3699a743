"""What a request is told that gets no engine."""

import math
from collections.abc import Collection, Sequence

from axiond.errors import QueueError, RequestError
from axiond.reconcile.state import EngineKey
from axiond.routing.table import Pool
from axiond.routing.ticket import Place


def unavailable(pool: Pool, failed: Collection[EngineKey]) -> RequestError:
    reason = pool.reason or (f"{', '.join(map(str, failed))} failed" if failed else "no engine is running")
    code = "engine_failed" if failed else "model_unavailable"
    return RequestError(503, code, f"Model `{pool.model}` cannot answer now: {reason}", retry_after_s=pool.retry_after_s)


def none_left(refused: Sequence[RequestError]) -> RequestError:
    """The first model's refusal, with what the others said."""
    first, *others = refused
    if others:
        first.message += " Fallbacks could not answer either: " + " ".join(other.message for other in others)
    return first


def full(pool: Pool, place: Place, waiting: int) -> QueueError:
    return _refuse(pool, place, 429, "queue_full", "full", f"{waiting} requests already wait for model `{pool.model}`; try again later.")


def displaced(pool: Pool, place: Place) -> QueueError:
    message = f"The queue of model `{pool.model}` is full, mostly with requests of yours, so this one made room for another client's."
    return _refuse(pool, place, 429, "queue_full", "displaced", message)


def hopeless(pool: Pool, place: Place, patience_s: float) -> QueueError:
    message = (
        f"The turn of this request for model `{pool.model}` would come in about {place.estimate_s:.0f} s, "
        f"at position {place.position} of the queue; its X-Request-Timeout leaves {patience_s:.3g} s."
    )
    return _refuse(pool, place, 504, "deadline_unreachable", "hopeless", message)


def slow(pool: Pool, place: Place, most_s: float) -> QueueError:
    message = (
        f"The turn of this request for model `{pool.model}` would come in about {place.estimate_s:.0f} s, "
        f"at position {place.position} of the queue; its route lets it wait {most_s:g} s."
    )
    return _refuse(pool, place, 429, "wait_too_long", "slow", message)


def timed_out(pool: Pool, place: Place, patience_s: float | None, waited_s: float) -> QueueError:
    """The deadline of the client if it was the shorter one, else the server's `queue_timeout_s`."""
    where = f"the request stood at position {place.position} of its queue"
    if patience_s == waited_s:
        message = f"The request's X-Request-Timeout has passed while it waited for model `{pool.model}`: {where}."
        return _refuse(pool, place, 504, "deadline_exceeded", "deadline", message)
    if pool.endpoints:
        message = f"Model `{pool.model}` had no room within {waited_s:g} s: {where}."
    else:
        message = f"Model `{pool.model}` was not ready within {waited_s:g} s" + (f": {pool.reason}" if pool.reason else ".")
    return _refuse(pool, place, 503, "queue_timeout", "timeout", message)


def _refuse(pool: Pool, place: Place, status: int, code: str, reason: str, message: str) -> QueueError:
    retry_after_s = pool.retry_after_s if place.estimate_s is None else max(1, math.ceil(place.estimate_s))
    return QueueError(
        status, code, message, reason=reason, position=place.position, estimate_s=place.estimate_s, retry_after_s=retry_after_s
    )
