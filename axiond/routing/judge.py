"""What a verdict on a prompt hung on, so that it can be given again under other thresholds without the prompt. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b

import orjson

from axiond.routing.decision import Verdict
from axiond.semantic.index import FIRST_TOKENS, SemanticIndex, best_of, leads_by


@dataclass(frozen=True, slots=True)
class Judge:
    """*texts* stands for the embedding model and for all that domains say; the rest are thresholds."""

    texts: bytes
    has_encoder: bool
    keyword_threshold: float
    margin: float
    thresholds: Mapping[str, float]

    @classmethod
    def of(cls, index: SemanticIndex) -> "Judge":
        semantic = index.semantic
        said = {name: [domain.description, domain.examples, domain.keywords] for name, domain in index.domains.items()}
        texts = orjson.dumps([semantic.embedding_model, index.encoder is not None, said], option=orjson.OPT_SORT_KEYS)
        return cls(
            blake2b(texts, digest_size=16).digest(),
            index.encoder is not None,
            semantic.keyword_threshold,
            semantic.margin,
            {name: index.threshold(name) for name in index.domains},
        )


def again(verdict: Verdict, then: Judge, now: Judge) -> Verdict | None:
    """The verdict that *now* gives on the prompt on which *then* gave *verdict*; None where that cannot be told."""
    if then == now:
        return verdict
    if then.texts != now.texts:
        return None
    if verdict.stage == "embedding":
        return _by_embedding(verdict, then, now)
    if then.has_encoder and not verdict.domain:
        return None  # the embedding did not come in time
    found = _best(verdict, dict.fromkeys(verdict.scores, now.keyword_threshold))
    return found if found.domain or not now.has_encoder else None


def _by_embedding(verdict: Verdict, then: Judge, now: Judge) -> Verdict | None:
    if now.keyword_threshold < then.keyword_threshold:
        return None  # the keywords may be sure now
    if verdict.tokens > FIRST_TOKENS:
        return None  # what was read beyond the first tokens hung on the thresholds
    found = _best(verdict, now.thresholds)
    return found if verdict.tokens < FIRST_TOKENS or leads_by(found, now.margin) else None


def _best(verdict: Verdict, thresholds: Mapping[str, float]) -> Verdict:
    domain, score = best_of(verdict.scores, thresholds.__getitem__)
    return replace(verdict, domain=domain, score=score)
