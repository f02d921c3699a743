"""What a fork server may hold instead of vLLM: a fake engine with vLLM's process tree, all of it forked."""

import multiprocessing
import runpy
import signal
import sys
from multiprocessing import shared_memory
from pathlib import Path

from axiond.engine.plugin import guard, guard_forked

FAKE_ENGINE = Path(__file__).parent / "fake_engine.py"
fork = multiprocessing.get_context("fork")


def prepare() -> None:
    """There is nothing to import."""


def serve(argv: tuple[str, ...]) -> int:
    guard()
    guard_forked()
    core = fork.Process(target=be_core, name="EngineCore")
    core.start()
    sys.argv = [str(FAKE_ENGINE), *argv]
    runpy.run_path(str(FAKE_ENGINE), run_name="__main__")
    return 0


def be_core() -> None:
    kept = shared_memory.SharedMemory(create=True, size=4096)
    fork.Process(target=be_worker, name="Worker").start()
    signal.pause()
    del kept


def be_worker() -> None:
    kept = shared_memory.SharedMemory(create=True, size=4096)
    signal.pause()
    del kept
