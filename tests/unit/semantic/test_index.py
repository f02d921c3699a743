"""The index of a manifest's domains, with an encoder for which only words count."""

import tracemalloc
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from axiond.manifest.routes import Domain, Semantic
from axiond.routing.decision import Verdict
from axiond.semantic.index import SemanticIndex, build_index, points_of
from axiond.semantic.probe import NEUTRAL, NOISE, Point, fit
from axiond.semantic.reading import FIRST_CHARS, decide, readable, second_reading
from tests.fakes.bag import BagEncoder

CODE = Domain(description="programs", examples=("sort the list", "the loop never ends"), keywords=("python", "compiler"))
LAW = Domain(description="law", examples=("sue my landlord", "who inherits the house"), keywords=("judge", "court order"))
DOMAINS = {"code": CODE, "law": LAW}


def index_of(domains: Mapping[str, Domain] = DOMAINS, **semantic: float) -> SemanticIndex:
    return build_index(domains, Semantic(embedding_model="fake", **semantic), BagEncoder())


def told(index: SemanticIndex, text: str) -> Verdict:
    return decide(index, [text])[0]


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        pytest.param("sort the list", "code", id="an-example"),
        pytest.param("please sort the names", "code", id="like-an-example"),
        pytest.param("the judge", "law", id="a-keyword"),
        pytest.param("sue the compiler of landlord my", "law", id="the-nearer-one"),
        pytest.param("bananas grow quickly", "", id="unlike-all"),
    ],
)
def test_what_the_embedding_tells(text: str, domain: str) -> None:
    verdict = told(index_of(), text)
    assert (verdict.domain, verdict.stage, verdict.tokens) == (domain, "embedding", len(text.split()))
    assert set(verdict.scores) == set(DOMAINS)
    assert all(0 <= score <= 1 for score in verdict.scores.values())


def test_the_scale_of_scores() -> None:
    """About 1 for what defines a domain, about 0 for what has nothing of any."""
    index = index_of()
    example, stranger = told(index, "who inherits the house"), told(index, "bananas grow quickly")
    assert example.score > 0.7 > 0.1 > stranger.score
    assert example.scores["code"] < 0.1


def test_a_single_domain_does_not_take_everything() -> None:
    index = index_of({"law": LAW})
    assert told(index, "sue my landlord").score > 0.7
    assert told(index, "bananas grow quickly").domain == ""


def test_the_words_of_every_day_tell_nothing() -> None:
    """Not even where the only domain's one example is made of them."""
    index = index_of({"law": Domain(examples=("please write a short text about my landlord",))})
    landlord, anything = told(index, "my landlord"), told(index, "please write a short text about the sea")
    assert landlord.score > 2 * anything.score


@pytest.mark.parametrize(
    ("own", "everyone", "domain"),
    [(None, 0.25, "code"), (None, 1.0, ""), (1.0, 0.25, ""), (0.0, 1.0, "code")],
    ids=["reached", "not-reached", "its-own-is-higher", "its-own-is-lower"],
)
def test_thresholds(own: float | None, everyone: float, domain: str) -> None:
    index = index_of({"code": CODE.model_copy(update={"threshold": own}), "law": LAW}, threshold=everyone)
    assert told(index, "please sort the names").domain == domain


def test_a_domain_below_its_threshold_leaves_the_prompt_to_the_next() -> None:
    index = index_of({"code": CODE.model_copy(update={"threshold": 1.0}), "law": LAW}, threshold=0.0)
    verdict = told(index, "please sort the names")
    assert (verdict.domain, verdict.score) == ("law", verdict.scores["law"])


def test_a_model_whose_vectors_are_no_numbers_is_refused() -> None:
    class Broken(BagEncoder):
        def encode(self, texts: Sequence[str], most_tokens: int = 64) -> tuple[NDArray[np.float32], tuple[int, ...]]:
            vectors, tokens = super().encode(texts, most_tokens)
            vectors[0, 0] = np.nan
            return vectors, tokens

    with pytest.raises(ValueError, match="no number"):
        build_index(DOMAINS, Semantic(embedding_model="fake"), Broken())


def test_solving_takes_little_more_memory_than_the_matrix() -> None:
    number = 1000
    vectors = np.tile(np.eye(8, dtype=np.float32), (number // 8, 1))
    points = [Point(f"the word{i}", f"d{i % 2}") for i in range(number)]
    tracemalloc.start()
    fit(points, vectors)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 2.5 * 4 * number**2


def test_it_is_deterministic() -> None:
    assert told(index_of(), "please sort the names") == told(index_of(), "please sort the names")


def test_keywords_that_are_sure_and_not() -> None:
    index = build_index(DOMAINS, Semantic(), None)
    assert index.by_keywords("a Python compiler").domain == "code"
    unsure = index.by_keywords("a python in court")
    assert (unsure.domain, unsure.stage, round(unsure.score, 2)) == ("", "keyword", 0.67)
    assert index.by_keywords("hello") == Verdict(stage="keyword")


@pytest.mark.parametrize(("domains", "encoder"), [(DOMAINS, None), ({"empty": Domain()}, BagEncoder()), ({}, BagEncoder())])
def test_without_texts_or_model_keywords_are_all(domains: Mapping[str, Domain], encoder: BagEncoder | None) -> None:
    index = build_index(domains, Semantic(), encoder)
    assert (index.encoder, index.probe) == (None, None)
    with pytest.raises(ValueError, match="without an embedding model"):
        index.by_embedding(np.zeros(4, np.float32), "text")


def test_equal_examples_of_two_domains_are_undecided() -> None:
    twins = {name: Domain(examples=("sort the list", "sort the list")) for name in ("a", "b")}
    scores = told(index_of(twins), "sort the list").scores
    assert scores["a"] == pytest.approx(scores["b"], abs=1e-3)
    assert 0.3 < scores["a"] < 0.6


@pytest.mark.parametrize(("most", "points"), [(4000, 506), (508, 255), (60, 55), (1, 6)])
def test_many_keywords_share_points(most: int, points: int) -> None:
    words = tuple(f"keyword{i}" for i in range(500))
    made = points_of({"code": Domain(examples=("sort the list",), keywords=words), "law": LAW}, most)
    assert len(made) == points
    read = [word for point in made if point.domain == "code" for word in point.text.split(", ")]
    assert read == ["sort the list", *words]


@pytest.mark.parametrize(
    ("scores", "domain", "is_clear"),
    [({"a": 0.6, "b": 0.3}, "a", True), ({"a": 0.6, "b": 0.55}, "a", False), ({"a": 0.2, "b": 0.0}, "", False), ({"a": 0.6}, "a", True)],
    ids=["leads", "close", "below-its-threshold", "alone"],
)
def test_what_is_clear(scores: Mapping[str, float], domain: str, is_clear: bool) -> None:
    assert index_of().is_clear(Verdict(domain, scores["a"], "embedding", scores)) is is_clear


@pytest.mark.parametrize(
    ("second", "merged"),
    [
        pytest.param({"code": 0.1, "law": 0.9}, {"code": 0.1, "law": 0.9}, id="the-second-is-clear"),
        pytest.param({"code": 0.3, "law": 0.35}, {"code": 0.46, "law": 0.39}, id="weighed-by-tokens"),
    ],
)
def test_two_readings(second: Mapping[str, float], merged: Mapping[str, float]) -> None:
    first = Verdict("code", 0.5, "embedding", {"code": 0.5, "law": 0.4}, tokens=64)
    verdict = index_of().merged(first, Verdict("law", second["law"], "embedding", second, tokens=16))
    assert verdict.scores == pytest.approx(merged)
    assert (verdict.domain, verdict.tokens) == (max(merged, key=merged.__getitem__), 80)


def test_a_clear_beginning_is_all_that_is_read() -> None:
    index = index_of()
    verdict = told(index, "sort the list " + "of names " * 500)
    assert isinstance(index.encoder, BagEncoder)
    assert (len(index.encoder.calls), verdict.tokens) == (2, 64)  # the first call built the index


def test_of_an_unclear_one_a_sample_of_the_rest_is_read() -> None:
    index = index_of()
    text = readable("bananas grow quickly " * 4000 + "so who inherits the house")
    verdict = told(index, text)
    assert isinstance(index.encoder, BagEncoder)
    assert [len(texts) for texts in index.encoder.calls[1:]] == [1, 1]
    assert (verdict.domain, 64 < verdict.tokens <= 128) == ("law", True)


def test_a_batch_is_told_like_its_texts_alone() -> None:
    index = index_of()
    texts = ["sort the list", "bananas grow quickly " * 100 + "sue my landlord", "the judge", "of names " * 100]
    assert decide(index, texts) == [told(index, text) for text in texts]


@pytest.mark.parametrize(
    "text", ["short", "x" * 300, "y" * 5000, "\ud800 half a pair", "é" * 9999], ids=lambda text: text[:1] + str(len(text))
)
def test_what_can_be_read_is_bounded_and_clean(text: str) -> None:
    read = readable(text)
    assert len(read) <= 2050
    read.encode()
    assert len(second_reading(read)) <= FIRST_CHARS + 30


def test_scores_solve_the_regression() -> None:
    """At each point the scores of the others and its own noise add up to its target."""
    points = [*points_of({**DOMAINS, "twin": CODE}), *(Point(text, "") for text in NEUTRAL)]
    vectors, _ = BagEncoder().encode([point.text for point in points])
    probe = fit(points, vectors)
    for point, vector, pull in zip(points, vectors, probe.pull, strict=True):
        wanted = np.array([point.domain == domain for domain in probe.domains]) - NOISE / point.weight * pull
        assert list(probe.scores(vector, point.text).values()) == pytest.approx(np.clip(wanted, 0, 1).tolist(), abs=1e-3)


def test_a_domain_that_is_solved_before_the_others() -> None:
    """In texts that have nothing in common each domain is solved in one step, but for the two that share words."""
    points = [Point("apart", "a"), Point("shared word", "b"), Point("shared noun", "c"), Point("shared word noun", "c", 0.1)]
    vectors = np.eye(4, 8, dtype=np.float32)
    probe = fit(points, vectors)
    assert np.isfinite(probe.pull).all()
    assert probe.scores(vectors[0], "apart")["a"] == pytest.approx(2 / 2.3, abs=1e-3)
