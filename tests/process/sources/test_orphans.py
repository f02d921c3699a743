import asyncio
import sys
from pathlib import Path

import psutil
import pytest

from tests.fakes.silent import silent_server

FETCH = """
import asyncio, sys
from pathlib import Path
from axiond.sources.fetch import fetch
asyncio.run(fetch(sys.argv[1], None, Path(sys.argv[2]), lambda progress: None))
"""


async def test_nothing_outlives_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed where it stands: the worker ends, and so does pip, its child, which hangs on an index that says nothing."""
    async with silent_server() as (address, asked):
        monkeypatch.setenv("PIP_INDEX_URL", f"{address}/simple")
        daemon = await asyncio.create_subprocess_exec(sys.executable, "-c", FETCH, "pypi:tiny-model#hf", str(tmp_path / "state"))
        await asyncio.wait_for(asked.wait(), 30)
        started = psutil.Process(daemon.pid).children(recursive=True)
        daemon.kill()
        await daemon.wait()
        assert len(started) == 2
        _, alive = await asyncio.to_thread(psutil.wait_procs, started, 10)
        assert alive == []
