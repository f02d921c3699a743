"""
The second stage's arithmetic: kernel regression on the texts that define the domains. Deterministic.

Each defining text is a point: 1 for its domain, 0 for the others; a few neutral sentences are 0 for all. Two texts are
alike by the cosine of their embeddings, sharpened, and by the rare words and word beginnings that they share. The score
of a prompt is the smooth function through these points, at the prompt: about 1 for a text like those of the domain and
unlike all others, about 0 for one unlike everything. It is the mean of a Gaussian process, solved once.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import TYPE_CHECKING, Any

from axiond.routing.words import fold

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

_WORD = re.compile(r"\w+")
SHARPNESS = 2.0
WORDS = 1.0
NOISE = 0.3
SHORTEST_WORD, BEGINNING = 3, 5
ROWS_AT_ONCE = 256
MOST_STEPS, EXACT_TO, NOT_ZERO = 300, 1e-4, 1e-30

NEUTRAL = (
    "What time is it?", "Thank you very much for your help.", "It rained all day yesterday.", "Please write a short text about this.",
    "Can you explain that again?", "I do not know what to do.", "Where can I find more about it?", "She gave me the red one.",
    "Give me five ideas.", "What do you think of this?", "¿Qué hora es?", "Muchas gracias por tu ayuda.", "Ayer llovió todo el día.",
    "Escribe un texto breve sobre esto, por favor.", "¿Me lo puedes explicar otra vez?", "No sé qué hacer.",
    "¿Dónde encuentro más información?", "Ella me dio el rojo.", "Dame cinco ideas.", "¿Qué opinas de esto?",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Point:
    """A text that defines a domain; "" for none. A light one counts less."""

    text: str
    domain: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Probe:
    """*vectors* are the points' embeddings, *pull* what each adds to each domain; *words* and *word_pull* the same for words."""

    domains: tuple[str, ...]
    vectors: "Floats"
    pull: "Floats"
    words: Mapping[str, tuple[int, float]]
    word_pull: "Floats"

    def scores(self, vector: "Floats", text: str) -> dict[str, float]:
        """The score of every domain, in [0, 1]."""
        import numpy as np

        # einsum, because a product by BLAS wakes a thread on every core.
        alike = _sharpen(np, np.einsum("ij,j->i", self.vectors, vector))
        total = np.einsum("i,ij->j", alike, self.pull)
        known = [self.words[word] for word in _words(text) if word in self.words]
        if known:
            rows, rarities = np.array([row for row, _ in known]), np.array([rarity for _, rarity in known], np.float32)
            rarities /= np.sqrt(np.square(rarities).sum())
            total += WORDS * np.einsum("i,ij->j", rarities, self.word_pull[rows])
        return dict(zip(self.domains, np.clip(total, 0, 1).tolist(), strict=True))


def fit(points: Sequence[Point], vectors: "Floats") -> Probe:
    """
    Solve for the points' pull.

    Args:
        points: at least one.
        vectors: their embeddings of length 1, shape (points, dimensions).
    """
    import numpy as np

    domains = tuple(dict.fromkeys(point.domain for point in points if point.domain))
    targets = np.array([[point.domain == domain for domain in domains] for point in points], np.float32)
    words, holders = _index_words([_words(point.text) for point in points])
    kernel = vectors @ vectors.T
    for at in range(0, len(points), ROWS_AT_ONCE):  # of a kernel of 64 MB there are no copies
        kernel[at : at + ROWS_AT_ONCE] = _sharpen(np, kernel[at : at + ROWS_AT_ONCE])
    for rows, shares in holders:
        for at in range(0, len(rows), ROWS_AT_ONCE):
            part = slice(at, at + ROWS_AT_ONCE)
            kernel[np.ix_(rows[part], rows)] += WORDS * np.outer(shares[part], shares)
    kernel[np.diag_indices(len(points))] += NOISE / np.array([point.weight for point in points], np.float32)
    pull = _solve(np, kernel, targets)
    word_pull = np.array([shares @ pull[rows] for rows, shares in holders], np.float32).reshape(len(holders), len(domains))
    return Probe(domains, vectors, pull, words, word_pull)


def _sharpen(np: Any, cosines: Any) -> Any:
    """0 for a cosine of 0, 1 for 1, and less than the cosine in between."""
    return (np.exp(SHARPNESS * cosines) - 1) / np.float32(exp(SHARPNESS) - 1)


def _solve(np: Any, matrix: Any, right: Any) -> Any:
    """Conjugate gradients, each column by itself: the noise keeps the matrix far from singular, so a few dozen steps do."""
    diagonal = matrix.diagonal()[:, None]
    solution, rest = np.zeros_like(right), right.copy()
    step = rest / diagonal
    size = (rest * step).sum(0)
    for _ in range(MOST_STEPS):
        image = matrix @ step
        length = size / np.maximum((step * image).sum(0), NOT_ZERO)
        solution += length * step
        rest -= length * image
        if np.abs(rest).max() < EXACT_TO:
            break
        scaled = rest / diagonal
        before, size = size, (rest * scaled).sum(0)
        step = scaled + size / np.maximum(before, NOT_ZERO) * step
    return solution


def _index_words(texts: Sequence[Sequence[str]]) -> "tuple[dict[str, tuple[int, float]], list[tuple[list[int], Floats]]]":
    """Each word's number and rarity; and by that number, the texts that hold it and its share of each."""
    import numpy as np

    rows: dict[str, list[int]] = {}
    for row, words in enumerate(texts):
        for word in words:
            rows.setdefault(word, []).append(row)
    known = {word: (number, log(1 + len(texts) / len(holding))) for number, (word, holding) in enumerate(rows.items())}
    lengths = np.array([sum(known[word][1] ** 2 for word in words) for words in texts], np.float32) ** 0.5
    return known, [(holding, known[word][1] / lengths[holding]) for word, holding in rows.items()]


def _words(text: str) -> list[str]:
    """A text's words, and how the longer ones begin, which inflected forms share; each once, in order."""
    words = [word for word in _WORD.findall(fold(text)) if len(word) >= SHORTEST_WORD]
    return list(dict.fromkeys((*words, *(f"{word[:BEGINNING]}*" for word in words if len(word) > BEGINNING))))
