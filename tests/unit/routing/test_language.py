from collections import Counter
from pathlib import Path

import pytest

from axiond.manifest.languages import LANGUAGES
from axiond.routing.language import language_of, load

PROMPTS = [line.split("\t") for line in (Path(__file__).parents[2] / "data" / "languages.tsv").read_text().splitlines()]


def test_short_prompts_in_ten_languages() -> None:
    """117 of 120 when this was written, and one of the others taken for another language; a language must not fall behind."""
    told = [(language, language_of(text)) for language, text in PROMPTS]
    right = Counter(language for language, found in told if found == language)
    assert sum(right.values()) >= 115
    assert min(right.values()) >= 11
    assert sum(found not in ("", language) for language, found in told) <= 3


@pytest.mark.parametrize(
    ("text", "language"),
    [
        pytest.param("", "", id="nothing"),
        pytest.param("123 + 456 = ?\n😀", "", id="no-words"),
        pytest.param("asdf qwer", "", id="no-language"),
        pytest.param("\ud800\x00", "", id="no-text"),
        pytest.param("東京タワーの高さは？", "ja", id="japanese-with-many-chinese-characters"),
        pytest.param("用 Python 写一个快速排序函数", "zh", id="chinese-with-a-foreign-word"),
        pytest.param("오늘 날씨가 어때요?", "ko", id="korean"),
        pytest.param("Please summarise the following. " + "Das ist ein langer Text. " * 1000, "de", id="what-most-of-the-beginning-is"),
        pytest.param("Wie geht es dir heute?\n" * 20_000, "de", id="long"),
    ],
)
def test_a_language(text: str, language: str) -> None:
    assert language_of(text) == language


def test_the_manifest_knows_the_languages_that_are_told() -> None:
    """It cannot ask the model, which is a file."""
    labels = {str(label).removeprefix("__label__") for _, text in PROMPTS for label in load().predict(text, k=1000, threshold=-1.0)[0]}
    assert {label for label in labels if len(label) == 2} == LANGUAGES
