import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from axiond.engine.hosted import Liveness
from axiond.engine.process import Launch, ProcessEngine
from axiond.manifest.spec import ModelSpec
from axiond.reconcile.state import EngineKey

FAKES = Path(__file__).parents[2] / "fakes"
FAKE = (sys.executable, str(FAKES / "fake_engine.py"))
FAMILY = (sys.executable, str(FAKES / "family.py"))

Build = Callable[..., ProcessEngine]


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    """A short path: Unix sockets live below it."""
    with tempfile.TemporaryDirectory(prefix="ax", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
async def build(runtime_dir: Path, tmp_path: Path) -> AsyncIterator[Build]:
    """Make engines on the fake one; whatever still runs at the end of the test is stopped."""
    engines = []

    def make(command: tuple[str, ...] = FAKE, **fields: Any) -> ProcessEngine:
        on_line, liveness = fields.pop("on_line", lambda _line: None), fields.pop("liveness", Liveness())
        arguments = fields.pop("engine_args", {})
        spec = ModelSpec(source="/model", engine_args=arguments, **fields)
        launch = Launch(EngineKey("m", spec.digest()), "m", spec, tmp_path, runtime_dir, tmp_path, command=command)
        engines.append(ProcessEngine(launch, on_line, liveness))
        return engines[-1]

    yield make
    for engine in engines:
        with contextlib.suppress(Exception):
            await engine.stop()
