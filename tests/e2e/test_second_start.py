"""What a start leaves for the next one: packed weights and compiled code. Real engines."""

import asyncio
import re
from pathlib import Path

import pytest

from axiond.report import KernelsReport
from bench.models import make
from tests.e2e.test_kernels import MODELS, TEXT, asked, launch

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

BODY = {"prompt": TEXT[:600], "temperature": 0, "max_tokens": 24, "logprobs": 5, "ignore_eos": True}


async def start(state_dir: Path, runtime_dir: Path, weights: str) -> tuple[object, KernelsReport]:
    """Start and ask an engine, and wait until it says this of its weights."""
    engine = launch(make(MODELS, "tiny-awq"), runtime_dir, state_dir, enforce_eager=False)
    async with asked(engine) as ask:
        answer = await ask("/v1/completions", BODY)
        for _ in range(300):
            report = KernelsReport.model_validate_json(engine.kernels() or b"")
            if re.fullmatch(weights, report.weights):
                break
            await asyncio.sleep(0.1)
    return answer["choices"][0]["logprobs"], report


async def test_the_second_start_packs_and_compiles_nothing_and_answers_the_same(tmp_path: Path, runtime_dir: Path) -> None:
    """To the last bit of every probability, compiled with axiond's kernels in it."""
    first, fresh = await start(tmp_path, runtime_dir, r"packed at this start and kept, \d+ MiB")
    assert fresh.mode == "compiled at this start"
    assert len(list((tmp_path / "cache" / "packed").iterdir())) == 1
    second, loaded = await start(tmp_path, runtime_dir, r"mapped, \d+ MiB")
    assert loaded.mode == "compiled at an earlier start"
    assert {op.op: op.layers for op in loaded.ops} == {op.op: op.layers for op in fresh.ops}
    assert second == first
