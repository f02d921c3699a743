"""The keyword stage, against a search that looks for one keyword at a time."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from axiond.routing.words import fold
from axiond.semantic.keywords import HEAD_CHARS, MIDDLE_CHARS, TAIL_CHARS, KeywordStage, sample

SAMPLED = HEAD_CHARS + MIDDLE_CHARS + TAIL_CHARS


def found(text: str, *keywords: str) -> set[str]:
    stage = KeywordStage({"d": keywords})
    return {stage.keywords[number] for number in stage.find(text)}


@pytest.mark.parametrize(
    ("text", "keywords", "wanted"),
    [
        pytest.param("A Mortgage?", ["mortgage"], {"mortgage"}, id="any-case"),
        pytest.param("¿Qué es la INVERSIÓN?", ["inversion"], {"inversion"}, id="accents-in-the-text"),
        pytest.param("que es la inversion", ["inversión"], {"inversion"}, id="accents-in-the-keyword"),
        pytest.param("Straße", ["strasse"], {"strasse"}, id="sharp-s"),
        pytest.param("the letter c", ["c´"], {"c"}, id="an-accent-by-itself"),
        pytest.param("the letter c", ["¨"], set(), id="nothing-but-an-accent"),
        pytest.param("codeine and decode", ["code"], set(), id="not-inside-a-word"),
        pytest.param("contracts, taxes", ["contract", "tax"], {"contract", "tax"}, id="plurals"),
        pytest.param("contratos y leyes", ["contrato", "ley"], {"contrato", "ley"}, id="plurales"),
        pytest.param("its", ["it"], set(), id="no-plural-of-two-letters"),
        pytest.param("contractes", ["contract"], {"contract"}, id="es-too"),
        pytest.param("contracts2 contractse contracte", ["contract"], set(), id="no-word-that-goes-on"),
        pytest.param("contracted", ["contract"], set(), id="no-other-ending"),
        pytest.param("Write C++ or C#.", ["c++", "c#", "c"], {"c++", "c#"}, id="signs-end-a-word"),
        pytest.param("interest\n  rate", ["interest rate"], {"interest rate"}, id="phrase-over-a-line-end"),
        pytest.param("deep machine learning", ["machine learning", "learning", "machine"], {"machine learning"}, id="longest-only"),
        pytest.param("in english grammar", ["in english", "english grammar"], {"in english", "english grammar"}, id="overlapping"),
        pytest.param("把这句话翻译成英文", ["翻译"], {"翻译"}, id="chinese-has-no-spaces"),
        pytest.param("用Python写程序", ["python"], {"python"}, id="latin-amid-chinese"),
        pytest.param("코드를 고쳐 줘", ["코드"], {fold("코드")}, id="korean-particles"),
        pytest.param("переведи это", ["перевод", "переведи"], {fold("переведи")}, id="cyrillic"),
        pytest.param("", ["code"], set(), id="nothing"),
        pytest.param("code", [" ", ""], set(), id="keywords-without-letters"),
    ],
)
def test_what_is_found(text: str, keywords: list[str], wanted: set[str]) -> None:
    assert found(text, *keywords) == wanted


ALPHABET = "abés ñ+-漢字がค1\n"


@settings(max_examples=300, deadline=None)
@given(st.text(ALPHABET, max_size=60), st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=8))
def test_it_finds_what_a_naive_search_finds(text: str, keywords: list[str]) -> None:
    stage = KeywordStage({"d": keywords})
    folded = fold(" ".join(text.split()))
    joined, inner = r"[^\W_\u3040-\u30ff\u3400-\u9fff\u0e00-\u0eff]", {}
    for keyword in stage.keywords:
        before = rf"(?<!{joined})" if re.match(joined, keyword[0]) else ""
        ending = "(?:es|s|)" if len(keyword) >= 3 and keyword[-1].isalpha() else ""
        behind = rf"(?:(?<={joined})(?!{joined})|(?<!{joined}))"
        pattern = re.compile(rf"{before}(?=({re.escape(keyword)}){ending}{behind})")
        inner |= {(match.start(1), match.end(1)): keyword for match in pattern.finditer(folded)}
    longest = {keyword for span, keyword in inner.items()
               if not any(a <= span[0] and span[1] <= b for a, b in inner if (a, b) != span)}  # fmt: skip
    assert {stage.keywords[number] for number in stage.find(text)} == longest


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        pytest.param("sunshine", {}, id="nothing"),
        pytest.param("a mortgage", {"finance": 0.67}, id="one"),
        pytest.param("a mortgage, my mortgage", {"finance": 0.67}, id="one-twice"),
        pytest.param("mortgage and bank", {"finance": 0.8}, id="two"),
        pytest.param("a pension plan", {"finance": 0.8}, id="phrase"),
        pytest.param("the bank and the judge", {"finance": 0.4, "legal": 0.4}, id="conflict"),
        pytest.param("bank, mortgage, judge", {"finance": 0.57, "legal": 0.29}, id="two-against-one"),
        pytest.param("damages", {"finance": 0.33, "legal": 0.33}, id="of-two-domains"),
    ],
)
def test_scores(text: str, scores: dict[str, float]) -> None:
    stage = KeywordStage({"finance": ["bank", "mortgage", "pension plan", "damages"], "legal": ["judge", "damages"], "empty": []})
    assert {domain: round(score, 2) for domain, score in stage.scores(text).items()} == scores


@pytest.mark.parametrize("place", [0, SAMPLED * 50, SAMPLED * 100 - 8], ids=["head", "middle", "tail"])
def test_a_long_text_is_sampled(place: int) -> None:
    text = list("x" * SAMPLED * 100)
    text[place : place + 8] = " python "
    assert found("".join(text), "python") == {"python"}


def test_a_long_text_is_not_read_whole() -> None:
    filling = "word " * SAMPLED
    assert found(f"{filling}python {filling * 3}", "python") == set()
    assert len(sample(filling * 1000)) == SAMPLED + 2


def test_no_word_is_made_where_a_sample_is_cut() -> None:
    text = "x" * (HEAD_CHARS - 5) + " code" + "ine" + "x" * SAMPLED * 9
    assert found(text, "code") == set()
