"""How much memory there is to use: recorded control groups of both versions, and the arithmetic of the budget."""

import psutil
import pytest

from axiond.resources.budget import UNLIMITED, Room, budget_bytes, read_room, share_bytes

GIB = 2**30
V2 = ("memory.max", "memory.current", "anon 7\nactive_file 20\ninactive_file 30")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "cache 9\ntotal_active_file 20\ntotal_inactive_file 30")
OLD_UNLIMITED = 9223372036854771712


def machine(tmp_path, version, of_self, limits):
    """Control groups under *tmp_path*, and a machine of two nodes with 1 and 2 MiB."""
    root = tmp_path / "cgroup" / ("memory" if version is V1 else "")
    root.mkdir(parents=True)
    for group, (most, current) in limits.items():
        (root / group).mkdir(parents=True, exist_ok=True)
        for name, text in zip((version[0], version[1], "memory.stat"), (most, current, version[2]), strict=True):
            (root / group / name).write_text(f"{text}\n")
    for index in (0, 1):
        node = tmp_path / f"nodes/node{index}"
        node.mkdir(parents=True)
        (node / "meminfo").write_text(f"Node {index} MemTotal:  {1024 * (index + 1)} kB\nNode {index} MemFree:  5 kB\n")
    (tmp_path / "self").write_text(of_self)
    return read_room(tmp_path / "cgroup", tmp_path / "self", tmp_path / "nodes")


@pytest.mark.parametrize(
    ("version", "of_self", "limits", "expected"),
    [
        (V2, "0::/a\n", {}, None),
        (V2, "0::/a\n", {"": ("max", 5)}, None),
        (V2, "0::/a\n", {"a": (1000, 400)}, (1000, 650)),
        (V2, "0::/a\n", {"": (900, 400), "a": ("max", 1)}, (900, 550)),
        (V2, "0::/a\n", {"": (900, 400), "a": (300, 100)}, (300, 250)),
        (V2, "0::/a\n", {"a": (100, 400)}, (100, 0)),
        (V2, "0::/seen/from/outside\n", {"": (1000, 400)}, (1000, 650)),
        (V1, "4:memory:/a/b\n1:cpu:/c\n0::/\n", {"a/b": (1000, 400)}, (1000, 650)),
        (V1, "4:cpu,memory:/a/b\n", {"a": (1000, 400), "a/b": (OLD_UNLIMITED, 400)}, (1000, 650)),
        (V1, "4:memory:/docker/4f\n", {"": (1000, 400)}, (1000, 650)),
        (V1, "nonsense\n", {"a": (1000, 400)}, None),
    ],
    ids=[
        "v2-none", "v2-unlimited", "v2-own", "v2-parent", "v2-tightest-wins", "v2-already-over", "v2-container",
        "v1-own", "v1-parent", "v1-container", "unreadable",
    ],
)  # fmt: skip
def test_the_tightest_control_group_decides(tmp_path, version, of_self, limits, expected):
    room = machine(tmp_path, version, of_self, limits)
    if expected is None:
        assert room.total_bytes == psutil.virtual_memory().total
        assert 0 < room.free_bytes <= room.total_bytes
    else:
        assert (room.total_bytes, room.free_bytes) == expected
    assert room.node_bytes == 2 * 2**20


def room(total_gib, free_gib):
    return Room(int(total_gib * GIB), int(free_gib * GIB), int(total_gib * GIB))


@pytest.mark.parametrize(
    ("setting", "there_is", "used_gib", "promised_gib", "expected_gib"),
    [
        ("100%", room(64, 60), 0, 0, 59.5),
        ("100%", room(64, 30), 30, 0, 59.5),
        ("50%", room(64, 60), 0, 0, 32),
        (10 * GIB, room(64, 60), 0, 0, 10),
        (10 * GIB, room(64, 4), 0, 0, 3.5),
        ("100%", room(64, 10), 20, 40, 40),
        ("100%", room(64, 0.25), 20, 40, 19.75),
        ("100%", room(4, 1), 0, 0, 0.75),
        ("100%", room(4, 0), 0, 0, 0),
    ],
    ids=[
        "whole", "what-engines-use-is-theirs", "percent", "bytes", "others-use-it", "promises-are-kept",
        "until-memory-is-short", "a-small-machine-keeps-a-sixteenth", "nothing",
    ],
)  # fmt: skip
def test_budget(setting, there_is, used_gib, promised_gib, expected_gib):
    assert budget_bytes(setting, there_is, used_gib * GIB, promised_gib * GIB) == expected_gib * GIB


def test_shares():
    assert share_bytes("25%", room(64, 1)) == 16 * GIB
    assert share_bytes(5, room(64, 1)) == 5
    assert not UNLIMITED.is_short


@pytest.mark.parametrize(("free_gib", "is_short", "is_critical"), [(1, False, False), (0.4, True, False), (0.2, True, True)])
def test_short_and_critical(free_gib, is_short, is_critical):
    assert (room(64, free_gib).is_short, room(64, free_gib).is_critical) == (is_short, is_critical)
