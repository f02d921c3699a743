"""The routing in force, and who is using what: the only mutable thing between requests and engines."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence

from axiond.engine.engine import Endpoint
from axiond.errors import QueueError, RequestError
from axiond.manifest.routes import Failure
from axiond.reconcile.state import Demand, EngineKey
from axiond.routing import refusals
from axiond.routing.choose import Load, candidates, pick, slots
from axiond.routing.estimate import ServiceTimes, wait_s
from axiond.routing.queue import FairQueue
from axiond.routing.table import Pool, RouteTable
from axiond.routing.ticket import Asked, Lease, Place, Ticket

DISTRUST_S = 0.5


class Router:
    """
    Hands engines to requests, and queues those that have to wait.

    A request leases its engine, not the generation: draining is per engine, and an engine that two generations share
    has nothing to wait for. A request that waits follows later tables, so the ones held during a swap go to whichever
    engine is routed next.

    Of several models the first that may answer does. A later one is taken only for a reason that the request allows:
    "error", the one before has no engine; "overload", its queue is full or its turn would come too late. A model that has
    engines and is merely busy is waited for. One whose engine is on its way is passed, but its queue is stood in too,
    unless the request is patient.

    Args:
        on_change: called when an engine's last request ends or a lazy model without engine is asked for.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self.table = RouteTable()
        self._on_change = on_change
        self._published_s = 0.0
        self._loads: dict[EngineKey, Load] = {}
        self._queues: dict[str, FairQueue[Ticket]] = {}
        self._service: dict[str, ServiceTimes] = {}
        self._distrusted: set[EngineKey] = set()
        self._woken_s: dict[str, float] = {}
        self._used_s: dict[str, float] = {}

    def demand(self) -> Mapping[str, Demand]:
        """What is asked of each model."""
        return {model: self._demand_for(model) for model in self.table.pools if model in self._used_s}

    def publish(self, table: RouteTable) -> None:
        """Route by *table* from now on, and let every waiting request look again, in the order of their turns."""
        self.table, self._published_s = table, self._now()
        self._woken_s = {model: at for model, at in self._woken_s.items() if model in table.pools and not table.pools[model].endpoints}
        self._service = {model: times for model, times in self._service.items() if model in table.pools}
        self._used_s = dict.fromkeys(table.pools, self._published_s) | self._used_s  # nobody could ask for a new one before
        old, self._queues = {model: list(queue) for model, queue in self._queues.items()}, {}
        for ticket in (ticket for model, queue in old.items() for ticket in queue if ticket.model == model):
            try:
                found = self._look(ticket.asked, (), ticket)
            except RequestError as error:
                ticket.end(error)
            else:
                if isinstance(found, Lease):
                    ticket.end(found)
                else:
                    self._stand(ticket, found)
        self._restore_order(old)

    def in_flight(self, key: EngineKey) -> int:
        load = self._loads.get(key)
        return load.in_flight if load else 0

    def queued(self, model: str) -> int:
        return len(self._queues.get(model, ()))

    def outlook_s(self, model: str) -> float | None:
        """How long a request that came now would wait behind all others; None when that is not known."""
        return self._estimate_s(model, self.queued(model) + 1)

    def lease(self, asked: Asked, failed: Collection[EngineKey] = ()) -> Lease | Ticket:
        """
        Lease an engine, or a ticket where it has to wait for one; the caller enters either at once, with no await between.

        Args:
            asked: what the request wants.
            failed: engines that have already failed this request. It waits neither for others nor for its turn then.

        Raises:
            RequestError: 404 unknown name; 503 nothing can answer.
            QueueError: 429 too many wait already; 504 its turn would come too late.
        """
        found = self._look(asked, failed)
        return found if isinstance(found, Lease) else self._enqueue(asked, found)

    def lease_spare(self, model: str) -> Lease | None:
        """An engine of *model* for a copy, if it has room which nobody waits for; nothing is woken, waited for or kept loaded."""
        pool = self.table.pools.get(model)
        if pool is None or model in self._queues or (endpoint := self._with_room(pool)) is None:
            return None
        return self._grant(pool, endpoint, Asked(model, 0.0), is_copy=True)

    def distrust(self, key: EngineKey) -> None:
        """An engine failed a request: let no other in for a moment, in which the table will follow if it is dead."""
        self._distrusted.add(key)
        asyncio.get_running_loop().call_later(DISTRUST_S, self._trust, key)

    def place(self, ticket: Ticket) -> Place:
        position = self._queues[ticket.model].position(ticket.asked.client, ticket)
        return Place(position, self._estimate_s(ticket.model, position))

    def late(self, ticket: Ticket) -> RequestError:
        """What to tell a request whose time to wait is over."""
        return refusals.timed_out(self.table.pools[ticket.model], self.place(ticket), ticket.asked.patience_s, ticket.most_s)

    def leave(self, ticket: Ticket) -> None:
        """Give the places of *ticket* to those behind it."""
        for model in ticket.models:
            queue = self._queues[model]
            queue.remove(ticket.asked.client, ticket)
            if not queue:
                del self._queues[model]
        ticket.models = ()

    def release(self, lease: Lease) -> None:
        """Note that a request is out of its engine, and let the next one in."""
        key, now = lease.endpoint.key, self._now()
        if not lease.is_copy:
            self._used_s[key.model] = now
        load = lease.load
        if (since_s := load.running_s.get(lease)) is not None:
            self._note_service(lease, now - since_s)
            del load.running_s[lease]
        load.in_flight -= 1
        if not load.in_flight:
            del self._loads[key]
            self._on_change()
        if key.model in self._queues:
            self._serve(key.model)

    def _look(self, asked: Asked, failed: Collection[EngineKey], ticket: Ticket | None = None) -> Lease | list[Pool]:
        """
        A lease, or the pools whose queues to stand in, at least one. *ticket* stands in queues already.

        A model with engines is waited for, unless it is overloaded. One without any is passed for an error, but its queue
        is stood in as well if an engine is on its way: whichever is ready first answers.
        """
        refused: list[RequestError] = []
        queues: list[Pool] = []
        for pool in self._pools(asked):
            if endpoint := self._free_endpoint(pool, asked, failed):
                return self._grant(pool, endpoint, asked)
            if pool.is_lazy and not (pool.endpoints or queues or (ticket and pool.model in ticket.models)):
                self._wake(pool.model)
            refusal = self._refusal(pool, asked, failed, ticket, may_wake=not queues)
            if refusal is None:
                queues.append(pool)
            else:
                refused.append(refusal)
            reason: Failure = "overload" if isinstance(refusal, QueueError) else "error"
            if reason not in asked.fallback_on or (refusal is None and (pool.endpoints or asked.is_patient)):
                break
            asked.passed[pool.model] = reason
        if not queues:
            raise refusals.none_left(refused)
        return queues

    def _refusal(
        self, pool: Pool, asked: Asked, failed: Collection[EngineKey], ticket: Ticket | None, *, may_wake: bool
    ) -> RequestError | None:
        """Why not to stand in the queue of *pool*."""
        is_woken = may_wake and pool.is_lazy and not pool.reason
        if failed or not (pool.endpoints or pool.is_coming or is_woken):
            return refusals.unavailable(pool, failed)
        return None if ticket else self._overload(pool, asked)

    def _overload(self, pool: Pool, asked: Asked) -> QueueError | None:
        """Why a newcomer gets no place in the queue of *pool*."""
        queue, client = self._queues.get(pool.model) or FairQueue[Ticket](), asked.client
        position = queue.position(client)
        place = Place(position, estimate_s := self._estimate_s(pool.model, position))
        if estimate_s is not None and asked.patience_s is not None and estimate_s > asked.patience_s:
            return refusals.hopeless(pool, place, asked.patience_s)
        if estimate_s is not None and asked.max_wait_s is not None and estimate_s > asked.max_wait_s:
            return refusals.slow(pool, place, asked.max_wait_s)
        if len(queue) >= self.table.max_queue and queue.longest()[1] <= queue.count(client) + 1:
            return refusals.full(pool, place, len(queue))
        return None

    def _pools(self, asked: Asked) -> list[Pool]:
        """Those that may answer, best first; at least one."""
        pools = self.table.pools
        decided = [pools[model] for model in asked.models if model in pools]
        return decided or [pools[model] for model in candidates(self.table, asked.name, asked.draw)]

    def _free_endpoint(self, pool: Pool, asked: Asked, failed: Collection[EngineKey]) -> Endpoint | None:
        """The engine that a newcomer may have now: any if it need not take turns, else one with room that nobody waits for."""
        if failed or asked.is_light:
            return pick(pool, self._loads, failed)
        return None if pool.model in self._queues else self._with_room(pool)

    def _with_room(self, pool: Pool) -> Endpoint | None:
        return pick(pool, self._loads, self._distrusted, slots(pool.spec))

    def _grant(self, pool: Pool, endpoint: Endpoint, asked: Asked, *, is_copy: bool = False) -> Lease:
        key, now = endpoint.key, self._now()
        if not is_copy:
            self._used_s[pool.model] = now
        load = self._loads.get(key)
        if load is None:
            load = self._loads[key] = Load()
        load.in_flight += 1
        lease = Lease(self, pool, endpoint, load, is_copy=is_copy)
        if not asked.is_light:
            load.running_s[lease] = now
        return lease

    def _serve(self, model: str) -> None:
        """Give what is free to those that wait for it."""
        while (queue := self._queues.get(model)) and (endpoint := self._with_room(pool := self.table.pools[model])):
            ticket = queue.pop()
            ticket.models = tuple(other for other in ticket.models if other != model)
            if not queue:
                del self._queues[model]
            self.leave(ticket)
            ticket.end(self._grant(pool, endpoint, ticket.asked))

    def _enqueue(self, asked: Asked, pools: Sequence[Pool]) -> Ticket:
        for pool in pools:
            if (queue := self._queues.get(pool.model)) and len(queue) >= self.table.max_queue:
                self._make_place(queue, pool)
        ticket = Ticket(self, asked, self._now(), self.table.queue_timeout_s)
        self._stand(ticket, pools)
        return ticket

    def _make_place(self, queue: FairQueue[Ticket], pool: Pool) -> None:
        """A client with fewer waiting takes the last place of the one with the most, so that no client can fill a queue for all."""
        last = queue.latest(queue.longest()[0])
        refusal = refusals.displaced(pool, self.place(last))
        self.leave(last)
        last.end(refusal)

    def _stand(self, ticket: Ticket, pools: Sequence[Pool]) -> None:
        ticket.models = tuple(pool.model for pool in pools)
        for model in ticket.models:
            self._queues.setdefault(model, FairQueue()).push(ticket.asked.client, ticket)
            self._woken_s.pop(model, None)
            self._used_s[model] = max(self._used_s.get(model, ticket.came_s), ticket.came_s)

    def _restore_order(self, old: Mapping[str, Sequence[Ticket]]) -> None:
        """Those that stand in several queues were put back into all at once, before others whose turn comes earlier."""
        for model, queue in self._queues.items():
            ranks = {ticket: rank for rank, ticket in enumerate(old.get(model, ()))}
            self._queues[model] = ordered = FairQueue[Ticket]()
            for ticket in sorted(queue, key=lambda ticket: ranks.get(ticket, len(ranks))):
                ordered.push(ticket.asked.client, ticket)

    def _estimate_s(self, model: str, position: int) -> float | None:
        pool = self.table.pools[model]
        each, now = slots(pool.spec), self._now()
        ready_in_s = pool.ready_in_s
        if pool.endpoints:
            ready_in_s = 0.0
        elif ready_in_s is not None:
            ready_in_s -= now - self._published_s
        loads = [load for endpoint in pool.endpoints if (load := self._loads.get(endpoint.key))]
        ages_s = [now - since_s for load in loads for since_s in load.running_s.values()]
        times = self._service.get(model)
        service = times.at(each) if times else None
        return wait_s(position, each * (len(pool.endpoints) or pool.spec.replicas), ages_s, service, ready_in_s)

    def _note_service(self, lease: Lease, took_s: float) -> None:
        times = self._service.get(lease.pool.model)
        if times is None:
            times = self._service[lease.pool.model] = ServiceTimes()
        times.note(took_s, (lease.among + len(lease.load.running_s)) // 2)

    def _demand_for(self, model: str) -> Demand:
        came = [ticket.came_s for ticket in self._queues.get(model, ())]
        came += [] if (woken_s := self._woken(model)) is None else [woken_s]
        return Demand(self.queued(model), min(came, default=None), self._used_s[model])

    def _wake(self, model: str) -> None:
        self._used_s[model] = self._now()
        if self._woken(model) is None and model not in self._queues:
            self._woken_s[model] = self._now()
            self._on_change()

    def _woken(self, model: str) -> float | None:
        """When a request came that *model* did not answer; that counts no longer than if it had waited."""
        at = self._woken_s.get(model)
        return None if at is None or self._now() >= at + self.table.queue_timeout_s else at

    def _trust(self, key: EngineKey) -> None:
        self._distrusted.discard(key)
        self._serve(key.model)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
