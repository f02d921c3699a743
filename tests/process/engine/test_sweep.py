"""Reading /proc, where any process of the machine may have any name."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from axiond.engine.sweep import SHM, descendants, mapped_segments, members, sweep
from axiond.resources.usage import usage

ODDLY_NAMED = """
import ctypes, mmap, os, sys
ctypes.CDLL(None).prctl(15, b"\\xff)\\xfe Z (", 0, 0, 0)
with open(sys.argv[1].encode("utf-8", "surrogateescape"), "w+b") as file:
    file.truncate(4096)
    held = mmap.mmap(file.fileno(), 4096)
print("named", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def segment() -> Iterator[Path]:
    path = SHM / f"axt-{os.getpid()}-\udcff"
    yield path
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def oddly_named(segment: Path) -> Iterator[int]:
    child = subprocess.Popen([sys.executable, "-c", ODDLY_NAMED, str(segment)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout
    assert child.stdin
    with child:
        assert child.stdout.readline() == b"named\n"
        try:
            yield child.pid
        finally:
            child.kill()


def test_names_that_are_not_utf_8(segment: Path, tmp_path: Path) -> None:
    """A stranger of such a name must not end the daemon, and one in an engine is seen."""
    with oddly_named(segment) as pid:
        assert pid in descendants(os.getpid())
        assert pid in members(os.getsid(0))
        assert mapped_segments(pid) == {segment}
        assert usage([pid]).bytes > 0
        assert sweep(tmp_path / "e")
