"""A small daemon: owns one engine, prints its process ids once it is ready, and stays. On uvloop, as the daemon is."""

import sys
from pathlib import Path

import uvloop

from axiond.engine.process import Launch, ProcessEngine
from axiond.manifest.spec import ModelSpec
from axiond.reconcile.state import EngineKey


async def main(spec_json: str, model: str, runtime_dir: str, state_dir: str, *command: str) -> None:
    spec = ModelSpec.model_validate_json(spec_json)
    launch = Launch(EngineKey("m", spec.digest()), "m", spec, Path(model), Path(runtime_dir), Path(state_dir), command=command)
    engine = ProcessEngine(launch)
    await engine.start()
    print(*engine.pids, flush=True)
    await engine.wait()


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
