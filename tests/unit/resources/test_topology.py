from dataclasses import replace

import pytest

from axiond.resources.machine import Core, format_cpu_list, parse_cpu_list
from axiond.resources.topology import read_topology
from tests.fakes.machines import ALTRA, APPLE, CONTAINER, CPUSET, EPYC, MACHINES, NEOVERSE_V2, VM, XEON, Machine, group, reader

MEMORY = 64 * 2**30


@pytest.fixture
def read(tmp_path):
    return reader(tmp_path)


@pytest.mark.parametrize(
    ("machine", "usable", "core", "nodes", "quota"),
    [
        (VM, 2, Core((1,)), 1, None),
        (NEOVERSE_V2, 72, Core((71,)), 1, None),
        (XEON, 64, Core((63, 127), package=1, node=3, cluster=48), 4, None),
        (EPYC, 32, Core((31, 63), cluster=24), 1, None),
        (ALTRA, 128, Core((127,)), 1, None),
        (CPUSET, 12, Core((47,), package=1, node=1, cluster=32), 2, None),
        (CONTAINER, 64, Core((63,)), 1, 2.5),
        (APPLE, 8, Core((7,), cluster=4), 1, None),
    ],
    ids=list(MACHINES),
)
def test_recorded_machines(read, machine, usable, core, nodes, quota):
    """How many physical cores may be used, the last of them, the nodes with memory, and the quota."""
    topology = read(machine)
    assert len(topology.usable) == usable
    assert topology.usable[-1] == core
    assert topology.nodes == dict.fromkeys(range(nodes), MEMORY)
    assert topology.quota_cpus == quota
    assert len(topology.cores) == machine.cores


def test_little_cores_are_known_by_their_speed(read):
    topology = read(APPLE)
    assert [core.is_big for core in topology.cores] == [False] * 4 + [True] * 4
    assert [core.cluster for core in topology.cores] == [0] * 4 + [4] * 4


@pytest.mark.parametrize(
    ("speeds", "big"),
    [((5200, 5000, 5200, 4900), (0, 1, 2, 3)), ((5800, 5800, 4300, 4300), (0, 1)), ((1024, 870, 870, 300), (0, 1, 2)), ((), (0, 1, 2, 3))],
    ids=["favoured cores", "performance and efficiency", "three kinds", "not told"],
)
def test_cores_that_differ_little_are_of_one_kind(read, speeds, big):
    topology = read(Machine(cores=4, speeds=speeds))
    assert tuple(core.cpus[0] for core in topology.cores if core.is_big) == big


@pytest.mark.parametrize(("affinity", "isolated"), [({0, 1}, ""), (set(APPLE.cpus), "4-7")], ids=["not allowed", "isolated"])
def test_where_only_little_cores_may_be_used_they_are_the_big_ones(tmp_path, affinity, isolated):
    replace(APPLE, files={"sys/devices/system/cpu/isolated": isolated}).write(tmp_path)
    assert all(core.is_big for core in read_topology(tmp_path, frozenset(affinity)).usable)


@pytest.mark.parametrize(
    ("files", "affinity", "allowed", "usable"),
    [
        ({}, "0-7", "0-7", "0-7"),
        ({}, "2-3", "2-3", "2-3"),
        ({"sys/devices/system/cpu/online": "0-5"}, "0-7", "0-5", "0-5"),
        ({"sys/devices/system/cpu/isolated": "2-3"}, "0-7", "0-7", "0-1,4-7"),
        ({"sys/devices/system/cpu/isolated": "2-3"}, "2-3", "2-3", "2-3"),
        (group("a/b", {"cpuset.cpus.effective": "1-4"}), "0-7", "1-4", "1-4"),
        (group("a/b", {"cpuset.cpus.effective": "1-4"}), "3-6", "3-4", "3-4"),
        (group("a/b", {"../cpuset.cpus.effective": "1-4"}), "0-7", "1-4", "1-4"),
        ({"sys/fs/cgroup/cpuset.cpus.effective": "5", "proc/self/cgroup": "0::/outside/of/the/container"}, "0-7", "5", "5"),
        ({"sys/fs/cgroup/cpuset/x/cpuset.effective_cpus": "1-2", "proc/self/cgroup": "3:cpuset:/x\n0::/"}, "0-7", "1-2", "1-2"),
        ({"sys/fs/cgroup/cpuset/cpuset.cpus": "1-2", "proc/self/cgroup": "3:cpuset:/docker/1\n0::/"}, "0-7", "1-2", "1-2"),
    ],
    ids=[
        "all",
        "affinity",
        "offline",
        "isolated",
        "only isolated",
        "cgroup",
        "cgroup and affinity",
        "above",
        "container",
        "v1",
        "v1 container",
    ],
)
def test_who_may_use_what(tmp_path, files, affinity, allowed, usable):
    Machine(cores=8, files=files).write(tmp_path)
    topology = read_topology(tmp_path, parse_cpu_list(affinity))
    assert format_cpu_list(topology.allowed) == allowed
    assert format_cpu_list(cpu for core in topology.usable for cpu in core.cpus) == usable


def test_a_core_of_which_one_sibling_is_allowed_has_that_one(tmp_path):
    XEON.write(tmp_path)
    topology = read_topology(tmp_path, frozenset({64, 1, 65}))
    assert [core.cpus for core in topology.usable] == [(64,), (1, 65)]
    assert {core.barred for core in topology.cores} == {"", "not allowed"}


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        (group("a", {"cpu.max": "max 100000"}), None),
        (group("a", {"cpu.max": "50000 100000"}), 0.5),
        (group("a/b", {"cpu.max": "400000 100000", "../cpu.max": "200000 100000"}), 2.0),
        ({"sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "150000", "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "50000",
          "proc/self/cgroup": "2:cpu,cpuacct:/x\n0::/"}, 3.0),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
          "proc/self/cgroup": "2:cpu,cpuacct:/x"}, None),
    ],
    ids=["none", "half", "the tightest above", "v1", "v1 none"],
)  # fmt: skip
def test_quota(read, files, quota):
    assert read(Machine(cores=8, files=files)).quota_cpus == quota


@pytest.mark.parametrize(
    ("files", "nodes"),
    [
        (group("a", {"cpuset.mems.effective": "1,3"}), {1, 3}),
        ({"sys/devices/system/node/node2/meminfo": "Node 2 MemTotal:  0 kB"}, {0, 1, 3}),
    ],
    ids=["not allowed", "none"],
)
def test_nodes_without_memory_to_use_are_left_out(read, files, nodes):
    assert read(replace(XEON, files=files)).nodes.keys() == nodes


def test_a_system_that_tells_nothing_has_cores_all_the_same(tmp_path):
    topology = read_topology(tmp_path, frozenset({0}))
    assert [core.cpus for core in topology.usable] == [(0,)]


def test_this_machine():
    """Whatever it is: what may be used is there."""
    topology = read_topology()
    assert topology.usable
    assert {cpu for core in topology.usable for cpu in core.cpus} <= topology.allowed
