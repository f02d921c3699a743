"""Counts tokens in a process of its own: to load a tokenizer holds Python's lock for a tenth of a second and more."""

import signal
import sys
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import orjson
from tokenizers import Tokenizer

from axiond.routing.prompt import parse
from axiond.routing.tokens import ANSWER_TOKENS, TURN_TOKENS

MOST_TOKENIZERS = 8


def serve(questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer, until there are no more questions: a line with a folder and the size of a body, which follows; then a number or null."""
    while line := questions.readline():
        folder, size = orjson.loads(line)
        body = questions.read(size)
        answers.write(orjson.dumps(count(Path(folder), body)) + b"\n")
        answers.flush()


def count(folder: Path, body: bytes) -> int | None:
    """
    Tokens of everything *body* says, for the model in *folder*; None without a tokenizer.json, or for a body that no dialect sends.

    What a chat template puts around each turn is counted as in ChatML, Llama 3 and Gemma; images are not.
    """
    try:
        tokenizer, said = _tokenizer(folder), parse(body)
    except Exception:  # whatever is wrong with a tokenizer, its library raises just this
        return None
    texts = [*(text for _, text in said.turns), *said.rest]
    tokens = sum(map(len, tokenizer.encode_batch_fast(texts, add_special_tokens=False))) + said.token_ids
    return tokens + (len(said.turns) * TURN_TOKENS + ANSWER_TOKENS if said.is_chat else 0)


@lru_cache(MOST_TOKENIZERS)
def _tokenizer(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the daemon's processes too
    serve(sys.stdin.buffer, sys.stdout.buffer)
