"""
Machines to read a topology from: the part of sysfs and of the control groups that matters, from a few numbers.

The numbers are those of real machines: how logical CPUs are numbered over cores, sockets, nodes and caches.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from axiond.resources.machine import Topology, format_cpu_list
from axiond.resources.topology import read_topology


@dataclass(frozen=True)
class Machine:
    """
    One machine. CPU number *c* belongs to physical core `c % cores`, as Linux numbers siblings after all first threads.

    Args:
        cores: physical cores.
        threads: logical CPUs of each.
        packages: sockets; cores are numbered one socket after the other.
        nodes: memory nodes, likewise.
        cluster: cores that share the last-level cache; 0: no cache is shared.
        speeds: of each core, as cpu_capacity; empty: not told.
        files: more files, or other contents.
    """

    cores: int
    threads: int = 1
    packages: int = 1
    nodes: int = 1
    cluster: int = 0
    speeds: Sequence[int] = ()
    files: dict[str, str] = field(default_factory=dict)

    @property
    def cpus(self) -> range:
        return range(self.cores * self.threads)

    def cpus_of(self, cores: Iterable[int]) -> str:
        chosen = set(cores)
        return format_cpu_list(cpu for cpu in self.cpus if cpu % self.cores in chosen)

    def write(self, root: Path) -> None:
        """Write the tree below *root*."""
        system = "sys/devices/system"
        tree = {f"{system}/cpu/online": f"0-{self.cpus[-1]}", f"{system}/cpu/isolated": "", "proc/self/cgroup": "0::/"}
        for cpu in self.cpus:
            tree |= {f"{system}/cpu/cpu{cpu}/{name}": text for name, text in self._cpu(cpu % self.cores)}
        for node in range(self.nodes):
            per_node = self.cores // self.nodes
            tree[f"{system}/node/node{node}/cpulist"] = self.cpus_of(range(node * per_node, (node + 1) * per_node))
            tree[f"{system}/node/node{node}/meminfo"] = f"Node {node} MemTotal:       67108864 kB\nNode {node} MemFree:  1 kB\n"
        for name, text in (tree | self.files).items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")

    def _cpu(self, core: int) -> Iterable[tuple[str, str]]:
        yield "topology/core_cpus_list", self.cpus_of([core])
        yield "topology/physical_package_id", str(core * self.packages // self.cores)
        yield "cache/index0/level", "1"
        yield "cache/index0/shared_cpu_list", self.cpus_of([core])
        if self.cluster:
            first = core // self.cluster * self.cluster
            yield "cache/index3/level", "3"
            yield "cache/index3/shared_cpu_list", self.cpus_of(range(first, first + self.cluster))
        if self.speeds:
            yield "cpu_capacity", str(self.speeds[core])


def group(name: str, files: dict[str, str]) -> dict[str, str]:
    """A control group of version 2 that this process is in."""
    return {"proc/self/cgroup": f"0::/{name}", **{f"sys/fs/cgroup/{name}/{file}": text for file, text in files.items()}}


VM = Machine(cores=2, cluster=2)
NEOVERSE_V2 = Machine(cores=72, cluster=72)
# Two sockets of 32 cores, each in two sub-NUMA clusters.
XEON = Machine(cores=64, threads=2, packages=2, nodes=4, cluster=16)
EPYC = Machine(cores=32, threads=2, cluster=8)
ALTRA = Machine(cores=128)
CPUSET = Machine(cores=64, nodes=2, packages=2, cluster=32, files=group("axiond.service", {"cpuset.cpus.effective": "4-7,40-47"}))
CONTAINER = Machine(cores=64, cluster=64, files=group("pod", {"cpu.max": "250000 100000"}))
APPLE = Machine(cores=8, cluster=4, speeds=(485, 485, 485, 485, 1024, 1024, 1024, 1024))
MACHINES = {
    "vm": VM, "neoverse-v2": NEOVERSE_V2, "xeon": XEON, "epyc": EPYC, "altra": ALTRA, "cpuset": CPUSET, "container": CONTAINER,
    "apple": APPLE,
}  # fmt: skip


def reader(root: Path) -> Callable[[Machine], Topology]:
    """Write a machine, and read it back as a process without an affinity of its own would."""

    def read(machine: Machine) -> Topology:
        machine.write(root)
        return read_topology(root, frozenset(machine.cpus))

    return read
