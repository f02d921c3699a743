"""What a request holds: the lease of an engine, or a ticket for one."""

import asyncio
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

from axiond.engine.engine import Endpoint
from axiond.errors import RequestError
from axiond.manifest.routes import Failure
from axiond.routing.choose import Load
from axiond.routing.decision import ANY_FAILURE
from axiond.routing.table import Pool


@dataclass(slots=True)
class Asked:
    """
    What a request asks for.

    *draw* in [0, 1) is the same for every attempt of one request. *client* is who takes turns with others. *is_light*: the
    engine's scheduler has nothing to do with it, so neither has its limit. *patience_s*: how long it can wait; None: as
    long as the server lets it.

    *models* are those that may answer it, best first, as decided; where none of them exists, *name* tells. A later one is
    taken for a reason in *fallback_on* only. A model whose turn is expected later than in *max_wait_s* is overloaded.
    *is_patient*: a model on its way is waited for, though a later one is ready.
    *passed* is where the router notes which models it went past, and why.
    """

    name: str
    draw: float
    client: str = ""
    is_light: bool = False
    patience_s: float | None = None
    models: tuple[str, ...] = ()
    fallback_on: frozenset[Failure] = ANY_FAILURE
    max_wait_s: float | None = None
    is_patient: bool = False
    passed: dict[str, Failure] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a queue, 1 being the next, and how long it will wait; None where that is not known."""

    position: int
    estimate_s: float | None


class Desk(Protocol):
    """Where leases and tickets are given back."""

    def release(self, lease: "Lease") -> None: ...

    def leave(self, ticket: "Ticket") -> None: ...

    def place(self, ticket: "Ticket") -> Place: ...

    def late(self, ticket: "Ticket") -> RequestError: ...


class Lease:
    """
    One request's use of one engine, counted in its *load* until the `with` block ends.

    *among*: how many ran when it came. *is_copy*: nobody waits for its answer, so it is no reason to keep the model loaded.
    """

    __slots__ = ("_desk", "among", "endpoint", "is_copy", "load", "pool")

    def __init__(self, desk: Desk, pool: Pool, endpoint: Endpoint, load: Load, *, is_copy: bool) -> None:
        self._desk, self.pool, self.endpoint, self.load, self.is_copy = desk, pool, endpoint, load, is_copy
        self.among = len(load.running_s) + 1

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._desk.release(self)


class Ticket:
    """
    One request's place in the queues of *models*, the first of which is the one it is told about. It waits *most_s* at most.

    Leaving the `with` block gives back the place, or the lease that came too late to be taken.
    """

    __slots__ = ("_desk", "_is_taken", "_outcome", "asked", "came_s", "models", "most_s")

    def __init__(self, desk: Desk, asked: Asked, came_s: float, most_s: float) -> None:
        self._desk, self.asked, self.came_s = desk, asked, came_s
        self.most_s = most_s if asked.patience_s is None else min(most_s, asked.patience_s)
        self.models: tuple[str, ...] = ()
        self._is_taken = False
        self._outcome: asyncio.Future[Lease | RequestError] = asyncio.get_running_loop().create_future()

    @property
    def model(self) -> str:
        return self.models[0]

    def place(self) -> Place:
        return self._desk.place(self)

    def late(self) -> RequestError:
        """What to tell it when it has waited for *most_s*."""
        return self._desk.late(self)

    def end(self, outcome: Lease | RequestError) -> None:
        """Its turn has come, or never will."""
        self._outcome.set_result(outcome)

    async def wait(self, most_s: float) -> Lease | None:
        """
        The lease, once it is there; None after *most_s* without.

        Raises:
            RequestError: its turn never comes.
        """
        if not self._outcome.done():
            await asyncio.wait((self._outcome,), timeout=most_s)
        if not self._outcome.done():
            return None
        outcome, self._is_taken = self._outcome.result(), True
        if isinstance(outcome, RequestError):
            raise outcome
        return outcome

    def __enter__(self) -> "Ticket":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._outcome.done():
            self._desk.leave(self)
        elif not self._is_taken and isinstance(lease := self._outcome.result(), Lease):
            self._desk.release(lease)
