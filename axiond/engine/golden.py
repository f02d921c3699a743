"""The golden prompt: one greedy question that a new engine has to answer before it takes requests."""

import asyncio
import json
import sys
import time
from dataclasses import dataclass
from typing import Any

import aiohttp

from axiond.manifest.spec import GoldenPrompt

SHOWN_CHARACTERS = 200
MATCH_TIMEOUT_S = 5.0
MATCHER = "import json, re, sys; print(bool(re.search(*json.load(sys.stdin))))"


@dataclass(frozen=True, slots=True)
class Answer:
    """*decode_s* runs from the first token to the last."""

    text: str
    tokens: int
    decode_s: float

    @property
    def tokens_per_s(self) -> float | None:
        """Decoding speed; None for fewer than two tokens."""
        return (self.tokens - 1) / self.decode_s if self.tokens > 1 and self.decode_s > 0 else None


class GoldenRequestFailed(Exception):
    """The engine did not answer the golden prompt at all; the message says what it did instead."""


async def judge(golden: GoldenPrompt, answer: Answer) -> str | None:
    """Say what is wrong with an answer; None if nothing."""
    is_found = await is_match(golden.expect, answer.text)
    if is_found is None:
        return f"failed its golden prompt: looking for {golden.expect!r} took longer than {MATCH_TIMEOUT_S:g} s: write a simpler expression"
    if not is_found:
        got = answer.text if len(answer.text) <= SHOWN_CHARACTERS else answer.text[:SHOWN_CHARACTERS] + "…"
        return f"failed its golden prompt: wanted a match of {golden.expect!r}, got {got!r}"
    speed = answer.tokens_per_s
    if golden.min_tokens_per_s and speed is not None and speed < golden.min_tokens_per_s:
        return f"failed its golden prompt: wanted {golden.min_tokens_per_s:g} tokens/s or more, got {speed:.1f}"
    return None


async def is_match(pattern: str, text: str) -> bool | None:
    """
    Look for a regular expression in a child process; None if it takes too long.

    One that backtracks runs for years, holds the interpreter's lock meanwhile, and cannot be interrupted.
    """
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(sys.executable, "-I", "-S", "-c", MATCHER, stdin=pipe, stdout=pipe)
    try:
        async with asyncio.timeout(MATCH_TIMEOUT_S):
            found, _ = await child.communicate(json.dumps([pattern, text]).encode())
    except TimeoutError:
        return None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return found.startswith(b"True")


async def ask(http: aiohttp.ClientSession, base_url: str, model: str, golden: GoldenPrompt) -> Answer:
    """Ask an engine its golden prompt, as a chat, or as plain text where the model has no chat template."""
    chat = {"messages": [{"role": "user", "content": golden.prompt}]}
    try:
        return await _stream(http, f"{base_url}/v1/chat/completions", model, golden, chat)
    except GoldenRequestFailed as exc:
        if "chat template" not in str(exc):
            raise
    return await _stream(http, f"{base_url}/v1/completions", model, golden, {"prompt": golden.prompt})


async def _stream(http: aiohttp.ClientSession, url: str, model: str, golden: GoldenPrompt, question: dict[str, Any]) -> Answer:
    body = {
        **question, "model": model, "temperature": 0, "max_tokens": golden.max_tokens,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    text, tokens, first, last = "", 0, 0.0, 0.0
    # The start timeout bounds it.
    async with http.post(url, json=body, timeout=aiohttp.ClientTimeout()) as response:
        if response.status != 200:
            raise GoldenRequestFailed(f"HTTP {response.status}: {(await response.text())[:SHOWN_CHARACTERS]}")
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            try:
                chunk = json.loads(line[6:])
                piece = text_of(chunk)
                tokens = (chunk.get("usage") or {}).get("completion_tokens") or tokens
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as exc:
                raise GoldenRequestFailed(f"what it streams is no completion: {line[:SHOWN_CHARACTERS]!r}") from exc
            if "error" in chunk:
                raise GoldenRequestFailed(str(chunk["error"])[:SHOWN_CHARACTERS])
            if piece:
                text, last = text + piece, time.monotonic()
                first = first or last
    return Answer(text, tokens, last - first)


def text_of(chunk: dict[str, Any]) -> str:
    """Read what one streamed chunk adds to the answer, reasoning included."""
    choice = (chunk.get("choices") or [{}])[0]
    delta = choice.get("delta") or {}
    return str(delta.get("reasoning") or delta.get("reasoning_content") or delta.get("content") or choice.get("text") or "")
