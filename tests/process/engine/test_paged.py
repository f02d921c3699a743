"""Memory whose pages come later is zero from the start, and all there in the end."""

import re
import threading
from pathlib import Path

from axiond.engine.paged import STEP_BYTES, zeroed

SIZE = 3 * STEP_BYTES + 4096


def resident_bytes() -> int:
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def test_memory_is_zero_at_once_and_resident_soon() -> None:
    before, threads = resident_bytes(), set(threading.enumerate())
    memory = zeroed(SIZE)
    assert memory[:2] + memory[-2:] == bytes(4)
    memory[0] = memory[-1] = 7
    for populating in set(threading.enumerate()) - threads:
        populating.join()
    assert resident_bytes() - before > 0.95 * SIZE
    assert (memory[0], memory[-1], memory[1:-1].count(0)) == (7, 7, SIZE - 2)
