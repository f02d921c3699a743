"""What an engine may leave behind, for asserting that it left nothing."""

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path

from axiond.engine.engine import Endpoint
from axiond.engine.link import ended
from axiond.engine.sweep import belonging

SHM = Path("/dev/shm")


def folder_of(endpoint: Endpoint) -> Path:
    assert endpoint.socket
    return endpoint.socket.parent


def segments(folder: Path) -> list[str]:
    return sorted(path.name for path in SHM.iterdir() if folder.name in path.name)


def remains(folder: Path, pids: Iterable[int] = ()) -> dict[str, object]:
    """Everything of an engine that is still there; empty when nothing is."""
    left = {
        "processes": sorted(belonging(folder) | {pid for pid in pids if is_alive(pid)}),
        "shared memory": segments(folder),
        "files": sorted(path.name for path in folder.glob("*")) if folder.exists() else [],
        "folder": [str(folder)] if folder.exists() else [],
    }
    return {kind: found for kind, found in left.items() if found}


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def all_ended(pids: Iterable[int], within_s: float) -> None:
    """Wait until processes have ended, whoever their parent is."""
    async with asyncio.timeout(within_s), asyncio.TaskGroup() as group:
        for pid in pids:
            group.create_task(ended_or_gone(pid))


async def ended_or_gone(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await ended(descriptor)
    finally:
        os.close(descriptor)
