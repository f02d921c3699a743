"""A fake engine with vLLM's process tree: a server that spawns a core that spawns a worker, with shared memory and files."""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from multiprocessing import shared_memory
from pathlib import Path

from axiond.engine.plugin import guard

guard()

FAKE_ENGINE = Path(__file__).parent / "fake_engine.py"
spawn = multiprocessing.get_context("spawn")


def litter() -> tuple[object, ...]:
    """What vLLM leaves when it is killed."""
    descriptor, _ = tempfile.mkstemp(prefix="vllm_dist_")
    os.close(descriptor)
    return shared_memory.SharedMemory(create=True, size=4096), spawn.Lock()


def work() -> None:
    kept = litter()
    signal.pause()
    del kept


def be_core() -> None:
    kept = litter()
    worker = spawn.Process(target=work, name="Worker")
    worker.start()
    signal.pause()
    del kept


def main() -> None:
    core = spawn.Process(target=be_core, name="EngineCore")
    core.start()
    if "--stranger" in sys.argv:
        # It has no mark in its environment, and its parent is gone.
        subprocess.run(["sh", "-c", "sleep 600 & exit"], env={"PATH": os.environ["PATH"]}, check=True)
    try:
        runpy.run_path(str(FAKE_ENGINE), run_name="__main__")
    finally:
        os._exit(0)


if __name__ == "__main__":
    sys.argv[0] = str(FAKE_ENGINE)
    main()
