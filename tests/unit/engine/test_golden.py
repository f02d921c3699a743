import asyncio
from typing import Any

import pytest

from axiond.engine import golden as golden_module
from axiond.engine.golden import Answer, judge, text_of
from axiond.manifest.spec import GoldenPrompt


@pytest.mark.parametrize(
    ("expect", "slowest", "answer", "problem"),
    [
        ("Paris", None, Answer("It is Paris.", 4, 1.0), None),
        ("(?i)paris", None, Answer("PARIS", 1, 0.0), None),
        ("^Paris", None, Answer("It is Paris.", 4, 1.0), "failed its golden prompt: wanted a match of '^Paris', got 'It is Paris.'"),
        ("Rome", None, Answer("", 0, 0.0), "failed its golden prompt: wanted a match of 'Rome', got ''"),
        ("Rome", None, Answer("x" * 500, 9, 1.0), f"failed its golden prompt: wanted a match of 'Rome', got {'x' * 200 + '…'!r}"),
        ("a", 3.0, Answer("a", 4, 1.0), None),
        ("a", 3.1, Answer("a", 4, 1.0), "failed its golden prompt: wanted 3.1 tokens/s or more, got 3.0"),
        ("a", 9.0, Answer("a", 1, 0.0), None),
    ],
    ids=["right", "regex", "anchored", "empty", "long", "fast enough", "slow", "one token has no speed"],
)
async def test_judge(expect: str, slowest: float | None, answer: Answer, problem: str | None) -> None:
    golden = GoldenPrompt(prompt="?", expect=expect, min_tokens_per_s=slowest)
    assert await judge(golden, answer) == problem


async def test_an_expression_that_backtracks_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without holding up anything else."""
    monkeypatch.setattr(golden_module, "MATCH_TIMEOUT_S", 0.5)
    judging = asyncio.create_task(judge(GoldenPrompt(prompt="?", expect="(a+)+$"), Answer("a" * 40 + "b", 2, 1.0)))
    loop = asyncio.get_running_loop()
    longest_s, last = 0.0, loop.time()
    while not judging.done():
        await asyncio.sleep(0.01)
        longest_s, last = max(longest_s, loop.time() - last), loop.time()
    assert "took longer than 0.5 s" in str(judging.result())
    assert longest_s < 0.4


@pytest.mark.parametrize(
    ("chunk", "text"),
    [
        ({"choices": [{"delta": {"role": "assistant", "content": ""}}]}, ""),
        ({"choices": [{"delta": {"content": "a"}}]}, "a"),
        ({"choices": [{"delta": {"reasoning": "b"}}]}, "b"),
        ({"choices": [{"delta": {"reasoning_content": "c"}}]}, "c"),
        ({"choices": [{"text": "d"}]}, "d"),
        ({"choices": [], "usage": {"completion_tokens": 3}}, ""),
    ],
)
def test_text_of(chunk: dict[str, Any], text: str) -> None:
    assert text_of(chunk) == text
