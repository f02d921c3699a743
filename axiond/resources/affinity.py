"""Which CPUs running processes are held to, read from the kernel and changed."""

import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Held:
    """
    Where processes may run.

    *cores* are the CPUs that any thread may run on, *bound* those that some thread is bound to alone, and *computing* these
    and the ones of the main thread beside it.
    """

    cores: frozenset[int] = frozenset()
    bound: frozenset[int] = frozenset()
    computing: frozenset[int] = frozenset()


NOWHERE = Held()


def held_to(pids: Iterable[int]) -> Held:
    """Ask the kernel for every thread of these processes: call it off the loop."""
    found = NOWHERE
    for pid in pids:
        masks = [mask for thread in _threads(pid) if (mask := _mask(thread))]
        bound = _union(mask for mask in masks if len(mask) == 1)
        computing = bound | _mask(pid) if bound else bound
        found = Held(found.cores | _union(masks), found.bound | bound, found.computing | computing)
    return found


def _union(masks: Iterable[frozenset[int]]) -> frozenset[int]:
    return frozenset[int]().union(*masks)


def confine(pid: int, cpus: Collection[int], spared: Collection[frozenset[int]] = ()) -> None:
    """
    Hold every thread of a process to *cpus*, but those that are held to one of the *spared* sets.

    Raises:
        OSError: the kernel refuses.
    """
    for thread in _threads(pid):
        if _mask(thread) not in spared:
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
