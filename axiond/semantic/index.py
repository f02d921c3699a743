"""What tells the domains of one manifest: their keywords, and their texts as embeddings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, isfinite
from typing import TYPE_CHECKING

from axiond.manifest.routes import Domain, Semantic
from axiond.routing.decision import Stage, Verdict
from axiond.semantic.keywords import KeywordStage
from axiond.semantic.probe import NEUTRAL, Point, Probe, fit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from axiond.semantic.encoder import Encoder

FIRST_TOKENS = 64
KEYWORD_WEIGHT = 0.1
MOST_POINTS = 4000  # the solution costs their square: a second and 64 MB for so many


@dataclass(frozen=True, eq=False)
class SemanticIndex:
    """Immutable. *probe* and *encoder* are None where the manifest has no embedding model: keywords alone tell domains."""

    domains: Mapping[str, Domain]
    semantic: Semantic
    keywords: KeywordStage
    probe: Probe | None = None
    encoder: "Encoder | None" = None

    def by_keywords(self, text: str) -> Verdict:
        """
        The verdict of the keywords, in microseconds; its domain is "" where they are not sure.

        `KeywordStage` says what its scores mean.
        """
        return _verdict(self.keywords.scores(text), "keyword", lambda _: self.semantic.keyword_threshold)

    def by_embedding(self, vector: "NDArray[np.float32]", text: str, tokens: int = 0) -> Verdict:
        """
        The verdict on one reading of a prompt, in a fraction of a millisecond. `axiond.semantic.probe` says what its scores mean.

        Args:
            vector: the reading's embedding, of length 1.
            text: what was read, for its words.
            tokens: how many were read.
        """
        if self.probe is None:
            raise ValueError("an index without an embedding model has nothing to compare a vector with")
        return self._by_scores(self.probe.scores(vector, text), tokens)

    def merged(self, first: Verdict, second: Verdict) -> Verdict:
        """The verdict on a prompt whose first reading is not clear: the second's scores, or where that is neither, their mean by tokens."""
        tokens = first.tokens + second.tokens
        share = 1.0 if self.is_clear(second) else second.tokens / max(tokens, 1)
        scores = {domain: score + share * (second.scores[domain] - score) for domain, score in first.scores.items()}
        return self._by_scores(scores, tokens)

    def is_clear(self, verdict: Verdict) -> bool:
        """Whether its domain leads so far that no more has to be read."""
        return leads_by(verdict, self.semantic.margin)

    def threshold(self, domain: str) -> float:
        """The score of its embedding below which a prompt is not of this domain."""
        own = self.domains[domain].threshold
        return self.semantic.threshold if own is None else own

    def _by_scores(self, scores: Mapping[str, float], tokens: int) -> Verdict:
        return _verdict(scores, "embedding", self.threshold, tokens)


def build_index(domains: Mapping[str, Domain], semantic: Semantic, encoder: "Encoder | None") -> SemanticIndex:
    """
    Make the index. Blocks while it embeds each description, example and keyword.

    Args:
        domains: by name.
        semantic: the thresholds.
        encoder: None for keywords alone.
    """
    keywords = KeywordStage({name: domain.keywords for name, domain in domains.items()})
    points = points_of(domains)
    if encoder is None or not points:
        return SemanticIndex(domains, semantic, keywords)
    points += [Point(text, "") for text in NEUTRAL]
    vectors, _ = encoder.encode([point.text for point in points], FIRST_TOKENS)
    if not isfinite(vectors.sum()):
        raise ValueError("the embedding model answers with what is no number; fetch it again")
    return SemanticIndex(domains, semantic, keywords, fit(points, vectors), encoder)


def points_of(domains: Mapping[str, Domain], most: int = MOST_POINTS) -> list[Point]:
    """What defines the domains. Where there were more than *most*, several keywords share a point."""
    texts = sum(len(domain.examples) + 1 for domain in domains.values())
    room = max(most - texts - len(domains), 1)
    together = max(1, ceil(sum(len(domain.keywords) for domain in domains.values()) / room))
    points = []
    for name, domain in domains.items():
        points += [Point(text, name) for text in (domain.description, *domain.examples) if text.strip()]
        shared = [domain.keywords[at : at + together] for at in range(0, len(domain.keywords), together)]
        points += [Point(", ".join(keywords), name, KEYWORD_WEIGHT) for keywords in shared]
    return points


def best_of(scores: Mapping[str, float], threshold: Callable[[str], float]) -> tuple[str, float]:
    """The best domain among those that reach their threshold, and its score; else "", and the best score."""
    domain = max((name for name, score in scores.items() if score >= threshold(name)), key=scores.__getitem__, default="")
    return domain, scores[domain] if domain else max(scores.values(), default=0.0)


def leads_by(verdict: Verdict, margin: float) -> bool:
    """Whether a verdict names a domain, and its score is *margin* above all others."""
    ranked = sorted(verdict.scores.values(), reverse=True)
    return verdict.domain != "" and (len(ranked) == 1 or ranked[0] - ranked[1] >= margin)


def _verdict(scores: Mapping[str, float], stage: Stage, threshold: Callable[[str], float], tokens: int = 0) -> Verdict:
    return Verdict(*best_of(scores, threshold), stage, scores, tokens)
