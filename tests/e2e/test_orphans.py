"""Real vLLM: whichever process is killed with SIGKILL, no process, shared memory or file remains, and soon."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from axiond.engine.process import Launch, ProcessEngine
from axiond.manifest.spec import GoldenPrompt, ModelSpec
from axiond.reconcile.state import EngineKey
from tests.fakes import owner
from tests.fakes.remains import all_ended, folder_of, remains, segments

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SPEC = ModelSpec(
    source="smollm2",
    kv_cache="256MiB",
    max_model_len=2048,
    start_timeout_s=240,
    golden=GoldenPrompt(prompt="What is the capital of France?", expect="Paris"),
)
SERVER = (sys.executable, "-P", "-m", "axiond.engine.server")
# With its own kernels off vLLM has a process for the worker, and segments to talk to it.
STOCK = SPEC.model_copy(update={"kernels": ModelSpec(source="-", kernels="off").kernels})
TITLES = {"host": "axiond.engine.host", "server": "axiond.engine.server", "core": "VLLM::EngineCore", "worker": "VLLM::Worker"}


def processes(pids: Iterable[int], spec: ModelSpec) -> dict[str, int]:
    """Name an engine's processes by their titles; the resource tracker goes without."""
    found: dict[str, int] = {}
    for pid in pids:
        title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        # The host's title holds the server's words too, but not the other way round.
        if name := next((name for name, words in TITLES.items() if words in title), None):
            found[name] = pid
    assert found.keys() == TITLES.keys() - ({"worker"} if spec is SPEC else {})
    return found


@pytest.mark.parametrize(
    ("spec", "victim", "words", "within_s"),
    [
        (SPEC, "server", "was killed by SIGKILL", 4.0),
        (SPEC, "core", "lost its process EngineCore", 6.0),
        (SPEC, "host", "lost its host, which was killed by SIGKILL", 4.0),
        (STOCK, "core", "lost its process ", 6.0),  # its worker dies with it, and may be heard of first
        (STOCK, "worker", "lost its process Vllm", 6.0),
    ],
)
async def test_nothing_remains(
    smollm2: Path, state_dir: Path, runtime_dir: Path, spec: ModelSpec, victim: str, words: str, within_s: float
) -> None:
    engine = ProcessEngine(Launch(EngineKey("m", spec.digest()), "m", spec, smollm2, runtime_dir, state_dir))
    began = time.monotonic()
    await engine.start()
    print(f"ready and proven after {time.monotonic() - began:.1f} s")
    folder, pids = folder_of(engine.endpoint), engine.pids
    assert spec is SPEC or len(segments(folder)) >= 3
    began = time.monotonic()
    os.kill(processes(pids, spec)[victim], signal.SIGKILL)
    try:
        how = await asyncio.wait_for(engine.wait(), within_s)
    finally:
        await engine.stop()
    print(f"{victim} killed: {how}; gone after {time.monotonic() - began:.2f} s")
    assert how.startswith(words)
    assert remains(folder, pids) == {}


async def test_nothing_remains_of_a_killed_daemon(smollm2: Path, state_dir: Path, runtime_dir: Path) -> None:
    arguments = (owner.__file__, STOCK.model_dump_json(exclude_defaults=True), *map(str, (smollm2, runtime_dir, state_dir)), *SERVER)
    daemon = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)
    try:
        assert daemon.stdout
        pids = [int(word) for word in (await asyncio.wait_for(daemon.stdout.readline(), 240)).split()]
        assert processes(pids, STOCK)
        (folder,) = (runtime_dir / "e").iterdir()
        assert len(segments(folder)) >= 3
        began = time.monotonic()
        daemon.kill()
        await all_ended(pids, within_s=6.0)
        print(f"daemon killed; gone after {time.monotonic() - began:.2f} s")
        assert remains(folder, pids) == {}
    finally:
        with contextlib.suppress(ProcessLookupError):
            daemon.kill()
        await daemon.wait()
