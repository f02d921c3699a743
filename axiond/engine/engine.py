"""What the executor needs of an engine, wherever it lives."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from axiond.reconcile.state import EngineKey
from axiond.resources.cores import CorePlan


@dataclass(frozen=True, slots=True)
class Endpoint:
    """
    Where an engine answers.

    *model_name* is what the engine calls its model; *adapters* are the LoRA names it answers to beside it.
    With *socket* set, *base_url* only supplies the Host header.
    """

    key: EngineKey
    model_name: str
    base_url: str = "http://engine"
    socket: Path | None = None
    adapters: tuple[str, ...] = ()


class Engine(Protocol):
    """One engine's life: `start` once, `wait` for its end, `stop` at any time. All are cancellable."""

    @property
    def endpoint(self) -> Endpoint: ...

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids, the root first; empty where the engine is not on this host."""
        ...

    def kernels(self) -> bytes | None:
        """What its worker says about its kernels, as JSON; None while it has said nothing. Reads a file."""
        ...

    @property
    def placed(self) -> CorePlan:
        """The cores it was last given; none if nobody knows."""
        ...

    def rebind(self, plan: CorePlan) -> None:
        """
        Run on other cores from now on. Looks at every thread: call it off the loop.

        Raises:
            OSError: the kernel refuses.
        """
        ...

    @property
    def tail(self) -> tuple[str, ...]:
        """The last output lines, oldest first."""
        ...

    async def start(self) -> None:
        """Spawn and wait until ready and proven. Raises EngineError; nothing is left running then."""
        ...

    async def wait(self) -> str:
        """Wait until the engine has ended by itself; return how, as words."""
        ...

    async def stop(self) -> None:
        """End it and everything it started, and remove what it left. Never raises for a dead engine."""
        ...

    async def leave(self) -> bool:
        """Let go of it: one that may outlive this daemon runs on for the next one, any other is stopped. Tells whether it runs on."""
        ...
