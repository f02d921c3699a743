"""
The machine's cores and memory nodes, and which of them this process may use.

Everything is read below a root folder, so that tests can bring a machine of their own.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from axiond.resources.machine import Barred, Core, Topology, parse_cpu_list

# Cores that are slower than this part of the fastest are little. Favoured cores of one kind differ by less.
BIG = 0.8


def read_topology(root: Path = Path("/"), affinity: frozenset[int] | None = None) -> Topology:
    """
    Read sysfs and the control groups of this process below *root*. Slow with many cores: call it off the loop.

    Args:
        root: the file system's root, or a recorded one.
        affinity: what sched_getaffinity() says; asked if None.
    """
    system = root / "sys/devices/system"
    online = _list(system / "cpu/online") or frozenset(range(os.cpu_count() or 1))
    allowed = online & (frozenset(os.sched_getaffinity(0)) if affinity is None else affinity)
    for cpuset in _group_files(root, "cpuset", ("cpuset.cpus.effective",), ("cpuset.effective_cpus", "cpuset.cpus")):
        allowed &= _list(cpuset) or allowed
    isolated = _list(system / "cpu/isolated")
    # Who is held to isolated cores is meant to use them.
    isolated = isolated if allowed - isolated else frozenset()
    nodes = {int(path.name.removeprefix("node")): path for path in sorted((system / "node").glob("node[0-9]*"))}
    node_of = {cpu: number for number, path in nodes.items() for cpu in _list(path / "cpulist")}
    cpus = {cpu: _Cpu.read(system / f"cpu/cpu{cpu}", cpu, node_of.get(cpu, 0)) for cpu in sorted(online)}
    return Topology(
        cores=tuple(_cores(cpus, allowed, isolated)),
        nodes=_memory(root, nodes),
        quota_cpus=_quota(root),
    )


@dataclass(frozen=True, slots=True)
class _Cpu:
    node: int
    package: int
    siblings: frozenset[int]
    cache: frozenset[int]
    speed: int

    @classmethod
    def read(cls, folder: Path, cpu: int, node: int) -> "_Cpu":
        topology = folder / "topology"
        siblings = _list(topology / "core_cpus_list") or _list(topology / "thread_siblings_list")
        caches = {_number(path / "level"): path for path in sorted((folder / "cache").glob("index[0-9]*"))}
        return cls(
            node=node,
            package=max(0, _number(topology / "physical_package_id")),
            siblings=siblings | {cpu},
            cache=_list(caches[max(caches)] / "shared_cpu_list") if caches else frozenset(),
            speed=_number(folder / "cpu_capacity") or _number(folder / "cpufreq/cpuinfo_max_freq"),
        )


def _cores(cpus: Mapping[int, _Cpu], allowed: frozenset[int], isolated: frozenset[int]) -> Iterator[Core]:
    fastest = max((cpus[cpu].speed for cpu in (allowed - isolated) & cpus.keys()), default=0)
    for first, cpu in cpus.items():
        siblings = cpu.siblings & cpus.keys()
        if first != min(siblings):
            continue
        usable = siblings & allowed - isolated
        barred: Barred = "" if usable else "isolated" if siblings & allowed else "not allowed"
        on_node = {other for other, its in cpus.items() if its.node == cpu.node}
        shared = cpu.cache & on_node
        yield Core(
            cpus=tuple(sorted(usable or siblings)),
            package=cpu.package,
            node=cpu.node,
            cluster=min(shared if shared - siblings else on_node),
            is_big=cpu.speed >= BIG * fastest,
            barred=barred,
        )


def _memory(root: Path, nodes: Mapping[int, Path]) -> dict[int, int]:
    sizes = {}
    for number, path in nodes.items():
        if found := re.search(r"MemTotal:\s+(\d+) kB", _text(path / "meminfo")):
            sizes[number] = int(found[1]) * 1024
    for cpuset in _group_files(root, "cpuset", ("cpuset.mems.effective",), ("cpuset.effective_mems", "cpuset.mems")):
        if mems := _list(cpuset):
            sizes = {number: size for number, size in sizes.items() if number in mems}
    return {number: size for number, size in sizes.items() if size}


def _quota(root: Path) -> float | None:
    quotas = []
    for path in _group_files(root, "cpu", ("cpu.max",), ("cpu.cfs_quota_us",)):
        words = _text(path).split()
        if path.name == "cpu.cfs_quota_us":
            words += _text(path.with_name("cpu.cfs_period_us")).split()
        if len(words) == 2 and words[0] not in ("max", "-1") and int(words[1]):
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def _group_files(root: Path, controller: str, unified: tuple[str, ...], legacy: tuple[str, ...]) -> Iterator[Path]:
    """
    The files of these names in this process's control group and in all above it.

    A container may see the path that its group has outside, where there is no such folder: then the root is its own.
    """
    mount = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            tops, names = (mount, mount / "unified"), unified
        elif controller in controllers.split(","):
            tops, names = (mount / controllers, mount / controller), legacy
        else:
            continue
        for top in tops:
            group = top / path.lstrip("/")
            for folder in (group, *group.parents):
                yield from (folder / name for name in names if (folder / name).exists())
                if folder == top:
                    break


def _list(path: Path) -> frozenset[int]:
    text = _text(path).strip()
    return parse_cpu_list(text) if text else frozenset()


def _number(path: Path) -> int:
    text = _text(path).strip()
    return int(text) if text.lstrip("-").isdigit() else 0


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
