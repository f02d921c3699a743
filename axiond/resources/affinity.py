"""Which CPUs running processes are held to, read from the kernel and changed."""

import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path


def held_to(pids: Iterable[int]) -> tuple[frozenset[int], frozenset[int]]:
    """The CPUs that any thread of these processes may run on, and those that threads are bound to alone. Slow: call it off the loop."""
    masks = [os.sched_getaffinity(thread) for pid in pids for thread in _threads(pid)]
    return frozenset[int]().union(*masks), frozenset[int]().union(*(mask for mask in masks if len(mask) == 1))


def confine(pid: int, cpus: Collection[int], bound: Collection[int] = ()) -> None:
    """
    Hold every thread of a process to *cpus*, but leave those alone that are bound to one of *bound*.

    Raises:
        OSError: the kernel refuses.
    """
    for thread in _threads(pid):
        with suppress(ProcessLookupError):
            mask = os.sched_getaffinity(thread)
            if len(mask) != 1 or not mask <= set(bound):
                os.sched_setaffinity(thread, cpus)


def _threads(pid: int) -> Iterator[int]:
    try:
        names = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return
    yield from map(int, names)
