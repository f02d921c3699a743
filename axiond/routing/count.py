"""Exact token counts, by a worker process that begins with the first question and ends with the daemon."""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson

from axiond.routing.prompt import MOST_PARSED_BYTES

WORKER = (sys.executable, "-P", "-m", "axiond.routing.count_worker")
DEADLINE_S = 1.0  # the first answer takes about half of it
MOST_WAITING = 16
REST_S = 30.0


class TokenCounter:
    """
    Counts the tokens of request bodies, as the model's own tokenizer has them.

    Args:
        folder_of: where a model's files are; None while they are not on this machine.
        deadline_s: how long a request may wait for its count.
        rest_s: how long nobody counts after a worker died.
    """

    def __init__(self, folder_of: Callable[[str], Path | None], deadline_s: float = DEADLINE_S, rest_s: float = REST_S) -> None:
        self._folder_of, self._deadline_s, self._rest_s = folder_of, deadline_s, rest_s
        self._thread = ThreadPoolExecutor(1, "token counts")
        self._worker: subprocess.Popen[bytes] | None = None
        self._waiting = 0
        self._is_closed = False
        self._rests_until_s = 0.0

    async def count(self, model: str, body: bytes) -> int | None:
        """Tokens of the prompt in *body* for *model*; None where nobody can count them in time."""
        folder = self._folder_of(model)
        if folder is None or len(body) > MOST_PARSED_BYTES or self._waiting >= MOST_WAITING or self._is_closed:
            return None
        self._waiting += 1
        asked = asyncio.get_running_loop().run_in_executor(self._thread, self._ask, folder, body)
        asked.add_done_callback(self._answered)
        done, _ = await asyncio.wait((asked,), timeout=self._deadline_s)
        return asked.result() if done else None

    async def close(self) -> None:
        """End the worker, even in the middle of an answer."""
        self._is_closed = True
        if self._worker:
            self._worker.kill()
        await asyncio.to_thread(self._thread.shutdown)
        if self._worker:
            self._end(self._worker)

    def _answered(self, asked: "asyncio.Future[int | None]") -> None:
        self._waiting -= 1
        if not asked.cancelled():
            asked.exception()  # whoever waits is told; nobody may

    def _ask(self, folder: Path, body: bytes) -> int | None:
        """In the thread."""
        if self._is_closed or time.monotonic() < self._rests_until_s:
            return None
        if self._worker is None:
            environ = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
            self._worker = subprocess.Popen(WORKER, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            return _exchange(self._worker, folder, body)
        except (OSError, orjson.JSONDecodeError):  # it died; after a rest the next question begins another
            self._end(self._worker)
            self._worker, self._rests_until_s = None, time.monotonic() + self._rest_s
            return None

    def _end(self, worker: subprocess.Popen[bytes]) -> None:
        worker.kill()
        with contextlib.suppress(BrokenPipeError), worker:  # a question that it did not take
            worker.wait()


def _exchange(worker: subprocess.Popen[bytes], folder: Path, body: bytes) -> int | None:
    assert worker.stdin
    assert worker.stdout
    worker.stdin.write(orjson.dumps([str(folder), len(body)]) + b"\n" + body)
    worker.stdin.flush()
    answer: int | None = orjson.loads(worker.stdout.readline())
    return answer
