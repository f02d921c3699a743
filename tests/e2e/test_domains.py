"""
The domains of `etc/axiond/routing.toml` on labelled prompts, with the real embedding model.

The prompts were written by somebody who had not seen the domains. Floors are a little below what was measured, see
`bench/results/routing.md`.
"""

import asyncio
import platform
from pathlib import Path

import pytest

from axiond.semantic.encoder import Encoder
from axiond.semantic.index import SemanticIndex, build_index
from axiond.sources.fetch import fetch_encoder
from bench.domains import ENCODER, MULTILINGUAL, Guess, count, groups, guesses, manifest, prompts

UNSHARED, UNSHARED_ES = (f"no word shared with examples of its domain, {language}" for language in ("English", "Spanish"))


def index_by(source: str, state_dir: Path) -> SemanticIndex:
    encoder = Encoder.load(asyncio.run(fetch_encoder(source, state_dir)))
    return build_index(manifest().domains, manifest().semantic, encoder)


@pytest.fixture(scope="module")
def index(state_dir: Path) -> SemanticIndex:
    return index_by(ENCODER, state_dir)


@pytest.fixture(scope="module")
def told(index: SemanticIndex) -> dict[str, list[Guess]]:
    return guesses(index, prompts())


def test_the_labelled_prompts() -> None:
    labelled = prompts()
    assert len({prompt.text for prompt in labelled}) == len(labelled) >= 300
    assert {(prompt.domain, prompt.lang) for prompt in labelled} == {
        (domain, lang) for domain in manifest().domains for lang in ("en", "es")
    }


@pytest.fixture(scope="module")
def told_by_multilingual(state_dir: Path) -> dict[str, list[Guess]]:
    return guesses(index_by(MULTILINGUAL, state_dir), prompts())


@pytest.mark.parametrize(
    ("stage", "group", "floor"),
    [
        ("embeddings alone", "English", 0.91),
        ("embeddings alone", "Spanish", 0.80),
        ("both", "English", 0.91),
        ("both", "Spanish", 0.80),
        ("both", UNSHARED, 0.82),
    ],
)
def test_accuracy(told: dict[str, list[Guess]], stage: str, group: str, floor: float) -> None:
    belongs = groups(manifest().domains)[group]
    assert count([guess for guess in told[stage] if belongs(guess.prompt)]).accuracy >= floor


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the package has a wheel for x86-64 alone")
@pytest.mark.parametrize(("group", "floor"), [("English", 0.92), ("Spanish", 0.89), (UNSHARED, 0.80), (UNSHARED_ES, 0.80)])
def test_accuracy_of_a_multilingual_model(told_by_multilingual: dict[str, list[Guess]], group: str, floor: float) -> None:
    belongs = groups(manifest().domains)[group]
    assert count([guess for guess in told_by_multilingual["both"] if belongs(guess.prompt)]).accuracy >= floor


def test_keywords_that_are_sure_are_right(told: dict[str, list[Guess]]) -> None:
    found = count(told["keywords alone"])
    assert found.right >= 0.2 * found.all
    assert found.wrong <= 0.05 * found.right


def test_every_example_is_told(index: SemanticIndex) -> None:
    for name, domain in index.domains.items():
        assert index.encoder
        vectors, tokens = index.encoder.encode(domain.examples)
        told = [index.by_embedding(*read).domain for read in zip(vectors, domain.examples, tokens, strict=True)]
        assert told.count(name) >= 0.95 * len(told)
