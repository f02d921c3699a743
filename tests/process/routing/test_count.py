"""Tokens are counted by a real child."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import psutil
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from axiond.routing.count import TokenCounter
from axiond.routing.count_worker import count
from axiond.routing.prompt import MOST_PARSED_BYTES

LONG_S = 60.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose tokens are words; its tokenizer would cut texts at 4."""
    tokenizer = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=100)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@asynccontextmanager
async def counter(folder: Path | None, deadline_s: float = LONG_S, rest_s: float = 0.0) -> AsyncIterator[TokenCounter]:
    made = TokenCounter(lambda model: folder if model == "m" else None, deadline_s, rest_s)
    try:
        yield made
    finally:
        await made.close()


def saying(words: int) -> bytes:
    return orjson.dumps({"prompt": "word " * words})


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        pytest.param({"prompt": "one two three four five"}, 5, id="text"),
        pytest.param({"prompt": [[1, 2, 3], [4]]}, 4, id="numbers"),
        pytest.param({"messages": [{"role": "system", "content": "a b"}, {"role": "user", "content": "c"}]}, 3 + 2 * 5 + 3, id="chat"),
        pytest.param({"messages": [{"role": "user", "content": "c"}], "tools": [1]}, 1 + 3 + 5 + 3, id="tools"),
        pytest.param({"messages": 5}, None, id="no-dialect"),
    ],
)
def test_everything_that_a_body_says_is_counted(folder: Path, body: dict[str, object], tokens: int | None) -> None:
    assert count(folder, orjson.dumps(body)) == tokens


def test_nobody_counts_without_a_tokenizer(folder: Path) -> None:
    """A model whose files have not all come yet is counted for later."""
    file = folder / "tokenizer.json"
    whole = file.read_text()
    file.write_text("{}")
    assert count(folder, saying(3)) is None
    file.unlink()
    assert count(folder, saying(3)) is None
    file.write_text(whole)
    assert count(folder, saying(3)) == 3


def workers() -> list[psutil.Process]:
    """The processes that count; other tests may have left children of their own."""
    return [child for child in psutil.Process().children() if "axiond.routing.count_worker" in child.cmdline()]


async def test_a_worker_counts_and_ends_with_the_counter(folder: Path) -> None:
    async with counter(folder) as made:
        assert await asyncio.gather(*(made.count("m", saying(words)) for words in (3, 5, 1000))) == [3, 5, 1000]
        assert await made.count("unknown", saying(3)) is None
        assert await made.count("m", saying(MOST_PARSED_BYTES)) is None
        (worker,) = workers()
    assert not psutil.pid_exists(worker.pid)
    assert await made.count("m", saying(3)) is None


async def test_a_slow_worker_is_not_waited_for(folder: Path) -> None:
    """Those that come while it is stuck are not let in without end, and once it goes on each has its own answer."""
    async with counter(folder) as made:
        assert await made.count("m", saying(1)) == 1
        (worker,) = workers()
        worker.suspend()
        made._deadline_s = 0.01
        assert await asyncio.gather(*(made.count("m", saying(2)) for _ in range(100))) == [None] * 100
        made._deadline_s = LONG_S
        worker.resume()
        while (found := await made.count("m", saying(7))) is None:  # noqa: ASYNC110  # nothing tells when those before are done
            await asyncio.sleep(0)
        assert found == 7


async def test_another_worker_follows_one_that_died(folder: Path) -> None:
    async with counter(folder) as made:
        assert await made.count("m", saying(3)) == 3
        os.kill(workers()[0].pid, signal.SIGKILL)
        assert await made.count("m", saying(3)) is None
        assert await made.count("m", saying(3)) == 3
    async with counter(folder, rest_s=LONG_S) as made:
        assert await made.count("m", saying(3)) == 3
        os.kill(workers()[0].pid, signal.SIGKILL)
        assert [await made.count("m", saying(3)) for _ in range(2)] == [None, None]
        assert workers() == []


async def test_closing_does_not_wait_for_a_stuck_worker(folder: Path) -> None:
    async with counter(folder) as made:
        assert await made.count("m", saying(1)) == 1
        workers()[0].suspend()
        asked = asyncio.create_task(made.count("m", saying(2)))
        await asyncio.sleep(0)
    assert await asked is None
    assert workers() == []
