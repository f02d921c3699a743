"""The classifier: what it remembers, shares, gives up and survives."""

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Iterator

import pytest

from axiond.manifest.routes import Domain, Semantic
from axiond.semantic.classify import MOST_TOGETHER, Classifier
from axiond.semantic.index import SemanticIndex, build_index
from tests.fakes.bag import BagEncoder

DOMAINS = {
    "code": Domain(examples=("sort the list", "the loop never ends"), keywords=("python", "compiler")),
    "law": Domain(examples=("sue my landlord",), keywords=("judge", "court")),
}
SOON_S = 0.2


def index_of(encoder: BagEncoder | None, cache_entries: int = 100) -> SemanticIndex:
    index = build_index(DOMAINS, Semantic(cache_entries=cache_entries), encoder)
    if encoder:
        encoder.calls.clear()
        encoder.is_reading.clear()
    return index


@pytest.fixture
def encoder() -> Iterator[BagEncoder]:
    made = BagEncoder()
    yield made
    made.gate.set()


@pytest.fixture
def index(encoder: BagEncoder) -> SemanticIndex:
    return index_of(encoder)


@pytest.fixture
async def classifier() -> AsyncIterator[Classifier]:
    made = Classifier(deadline_s=5.0)
    yield made
    made.close()


async def begin(classifier: Classifier, index: SemanticIndex, encoder: BagEncoder, text: str) -> "asyncio.Task[object]":
    """Ask, and wait until the thread is at it; it stays there until the gate opens."""
    encoder.gate.clear()
    encoder.is_reading.clear()
    asked = asyncio.create_task(classifier.classify(index, text))
    await asyncio.to_thread(encoder.is_reading.wait, 5)
    return asked


async def test_sure_keywords_need_no_embedding(classifier: Classifier, index: SemanticIndex, encoder: BagEncoder) -> None:
    verdict = await classifier.classify(index, "a python compiler")
    assert (verdict.domain, verdict.stage, verdict.tokens) == ("code", "keyword", 0)
    assert 0 < verdict.took_s < 1
    assert encoder.calls == []
    assert classifier.stages == {"keyword": 1}


async def test_unsure_keywords_are_followed_by_an_embedding(classifier: Classifier, index: SemanticIndex) -> None:
    verdict = await classifier.classify(index, "please sort the judge list")
    assert (verdict.domain, verdict.stage, verdict.tokens, verdict.is_cached) == ("code", "embedding", 5, False)
    assert (classifier.stages, classifier.hits, classifier.misses) == ({"embedding": 1}, 0, 1)


@pytest.mark.parametrize("text", ["", "  \n"])
async def test_nothing_is_about_nothing(classifier: Classifier, index: SemanticIndex, encoder: BagEncoder, text: str) -> None:
    assert (await classifier.classify(index, text)).domain == ""
    assert encoder.calls == []


async def test_without_a_model_the_keywords_verdict_stands(classifier: Classifier) -> None:
    verdict = await classifier.classify(index_of(None), "the judge")
    assert (verdict.domain, verdict.stage, list(verdict.scores)) == ("", "keyword", ["law"])


async def test_what_was_told_is_remembered(classifier: Classifier, index: SemanticIndex, encoder: BagEncoder) -> None:
    first, second = [await classifier.classify(index, "sort the list") for _ in range(2)]
    assert (first.is_cached, second.is_cached) == (False, True)
    assert (first.domain, first.scores) == (second.domain, second.scores)
    assert (len(encoder.calls), classifier.hits, classifier.misses) == (1, 1, 1)


async def test_another_index_remembers_nothing_of_this_one(classifier: Classifier, index: SemanticIndex, encoder: BagEncoder) -> None:
    await classifier.classify(index, "sort the list")
    assert not (await classifier.classify(index_of(encoder), "sort the list")).is_cached


@pytest.mark.parametrize(("entries", "cached"), [(0, [False] * 3), (1, [False] * 3), (2, [True, False, False]), (3, [True] * 3)])
async def test_as_much_is_remembered_as_the_manifest_says(classifier: Classifier, entries: int, cached: list[bool]) -> None:
    """Of three texts the oldest is forgotten first, but one that was asked again is not old."""
    index = index_of(BagEncoder(), entries)
    for text in ("one", "two", "one", "three"):
        await classifier.classify(index, text)
    assert [(await classifier.classify(index, text)).is_cached for text in ("one", "two", "three")] == cached


async def test_a_text_asked_twice_at_once_is_read_once(classifier: Classifier, index: SemanticIndex, encoder: BagEncoder) -> None:
    first = await begin(classifier, index, encoder, "sort the list")
    second = asyncio.create_task(classifier.classify(index, "sort the list"))
    await asyncio.sleep(0)
    encoder.gate.set()
    assert [verdict.domain for verdict in await asyncio.gather(first, second)] == ["code", "code"]
    assert encoder.calls == [["sort the list"]]


async def test_what_waits_is_read_together(classifier: Classifier, index: SemanticIndex, encoder: BagEncoder) -> None:
    first = await begin(classifier, index, encoder, "sort the list")
    texts = [f"the loop number {i}" for i in range(MOST_TOGETHER + 2)]
    others = [asyncio.create_task(classifier.classify(index, text)) for text in texts]
    await asyncio.sleep(0)
    encoder.gate.set()
    verdicts = await asyncio.gather(first, *others)
    assert {verdict.stage for verdict in verdicts} == {"embedding"}
    assert encoder.calls == [["sort the list"], texts[:MOST_TOGETHER], texts[MOST_TOGETHER:]]


async def test_two_indexes_are_not_read_together(classifier: Classifier, index: SemanticIndex, encoder: BagEncoder) -> None:
    other = index_of(BagEncoder())
    first = await begin(classifier, index, encoder, "sort the list")
    others = [asyncio.create_task(classifier.classify(of, "the loop")) for of in (other, index)]
    await asyncio.sleep(0)
    encoder.gate.set()
    assert [verdict.domain for verdict in await asyncio.gather(first, *others)] == ["code"] * 3
    assert encoder.calls == [["sort the list"], ["the loop"]]


async def test_what_comes_too_late_is_done_without(index: SemanticIndex, encoder: BagEncoder) -> None:
    classifier = Classifier(SOON_S)
    asked = await begin(classifier, index, encoder, "the judge")
    behind = asyncio.create_task(classifier.classify(index, "sort the list"))
    verdicts = await asyncio.gather(asked, behind)
    assert [(verdict.domain, verdict.stage) for verdict in verdicts] == [("", "keyword")] * 2
    assert (classifier.without, classifier.stages) == (2, {"keyword": 2})
    encoder.gate.set()
    verdict = await classifier.classify(index, "the loop")
    assert (verdict.domain, encoder.calls) == ("code", [["the judge"], ["the loop"]])  # nobody waits for the list any more
    classifier.close()


async def test_a_model_that_fails_is_done_without(classifier: Classifier, index: SemanticIndex, encoder: BagEncoder) -> None:
    encoder.error = RuntimeError("broken")
    verdict = await classifier.classify(index, "sue the judge")
    assert (verdict.stage, list(verdict.scores), classifier.without) == ("keyword", ["law"], 1)
    encoder.error = None
    assert (await classifier.classify(index, "sue the judge")).domain == "law"


async def test_a_cancelled_question_disturbs_no_other(classifier: Classifier, index: SemanticIndex, encoder: BagEncoder) -> None:
    first = await begin(classifier, index, encoder, "sort the list")
    second = asyncio.create_task(classifier.classify(index, "sort the list"))
    await asyncio.sleep(0)
    first.cancel()
    encoder.gate.set()
    assert (await second).domain == "code"
    assert (await classifier.classify(index, "sort the list")).is_cached


async def test_closing_waits_for_nothing(index: SemanticIndex, encoder: BagEncoder) -> None:
    classifier = Classifier(deadline_s=5.0)
    first = await begin(classifier, index, encoder, "sort the list")
    second = asyncio.create_task(classifier.classify(index, "the loop"))
    await asyncio.sleep(0)
    classifier.close()
    async with asyncio.timeout(2):
        assert [verdict.stage for verdict in await asyncio.gather(first, second)] == ["keyword", "keyword"]
    assert (await classifier.classify(index, "the loop")).stage == "keyword"


async def test_a_text_of_a_megabyte_is_read_in_parts(classifier: Classifier, index: SemanticIndex, encoder: BagEncoder) -> None:
    verdict = await classifier.classify(index, "bananas grow quickly " * 50_000)
    assert verdict.tokens <= 128
    assert sum(len(text) for call in encoder.calls for text in call) < 3000


async def test_an_index_that_is_gone_is_forgotten(classifier: Classifier) -> None:
    index, gone = index_of(BagEncoder()), threading.Event()
    weakref.finalize(index, gone.set)
    await classifier.classify(index, "sort the list")
    del index
    assert await asyncio.to_thread(gone.wait, 5)
