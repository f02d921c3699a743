"""
Find and end everything that belongs to one engine folder: processes, shared memory, files. Standard library only.

Every process of an engine carries the folder in its environment, and a lock on a file in the folder is held by the daemon
and the host as long as one of them lives. That is enough to clean up after anybody, even after both.
"""

import contextlib
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MARK = "AXIOND_ENGINE"
LOCK = "lock"
SHM = Path("/dev/shm")  # noqa: S108  POSIX shared memory, not a temporary file


def sweep(folder: Path, host: int | None = None, deadline_s: float = 10.0) -> bool:
    """
    Kill every process of the engine in *folder*, then remove its shared memory and the folder.

    Args:
        folder: the engine's private folder.
        host: the engine's host, alive or not yet reaped. Its descendants and its session belong to the engine too, even
            without the mark; itself excepted.
        deadline_s: seconds to wait for processes to be gone; one in uninterruptible sleep can outlast it.

    Returns:
        Whether all processes are gone.
    """
    end = time.monotonic() + deadline_s
    segments: set[Path] = set()
    while pids := belonging(folder, host):
        for pid in pids:
            segments |= mapped_segments(pid)
            kill(pid, folder, host)
        if time.monotonic() > end:
            break
    for segment in segments | set(named_segments(folder.name)):
        with contextlib.suppress(OSError):
            segment.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    return not pids


def belonging(folder: Path, host: int | None = None) -> set[int]:
    """List the living processes of the engine in *folder*; the caller and *host* excepted."""
    pids = {pid for pid in processes() if is_marked(pid, folder)}
    return (pids | (members(host) if host else set())) - {os.getpid(), host}


def members(host: int) -> set[int]:
    """List the living processes that descend from *host* or are in its session."""
    return descendants(host) | {pid for pid in processes() if (stat := read_stat(pid)) and stat.session == host}


def is_marked(pid: int, folder: Path) -> bool:
    mark = f"{MARK}={folder}".encode()
    try:
        return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def descendants(root: int) -> set[int]:
    """List the living descendants of *root*."""
    parents = {pid: stat.parent for pid in processes() if (stat := read_stat(pid))}
    found: set[int] = set()
    layer = {root}
    while layer := {pid for pid, parent in parents.items() if parent in layer} - found:
        found |= layer
    return found


def processes() -> Iterator[int]:
    return (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


class Stat(NamedTuple):
    parent: int
    session: int


def read_stat(pid: int) -> Stat | None:
    """Read a process's relations; None for one that is dead or a zombie."""
    try:
        # Bytes: a process may call itself whatever it likes.
        state, parent, _, session = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[:4]
    except OSError:
        return None
    return None if state in b"ZX" else Stat(int(parent), int(session))


def kill(pid: int, folder: Path, host: int | None, wait_s: float = 1.0) -> None:
    """Send SIGKILL and wait for the end. The process is held by a descriptor, so that a reused id is not hit."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if is_marked(pid, folder) or (host and pid in members(host)):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            ended = select.poll()
            ended.register(descriptor, select.POLLIN)
            ended.poll(wait_s * 1000)
    except ProcessLookupError:
        pass
    finally:
        os.close(descriptor)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def mapped_segments(pid: int) -> set[Path]:
    """List the shared memory that a process maps, whatever its name."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_bytes().split(b"\n")
    except OSError:
        return set()
    mapped = (line for line in lines if f" {SHM}/".encode() in line and not line.endswith(b" (deleted)"))
    return {Path(os.fsdecode(line.split(maxsplit=5)[5])) for line in mapped}


def named_segments(token: str) -> Iterator[Path]:
    """List what the plugin named after the engine: segments and semaphores."""
    return (path for path in SHM.iterdir() if path.name.startswith((f"axd-{token}-", f"sem.axd-{token}-")))
