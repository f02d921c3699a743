"""How an engine's host comes to be: executed, or forked by the fork server. Standard library only."""

import dataclasses
import json
import os
import sys
from dataclasses import dataclass
from typing import Any, Protocol, Self

# Where an executed host finds the lock of its engine's folder, and what Python says if the host itself fails.
LOCK_DESCRIPTOR = 3
HOST_LOG = "host.log"
HOST = (sys.executable, "-P", "-m", "axiond.engine.host")


@dataclass(frozen=True, slots=True)
class HostArgs:
    """
    What a host is told; goes to it as JSON.

    Args:
        folder: the engine's private folder.
        cores: affinity of the whole engine; empty: left as it is.
        nodes: memory nodes to bind to; empty: none.
        keep_s: how long the engine waits for the next daemon when its own is gone; None: it ends with its daemon's connection.
        command: program to exec; the fork server, which serves in the forked process, ignores it.
        argv: arguments of vLLM's server.
        environ: the engine's whole environment.
    """

    folder: str
    cores: tuple[int, ...]
    nodes: tuple[int, ...]
    keep_s: float | None
    command: tuple[str, ...]
    argv: tuple[str, ...]
    environ: dict[str, str]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        raw: dict[str, Any] = json.loads(text)
        tuples = {name: tuple(raw[name]) for name in ("cores", "nodes", "command", "argv")}
        return cls(**{**raw, **tuples})


class Spawner(Protocol):
    """Starts hosts."""

    async def spawn(self, args: HostArgs, lock: int) -> int:
        """
        Start a host that holds descriptor *lock*; return its pid.

        Raises:
            OSError: no process could be made.
        """
        ...


class PlainSpawner:
    """Executes a fresh Python for each host. They are children of this process; whoever watches them reaps them."""

    async def spawn(self, args: HostArgs, lock: int) -> int:
        """Start a host in a session of its own."""
        told = os.memfd_create("host-args")
        try:
            os.write(told, args.to_json().encode())
            os.lseek(told, 0, os.SEEK_SET)
            files = [
                (os.POSIX_SPAWN_DUP2, told, 0),
                (os.POSIX_SPAWN_OPEN, 1, f"{args.folder}/{HOST_LOG}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
                (os.POSIX_SPAWN_DUP2, lock, LOCK_DESCRIPTOR),
            ]
            return os.posix_spawn(sys.executable, HOST, args.environ, file_actions=files, setsid=True)  # noqa: ASYNC221  a millisecond
        finally:
            os.close(told)


PLAIN = PlainSpawner()
