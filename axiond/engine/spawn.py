"""How an engine's host comes to be: executed, or forked by the fork server."""

import asyncio
import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Protocol, Self


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
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()})


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
    """Executes a fresh Python for each host. Knows its hosts as children only to reap them: whoever asks holds a pidfd."""

    def __init__(self) -> None:
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    async def spawn(self, args: HostArgs, lock: int) -> int:
        """Start a host as a child of this process, in a session of its own."""
        self._reap()
        child = await asyncio.to_thread(_execute, args, lock)
        self._children[child.pid] = child
        return child.pid

    def _reap(self) -> None:
        self._children = {pid: child for pid, child in self._children.items() if child.poll() is None}


def _execute(args: HostArgs, lock: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "axiond.engine.host", str(lock)]
    # The arguments go through a pipe: an environment may be longer than one argument may be.
    reading, writing = os.pipe()
    try:
        child = subprocess.Popen(
            command, stdin=reading, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=[lock], env=args.environ, start_new_session=True
        )
    except OSError:
        os.close(writing)
        raise
    finally:
        os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        pipe.write(args.to_json())
    return child
