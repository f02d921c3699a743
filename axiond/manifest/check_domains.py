"""Domains that no prompt can have, or that say nothing."""

from collections.abc import Iterator, Mapping, Sequence

from axiond.errors import SourceError
from axiond.manifest.check_when import unknown_domain
from axiond.manifest.clash import Clash, Known
from axiond.manifest.document import KeyPath
from axiond.manifest.nearest import quoted
from axiond.manifest.routes import Domain
from axiond.routing.words import fold
from axiond.sources.source import parse_encoder

NO_KEYWORD = 0.5  # as much counts for no domain, see semantic.keywords
MOST_TEXTS = 3000  # what tells them apart takes memory by their square: 64 MB


def check_domains(known: Known) -> Iterator[Clash]:
    """Yield what is wrong with domains, with how they are found, and with what models say of them."""
    encoder = known.semantic.embedding_model if known.semantic else ""
    if encoder:
        try:
            parse_encoder(encoder)
        except SourceError as exc:
            yield Clash(("semantic", "embedding_model"), exc.problem)
    for name, domain in known.domains.items():
        yield from _check_text(("domains", name), domain, has_encoder=encoder is not None)
        if known.semantic and encoder is None and domain.keywords:
            yield from _check_keywords(("domains", name, "keywords"), domain.keywords, known.semantic.keyword_threshold)
    if encoder:
        yield from _check_number(known.domains)
    yield from _check_examples(known.domains)
    for name, spec in known.models.items():
        if isinstance(spec, Mapping) and isinstance(fit := spec.get("fit"), Mapping):
            yield from _check_fit(("models", name, "fit"), fit, known)


def _check_text(at: KeyPath, domain: Domain, *, has_encoder: bool) -> Iterator[Clash]:
    described = any(_is_text(text) for text in (domain.description, *domain.examples))
    keywords = any(_is_text(keyword) for keyword in domain.keywords)
    if not described and not keywords:
        yield Clash(at, "has no text that could tell it", "give it a description, examples or keywords")
    elif not keywords and not has_encoder:
        what = "can never be found: it has no keywords, and its text is of use to an embedding model only"
        yield Clash(at, what, "give it keywords, or set semantic.embedding_model")


def _check_keywords(at: KeyPath, keywords: Sequence[str], threshold: float) -> Iterator[Clash]:
    """Without an embedding model, a domain has to be found by keywords alone; here all of them stand in a prompt, and no others."""
    words = sum(len(keyword.split()) for keyword in set(map(fold, keywords)))
    most = words / (words + NO_KEYWORD)
    if words and most < threshold:
        what = f"can never be found: all its keywords together score {most:.2f}, and semantic.keyword_threshold is {threshold:g}"
        yield Clash(at, what, "give it more keywords, lower the threshold, or set semantic.embedding_model")


def _check_number(domains: Mapping[str, Domain]) -> Iterator[Clash]:
    texts = 0
    for name, domain in domains.items():
        texts += 1 + len(domain.examples)
        if texts > MOST_TEXTS:
            what = f"is one too many, or has too many examples: all domains and examples together may be {MOST_TEXTS:,}"
            yield Clash(("domains", name), what, "leave some out: a few dozen examples tell a domain")
            return


def _check_examples(domains: Mapping[str, Domain]) -> Iterator[Clash]:
    first: dict[str, KeyPath] = {}
    for name, domain in domains.items():
        for index, example in enumerate(domain.examples):
            at: KeyPath = ("domains", name, "examples", index)
            other = first.setdefault(" ".join(example.casefold().split()), at)
            if other is not at:
                what = "stands here twice" if other[1] == name else f"is an example of the domain {quoted(str(other[1]))} too"
                yield Clash(at, what, "remove one: it cannot tell two domains apart" if other[1] != name else "remove one", other)


def _check_fit(at: KeyPath, fit: Mapping[str, object], known: Known) -> Iterator[Clash]:
    for domain, value in fit.items():
        if known.is_complete and domain not in known.domain_names:
            yield Clash((*at, domain), f"there is no domain {quoted(domain)}", unknown_domain(domain, known.domain_names))
        elif isinstance(value, int | float) and not 0 <= value <= 1:
            yield Clash((*at, domain), f"must be from 0 to 1, not {value:g}", "1 is as good as a model can be")


def _is_text(text: str) -> bool:
    return any(character.isalnum() for character in text)
