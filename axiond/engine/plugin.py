"""
Runs in every vLLM process (entry point `vllm.general_plugins`): ties it to its engine. Standard library only.

A process of an engine dies with its parent, tells the host when it dies itself, and names its shared memory after the
engine, so that whoever cleans up knows whose it is. In a vLLM that axiond did not start, nothing happens.
"""

import ctypes
import multiprocessing
import operator
import os
import signal
import socket
from multiprocessing import process, shared_memory, util
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
GUARD_SOCKET = "guard"

_held: list[socket.socket] = []


def guard() -> None:
    """Tie this process to the engine named in its environment. Calling it again changes nothing."""
    if (folder := os.environ.get("AXIOND_ENGINE")) and not _held:
        parent = multiprocessing.parent_process()
        die_with_parent(parent.pid if parent and parent.pid else os.getppid())
        name_shared_memory(Path(folder).name)
        _held.append(socket.socket(socket.AF_UNIX))
        if parent or is_being_spawned():
            report_death_to(Path(folder) / GUARD_SOCKET, multiprocessing.current_process().name)


def guard_forked() -> None:
    """Have the processes that multiprocessing forks from this one tied to the engine too: they import nothing that would do it."""
    util.register_after_fork(_guard_again, operator.call)


def _guard_again() -> None:
    # What is written there is heard by the parent.
    signal.set_wakeup_fd(-1)
    # The inherited connection speaks for the parent.
    while _held:
        _held.pop().close()
    guard()


def is_being_spawned() -> bool:
    """Tell whether multiprocessing is preparing this process; it has no parent_process() yet."""
    return getattr(multiprocessing.current_process(), "_inheriting", False)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when *parent* dies; do it here if that happened already."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def lend_nothing() -> None:
    """What this process may do beyond its user's rights, nothing that it executes may. A fork alone takes it along."""
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)


def prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, ctypes.c_ulong(value), *[ctypes.c_ulong(0)] * 3)


def name_shared_memory(token: str) -> None:
    """Prefix the names of this process's segments and semaphores in /dev/shm; its children inherit the latter."""
    prefix = f"/axd-{token}-"
    # Private names, but there is no other way; the end-to-end tests would notice a change.
    shared_memory._SHM_NAME_PREFIX = prefix  # type: ignore[attr-defined]
    shared_memory._SHM_SAFE_NAME_LENGTH = len(prefix) + 8  # type: ignore[attr-defined]
    process.current_process()._config["semprefix"] = prefix.rstrip("-")  # type: ignore[attr-defined]


def report_death_to(path: Path, name: str) -> None:
    """Hold a connection to the host open for life: its end is the news that this process is dead."""
    connection = _held[-1]
    connection.connect(str(path))
    connection.sendall(f"{name} (pid {os.getpid()})\n".encode())
