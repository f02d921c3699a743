"""EngineCore follows the file of its cores, in a process of its own: all its threads are moved."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")

FIRST, SECOND, *_ = *sorted(os.sched_getaffinity(0)), -1

SCRIPT = """
import json, os, sys, threading
from pathlib import Path
from axiond.kernels import threads
from axiond.kernels.rebind import Follower
from axiond.numa import preferred_nodes

first, second, path = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
follower = Follower(path)
idle = threading.Thread(target=threading.Event().wait, daemon=True)
idle.start()

def write(**plan):
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps({"compute": [], "others": [], "nodes": [0], **plan}))
    draft.replace(path)

def team(count):
    masks = {}
    threads._on_each(count, lambda thread: masks.update({thread: os.sched_getaffinity(0)}))
    return [masks[thread] for thread in range(count)]

def threads_of_a_region():
    import torch
    return torch.get_num_threads()

both, before = {first, second}, os.sched_getaffinity(0)
follower.look()
assert os.sched_getaffinity(0) == before, "there is no file"

write(compute=[first], others=[second])
follower.look()
assert threads_of_a_region() == 1
assert os.sched_getaffinity(0) == {first}
assert preferred_nodes(os.getpid()) == "0"
assert os.sched_getaffinity(idle.native_id) == both

write(compute=[first, second])
follower.look()
assert threads_of_a_region() == 2
assert team(2) == [both, {second}], team(2)
follower.look()
assert team(2) == [both, {second}]

# A smaller team ends threads, and a larger one begets new ones: not all bound where the main one computes.
team(4), team(2)
assert all(mask == both for mask in team(4)[2:])

os.sched_setaffinity(0, {second})
follower.look()
assert os.sched_getaffinity(0) == {second}, "the file has not changed"

write(compute=[4000])
follower.look()
path.write_text("{")
follower.look()
write(compute=[second])
follower.look()
assert threads_of_a_region() == 1
assert os.sched_getaffinity(0) == os.sched_getaffinity(idle.native_id) == {second}
"""


def test_threads_follow_the_file(tmp_path):
    """As many threads as cores, each on its own; all others wherever the engine may; what cannot be done is told and left."""
    command = [sys.executable, "-c", SCRIPT, str(FIRST), str(SECOND), str(tmp_path / "cores")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "cannot be bound" in done.stdout + done.stderr
