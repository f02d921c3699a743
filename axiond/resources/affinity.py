"""Which CPUs running processes are held to, read from the kernel and changed."""

import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path


def held_to(pids: Iterable[int]) -> tuple[frozenset[int], frozenset[int]]:
    """
    The CPUs that any thread of these processes may run on, and those that some thread is bound to alone.

    Makes a call for every thread: call it off the loop.
    """
    masks = [mask for pid in pids for thread in _threads(pid) if (mask := _mask(thread))]
    return frozenset[int]().union(*masks), frozenset[int]().union(*(mask for mask in masks if len(mask) == 1))


def confine(pid: int, cpus: Collection[int], bound: Collection[int] = ()) -> None:
    """
    Hold every thread of a process to *cpus*, but leave those alone that are bound to one of *bound*.

    Raises:
        OSError: the kernel refuses.
    """
    for thread in _threads(pid):
        mask = _mask(thread)
        if len(mask) != 1 or not mask <= set(bound):
            with suppress(ProcessLookupError):
                os.sched_setaffinity(thread, cpus)


def _mask(thread: int) -> frozenset[int]:
    try:
        return frozenset(os.sched_getaffinity(thread))
    except ProcessLookupError:
        return frozenset()


def _threads(pid: int) -> Iterator[int]:
    with suppress(OSError):
        yield from [int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()]
