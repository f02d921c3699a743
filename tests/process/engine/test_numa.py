import os
import subprocess
import sys
from pathlib import Path

import pytest

from axiond.numa import move_memory, preferred_nodes

CHILD = "import sys; from axiond.numa import *; prefer_memory({0}); print('x', flush=True); sys.stdin.read()"


def test_a_process_prefers_its_nodes_and_its_memory_moves_there():
    """Node 0 is everywhere; the kernel's own words are read back."""
    if not Path("/proc/self/numa_maps").exists():
        pytest.skip("this kernel knows no NUMA")
    assert preferred_nodes(os.getpid()) == ""
    with subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdout.readline() == b"x\n"
        assert preferred_nodes(child.pid) == "0"
        move_memory(child.pid, {0}, {0})
        child.communicate(timeout=10)
    assert preferred_nodes(child.pid) == ""
    with pytest.raises(ProcessLookupError):
        move_memory(child.pid, {0}, {0})
