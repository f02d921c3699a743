"""The routing in force, and who is using what: the only mutable thing between requests and engines."""

import asyncio
from collections.abc import Callable, Collection, Mapping
from types import TracebackType

from axiond.engine.engine import Endpoint
from axiond.errors import RequestError
from axiond.reconcile.state import Demand, EngineKey
from axiond.routing.choose import candidates, pick
from axiond.routing.table import Pool, RouteTable


class Lease:
    """One request's use of one engine, counted from construction until the `with` block ends."""

    __slots__ = ("_router", "endpoint", "pool")

    def __init__(self, router: "Router", pool: Pool, endpoint: Endpoint) -> None:
        self._router, self.pool, self.endpoint = router, pool, endpoint

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._router._release(self.endpoint.key)


class Router:
    """
    Hands engines to requests.

    A request leases its engine, not the generation: draining is per engine, and an engine that two generations share
    has nothing to wait for. A request that waits follows later tables, so the ones held during a swap go to whichever
    engine is routed next.

    Args:
        on_change: called when an engine's last request ends or a lazy model without engine is asked for.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self.table = RouteTable()
        self._on_change = on_change
        self._in_flight: dict[EngineKey, int] = {}
        self._waiting: dict[str, list[float]] = {}
        self._woken_s: dict[str, float] = {}
        self._used_s: dict[str, float] = {}
        self._published = asyncio.Event()

    def demand(self) -> Mapping[str, Demand]:
        """What is asked of each model that was ever asked for."""
        return {model: self._demand_for(model) for model in self.table.pools if model in self._used_s}

    def _demand_for(self, model: str) -> Demand:
        came = (*self._waiting.get(model, ()), *([self._woken_s[model]] if model in self._woken_s else []))
        return Demand(self.queued(model), min(came, default=None), self._used_s[model])

    def publish(self, table: RouteTable) -> None:
        """Route by *table* from now on, and let every waiting request look again, oldest first."""
        self.table = table
        self._woken_s = {model: at for model, at in self._woken_s.items() if model in table.pools and not table.pools[model].endpoints}
        published, self._published = self._published, asyncio.Event()
        published.set()

    def in_flight(self, key: EngineKey) -> int:
        return self._in_flight.get(key, 0)

    def queued(self, model: str) -> int:
        return len(self._waiting.get(model, ()))

    async def lease(self, requested: str, draw: float, failed: Collection[EngineKey] = ()) -> Lease:
        """
        Lease an engine for *requested*; the caller enters the lease at once, with no await between.

        Args:
            requested: the name in the request.
            draw: in [0, 1); the same for every attempt of one request.
            failed: engines that have already failed this request. It does not wait for others then.

        Raises:
            RequestError: 404 unknown name; 503 nothing can answer, or waited too long; 429 too many wait already.
        """
        found = self._try_lease(requested, draw, failed)
        return found if isinstance(found, Lease) else await self._wait(found, requested, draw)

    def _try_lease(self, requested: str, draw: float, failed: Collection[EngineKey]) -> Lease | Pool:
        """A lease, or the pool worth waiting for."""
        pools = [self.table.pools[model] for model in candidates(self.table, requested, draw)]
        for pool in pools:
            if endpoint := pick(pool, self._in_flight, failed):
                self._in_flight[endpoint.key] = self._in_flight.get(endpoint.key, 0) + 1
                self._used_s[pool.model] = self._now()
                return Lease(self, pool, endpoint)
            if pool.is_lazy and not pool.endpoints:
                self._wake(pool.model)
        coming = next((pool for pool in pools if not pool.endpoints and (pool.is_coming or (pool.is_lazy and not pool.reason))), None)
        if coming is None or failed:
            raise _unavailable(pools[0], failed)
        return coming

    async def _wait(self, pool: Pool, requested: str, draw: float) -> Lease:
        timeout_s = self.table.queue_timeout_s
        if self.queued(pool.model) >= self.table.max_queue:
            message = f"{self.queued(pool.model)} requests already wait for model `{pool.model}`; try again later."
            raise RequestError(429, "queue_full", message, retry_after_s=pool.retry_after_s)
        came = self._now()
        self._used_s[pool.model] = came
        self._waiting.setdefault(pool.model, []).append(came)
        self._woken_s.pop(pool.model, None)
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    await self._published.wait()
                    if isinstance(found := self._try_lease(requested, draw, ()), Lease):
                        return found
        except TimeoutError:
            message = f"Model `{pool.model}` was not ready within {timeout_s:g} s" + (f": {pool.reason}" if pool.reason else ".")
            raise RequestError(503, "queue_timeout", message, retry_after_s=pool.retry_after_s) from None
        finally:
            self._waiting[pool.model].remove(came)

    def _wake(self, model: str) -> None:
        self._used_s[model] = self._now()
        if model not in self._woken_s and not self._waiting.get(model):
            self._woken_s[model] = self._now()
            self._on_change()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _release(self, key: EngineKey) -> None:
        self._in_flight[key] -= 1
        self._used_s[key.model] = self._now()
        if not self._in_flight[key]:
            del self._in_flight[key]
            self._on_change()


def _unavailable(pool: Pool, failed: Collection[EngineKey]) -> RequestError:
    reason = pool.reason or (f"{', '.join(map(str, failed))} failed" if failed else "no engine is running")
    code = "engine_failed" if failed else "model_unavailable"
    return RequestError(503, code, f"Model `{pool.model}` cannot answer now: {reason}", retry_after_s=pool.retry_after_s)
