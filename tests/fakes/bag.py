"""An encoder for tests of what is built on one: texts with the same words have the same vector, unlike words are far apart."""

import re
import threading
from collections.abc import Sequence
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

DIMENSIONS = 512


class BagEncoder:
    """One token a word. Records what it reads; waits while *gate* is closed; fails while *error* is set."""

    dimensions, most_tokens = DIMENSIONS, 256

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.gate, self.is_reading = threading.Event(), threading.Event()
        self.gate.set()
        self.error: Exception | None = None

    def encode(self, texts: Sequence[str], most_tokens: int = 64) -> tuple[NDArray[np.float32], tuple[int, ...]]:
        self.calls.append(list(texts))
        self.is_reading.set()
        assert self.gate.wait(10)
        if self.error:
            raise self.error
        words = [re.findall(r"\w+", text.lower())[:most_tokens] for text in texts]
        return np.array([_vector(read) for read in words], np.float32), tuple(map(len, words))


def _vector(words: Sequence[str]) -> NDArray[np.float32]:
    vector = np.zeros(DIMENSIONS, np.float32)
    for word in words:
        vector += np.random.default_rng(crc32(word.encode())).standard_normal(DIMENSIONS, np.float32)
    return vector / max(float(np.linalg.norm(vector)), 1e-6)
