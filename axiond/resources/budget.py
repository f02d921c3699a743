"""How much memory engines may use, and how much one is expected to use."""

from collections.abc import Iterator
from pathlib import Path

import psutil

from axiond.manifest.spec import ModelSpec

PROCESS_BYTES = int(2.5 * 2**30)  # the processes of vLLM 0.32 without weights and KV cache


def fixed_bytes(spec: ModelSpec) -> int:
    """An engine's memory beside its weights: KV cache and processes."""
    return int(spec.kv_cache) + PROCESS_BYTES


def budget_bytes(cgroup_root: Path = Path("/sys/fs/cgroup"), cgroup_of_self: Path = Path("/proc/self/cgroup")) -> int:
    """Memory that engines may use together: what is free now, or what the tightest cgroup above us still allows."""
    return min([psutil.virtual_memory().available, *_cgroup_rooms(cgroup_root, cgroup_of_self)])


def _cgroup_rooms(root: Path, of_self: Path) -> Iterator[int]:
    try:
        lines = of_self.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith("0::"):
            group = root / line.removeprefix("0::").lstrip("/")
            for folder in (group, *group.parents):
                yield from _room(folder)
                if folder == root:
                    return


def _room(folder: Path) -> Iterator[int]:
    try:
        limit, current = (folder / "memory.max").read_text().strip(), int((folder / "memory.current").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:
        return
    if limit != "max":
        yield max(0, int(limit) - current + int(stat.get("inactive_file", 0)))  # the kernel gives cold file pages back
