import os

import pytest

from axiond.manifest.spec import ModelSpec
from axiond.resources.cores import affinity, cores_of, format_cpu_list, parse_cpu_list

LISTS = [("0", {0}), ("0-3", {0, 1, 2, 3}), ("0-1,8", {0, 1, 8}), ("0,2,4-5", {0, 2, 4, 5})]


@pytest.mark.parametrize(("text", "cores"), LISTS, ids=[text for text, _ in LISTS])
def test_cpu_lists_are_read_and_written_alike(text, cores):
    assert parse_cpu_list(text) == cores
    assert format_cpu_list(cores) == text


@pytest.mark.parametrize(
    ("cores", "replica", "expected"),
    [(None, 0, {4, 5}), (None, 1, {4, 5}), ("0-1", 1, {0, 1}), (["0", "1"], 1, {1}), (["0", "1"], 2, {0})],
    ids=["unset", "unset-second", "one-list-shared", "list-per-replica", "lists-wrap"],
)
def test_each_replica_has_its_cores(cores, replica, expected):
    spec = ModelSpec(source="/x", cores=cores)
    assert cores_of(spec, replica, {4, 5}) == expected


def test_affinity_is_read_back_from_the_kernel_and_empty_for_the_dead():
    assert parse_cpu_list(affinity([os.getpid()])) == os.sched_getaffinity(0)
    assert affinity([]) == ""
    assert affinity([2**22 + 1]) == ""
