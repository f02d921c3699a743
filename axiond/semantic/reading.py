"""What the encoder reads of a prompt: its first tokens, and where they are not clear one sample of the rest. Pure."""

from collections.abc import Sequence

from axiond.routing.decision import Verdict
from axiond.semantic.index import FIRST_TOKENS, SemanticIndex
from axiond.semantic.keywords import CUT, sample

FIRST_CHARS = 256  # about as many as 64 tokens of English have
SECOND_TOKENS = 64
SECOND_TAIL_CHARS, SECOND_MIDDLE_CHARS = 160, 120
HEAD_CHARS, MIDDLE_CHARS, TAIL_CHARS = 1024, 512, 512
WORD_CHARS = 512


def readable(text: str) -> str:
    """All that may ever be read of a text: its sample, without halves of surrogate pairs."""
    sampled = sample(text, HEAD_CHARS, MIDDLE_CHARS, TAIL_CHARS).replace(CUT, "\n")
    return sampled if sampled.isascii() else sampled.encode("utf-8", "replace").decode()


def second_reading(text: str) -> str:
    """Tail and middle of what is behind the first reading; "" where there is nothing."""
    rest = text[FIRST_CHARS:]
    if len(rest) <= SECOND_TAIL_CHARS + SECOND_MIDDLE_CHARS:
        return rest.strip()
    middle = (len(rest) - SECOND_MIDDLE_CHARS) // 2
    return f"{rest[-SECOND_TAIL_CHARS:]}\n{rest[middle : middle + SECOND_MIDDLE_CHARS]}"


def decide(index: SemanticIndex, texts: Sequence[str]) -> list[Verdict]:
    """What each text is about, in at most two calls of the encoder. Blocks for milliseconds."""
    verdicts = _read(index, texts, FIRST_TOKENS)
    unclear = {
        i: rest
        for i, verdict in enumerate(verdicts)
        if verdict.tokens >= FIRST_TOKENS and not index.is_clear(verdict) and (rest := second_reading(texts[i]))
    }
    for i, second in zip(unclear, _read(index, [*unclear.values()], SECOND_TOKENS), strict=True):
        verdicts[i] = index.merged(verdicts[i], second)
    return verdicts


def classify(index: SemanticIndex, text: str) -> Verdict:
    """What one text is about, by keywords and then by its embedding. Blocks for milliseconds."""
    verdict = index.by_keywords(text)
    if verdict.domain or index.encoder is None or not (read := readable(text)).strip():
        return verdict
    return decide(index, [read])[0]


def _read(index: SemanticIndex, texts: Sequence[str], most_tokens: int) -> list[Verdict]:
    if not texts or index.encoder is None:
        return []
    vectors, counts = index.encoder.encode(texts, most_tokens)
    return [index.by_embedding(vector, text[:WORD_CHARS], tokens) for vector, text, tokens in zip(vectors, texts, counts, strict=True)]
