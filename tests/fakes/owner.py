"""
A small daemon: owns one engine, prints its process ids once it is ready, and stays. On uvloop, as the daemon is.

With `--fork MODULE` before all else the engine is forked, from a process that holds that module, whose id comes last.
"""

import asyncio
import os
import sys
from pathlib import Path

import uvloop

from axiond.engine.forkclient import ForkServer
from axiond.engine.process import Launch, ProcessEngine
from axiond.engine.spawn import PLAIN
from axiond.manifest.spec import ModelSpec
from axiond.reconcile.state import EngineKey


async def main(preload: str, spec_json: str, model: str, runtime_dir: str, state_dir: str, *command: str) -> None:
    spec = ModelSpec.model_validate_json(spec_json)
    launch = Launch(EngineKey("m", spec.digest()), "m", spec, Path(model), Path(runtime_dir), Path(state_dir), command=command)
    forks = ForkServer(os.environ, Path(runtime_dir), preload) if preload else None
    keeping = asyncio.create_task(forks.keep()) if forks else None
    engine = ProcessEngine(launch, spawner=forks or PLAIN)
    await engine.start()
    print(*engine.pids, *([forks.pid] if forks else []), flush=True)
    await engine.wait()
    del keeping


if __name__ == "__main__":
    is_forked = sys.argv[1] == "--fork"
    uvloop.run(main(*sys.argv[2:]) if is_forked else main("", *sys.argv[1:]))
