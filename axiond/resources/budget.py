"""How much memory there is, and how much of it engines may use together."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

CGROUPS, OF_SELF, NODES = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"), Path("/sys/devices/system/node")
LARGEST_RESERVE_BYTES = 2**29


@dataclass(frozen=True, slots=True)
class Room:
    """
    What this process and its children may use of memory: *total_bytes* altogether, *free_bytes* more than they do now.

    Pages of files count as free: the kernel gives them back. *node_bytes* is the memory of the largest NUMA node.
    """

    total_bytes: int
    free_bytes: int
    node_bytes: int

    @property
    def reserve_bytes(self) -> int:
        """What is never given to engines: room for what nobody expects."""
        return min(self.total_bytes // 16, LARGEST_RESERVE_BYTES)

    @property
    def is_short(self) -> bool:
        return self.free_bytes < self.reserve_bytes

    @property
    def is_critical(self) -> bool:
        """So little is left that the kernel may be next to kill."""
        return self.free_bytes < self.reserve_bytes // 2


UNLIMITED = Room(2**62, 2**62, 2**62)


def budget_bytes(setting: str | int, room: Room, used_bytes: int, promised_bytes: int) -> int:
    """
    The memory that engines may use together.

    Args:
        setting: of the manifest, in bytes or in percent of what there is.
        used_bytes: what they use now, pages of files left out.
        promised_bytes: what those that run may use. They keep it, whoever else takes memory, until it runs short.
    """
    there_is = max(0, room.free_bytes - room.reserve_bytes + used_bytes)
    return min(share_bytes(setting, room), there_is if room.is_short else max(there_is, promised_bytes))


def share_bytes(setting: str | int, room: Room) -> int:
    """What the manifest's *setting* grants on this machine, were it empty."""
    if isinstance(setting, str):
        return room.total_bytes * int(setting.removesuffix("%")) // 100
    return int(setting)


def read_room(cgroups: Path = CGROUPS, of_self: Path = OF_SELF, nodes: Path = NODES) -> Room:
    """Look at the machine and at the control groups, of either version, that this process is in."""
    memory = psutil.virtual_memory()
    limits = [(memory.total, memory.available), *_limits(cgroups, of_self)]
    return Room(min(total for total, _ in limits), min(free for _, free in limits), max(_node_sizes(nodes), default=memory.total))


def _limits(cgroups: Path, of_self: Path) -> Iterator[tuple[int, int]]:
    """For each limited group above this process the limit, and what it still allows."""
    try:
        lines = [line.split(":", 2) for line in of_self.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if not controllers:
            yield from _of_groups(cgroups, path, ("memory.max", "memory.current", "active_file", "inactive_file"))
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_active_file", "total_inactive_file")
            yield from _of_groups(cgroups / "memory", path, names)


def _of_groups(root: Path, path: str, names: tuple[str, str, str, str]) -> Iterator[tuple[int, int]]:
    """In a container *path* may be none that is seen here: then the root stands for it."""
    limit_name, used_name, *file_names = names
    group = root / path.lstrip("/")
    for folder in (group, *group.parents):
        if folder.is_relative_to(root):
            try:
                limit, used = (folder / limit_name).read_text().strip(), int((folder / used_name).read_text())
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                files = sum(int(stat.get(name, 0)) for name in file_names)
            except (OSError, ValueError):
                continue
            if limit != "max":
                yield int(limit), max(0, int(limit) - used + files)


def _node_sizes(nodes: Path) -> Iterator[int]:
    for file in nodes.glob("node[0-9]*/meminfo"):
        try:
            yield next(int(line.split()[3]) * 1024 for line in file.read_text().splitlines() if " MemTotal:" in line)
        except (OSError, ValueError, LookupError, StopIteration):
            continue
