import psutil
import pytest

from axiond.manifest.spec import ModelSpec
from axiond.resources.budget import PROCESS_BYTES, budget_bytes, fixed_bytes


def test_fixed_part_is_kv_cache_and_processes():
    assert fixed_bytes(ModelSpec(source="/x", kv_cache="2GiB")) == 2 * 2**30 + PROCESS_BYTES


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, None),
        ({"": ("max", 5)}, None),
        ({"a": (1000, 400)}, 650),
        ({"": (900, 400), "a": ("max", 1)}, 550),
        ({"": (900, 400), "a": (300, 100)}, 250),
        ({"a": (100, 400)}, 0),
    ],
    ids=["no-cgroup", "unlimited", "own", "parent", "tightest-wins", "already-over"],
)
def test_budget_is_what_the_tightest_cgroup_leaves(tmp_path, limits, expected):
    of_self = tmp_path / "self"
    of_self.write_text("0::/a\n")
    root = tmp_path / "cgroup"
    (root / "a").mkdir(parents=True)
    for group, (most, current) in limits.items():
        (root / group / "memory.max").write_text(f"{most}\n")
        (root / group / "memory.current").write_text(f"{current}\n")
        (root / group / "memory.stat").write_text("anon 7\ninactive_file 50\n")
    found = budget_bytes(root, of_self)
    if expected is None:
        assert 0 < found <= psutil.virtual_memory().total
    else:
        assert found == expected
