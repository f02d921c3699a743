"""Which NUMA nodes a process takes its memory from. Standard library only."""

import ctypes
import errno
import os
import platform
import re
from collections.abc import Collection
from pathlib import Path

MPOL_PREFERRED, MPOL_INTERLEAVE = 1, 3
WORD_BITS = 8 * ctypes.sizeof(ctypes.c_ulong)
# The C library has no functions for these calls of the kernel's.
SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237}
MIGRATE_PAGES = {"x86_64": 256, "aarch64": 238}
POLICY_NODES = re.compile(r"^\S+ [^:=\n]+:([\d,-]+)")


def prefer_memory(nodes: Collection[int]) -> None:
    """
    Have this thread, and all that come from it, take memory from *nodes*, in turn from several, while these have any.

    They are not bound: a bound process whose nodes are full is killed, whatever the others have left.

    Raises:
        OSError: the kernel refuses, or knows no NUMA.
    """
    mask = _mask(nodes)
    _call(SET_MEMPOLICY, MPOL_PREFERRED if len(nodes) == 1 else MPOL_INTERLEAVE, mask, _length(mask))


def move_memory(pid: int, source: Collection[int], target: Collection[int]) -> None:
    """
    Move what a process holds on the nodes *source* to *target*: a second for some gigabytes, in which it goes on.

    Raises:
        OSError: the kernel refuses, or the process has ended.
    """
    last = max(*source, *target)
    old, new = _mask(source, last), _mask(target, last)
    _call(MIGRATE_PAGES, pid, _length(old), old, new)


def preferred_nodes(pid: int) -> str:
    """The nodes a process takes memory from, in the kernel's notation; empty if it takes what is nearest, or cannot be asked."""
    try:
        with Path(f"/proc/{pid}/numa_maps").open("rb", buffering=0) as maps:
            found = POLICY_NODES.match(maps.read(4096).decode(errors="replace"))
    except OSError:
        return ""
    return found[1] if found else ""


def _mask(nodes: Collection[int], last: int = 0) -> "ctypes.Array[ctypes.c_ulong]":
    words = (ctypes.c_ulong * (max(*nodes, last) // WORD_BITS + 1))()
    for node in nodes:
        words[node // WORD_BITS] |= 1 << node % WORD_BITS
    return words


def _length(mask: "ctypes.Array[ctypes.c_ulong]") -> int:
    """The number of bits; the kernel leaves out the last one that it is told of."""
    return len(mask) * WORD_BITS + 1


def _call(numbers: dict[str, int], *arguments: object) -> None:
    if (number := numbers.get(platform.machine())) is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    # Small integers would go as C's int, where the kernel reads a long.
    words = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    if ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *words) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
