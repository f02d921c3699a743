"""Which cores an engine may run on, and which ones it got."""

import os
from collections.abc import Iterable, Sequence

from axiond.manifest.spec import ModelSpec


def parse_cpu_list(text: str) -> frozenset[int]:
    """Read the kernel's notation: "0-3,8" is 0, 1, 2, 3 and 8."""
    ranges = [part.split("-") for part in text.split(",")]
    return frozenset(core for bounds in ranges for core in range(int(bounds[0]), int(bounds[-1]) + 1))


def cores_of(spec: ModelSpec, replica: int, allowed: Iterable[int]) -> frozenset[int]:
    """The cores of one replica: its own list, the model's, or all *allowed* ones; lists are reused when there are more replicas."""
    if spec.cores is None:
        return frozenset(allowed)
    lists = (spec.cores,) if isinstance(spec.cores, str) else spec.cores
    return parse_cpu_list(lists[replica % len(lists)])


def affinity(pids: Sequence[int]) -> str:
    """The cores that the first of these processes is held to, in the kernel's notation; empty if it is gone."""
    try:
        return format_cpu_list(os.sched_getaffinity(pids[0]))
    except (IndexError, ProcessLookupError):
        return ""


def format_cpu_list(cores: Iterable[int]) -> str:
    """Write the kernel's notation: 0, 1, 2, 3 and 8 is "0-3,8"."""
    runs: list[list[int]] = []
    for core in sorted(cores):
        if runs and core == runs[-1][-1] + 1:
            runs[-1][1:] = [core]
        else:
            runs.append([core])
    return ",".join("-".join(map(str, run)) for run in runs)
