"""Asking a child about engine arguments; the child is a stand-in."""

import sys

import pytest

from axiond.engine import check
from axiond.engine.check import EngineCheckFailed, check_engine_args
from axiond.manifest.spec import ModelSpec

MODELS = {"a": ModelSpec(source="s"), "b": ModelSpec(source="s", engine_args={"seed": 3})}


def child(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", f"import json, sys\n{code}")


async def test_verdicts_go_to_their_models() -> None:
    judge = "for line in sys.stdin: print(json.dumps('no seeds' if '--seed=3' in json.loads(line) else None))"
    assert await check_engine_args(MODELS, child(judge)) == {"b": "no seeds"}


async def test_nothing_to_check_starts_nothing() -> None:
    assert await check_engine_args({}, ("/no/such/command",)) == {}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("sys.exit('No module named vllm')", "ended with code 1: No module named vllm"),
        ("print('null')", "did not answer for every model"),
        ("sys.exit(0)", "did not answer for every model"),
    ],
)
async def test_a_child_that_cannot_answer(code: str, words: str) -> None:
    with pytest.raises(EngineCheckFailed, match=words):
        await check_engine_args(MODELS, child(code))


async def test_a_child_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "DEADLINE_S", 0.5)
    with pytest.raises(EngineCheckFailed, match=r"did not answer within 0\.5 s"):
        await check_engine_args(MODELS, child("import time; time.sleep(60)"))
