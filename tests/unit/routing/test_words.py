import re
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axiond.routing.words import Keywords, Words, fold


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("ÀÉÎ Ñandú", "aei nandu"),
        ("STRASSE Straße", "strasse strasse"),
        ("Ёлка", "елка"),
        ("ﬁn", "fin"),
        ("plain", "plain"),
        ("ＡＢ", "ab"),
    ],
)
def test_case_and_accents_are_taken_away(text: str, folded: str) -> None:
    assert fold(text) == folded


@pytest.mark.parametrize(
    ("keyword", "text", "is_found"),
    [
        pytest.param("código", "Mi CODIGO falla", True, id="accents"),
        pytest.param("código´", "Mi CODIGO falla", True, id="an-accent-by-itself"),
        pytest.param("code", "decode it", False, id="inside-a-word"),
        pytest.param("code", "my_code", False, id="part-of-an-identifier"),
        pytest.param("code", "«code»!", True, id="between-signs"),
        pytest.param("unit  test", "write a Unit\nTest", True, id="phrase-over-a-line"),
        pytest.param("unit test", "unit, test", True, id="phrase-around-a-sign"),
        pytest.param("unit test", "unit testing", False, id="phrase-inside-a-word"),
        pytest.param("C++", "in c++, please", True, id="signs"),
        pytest.param("C++", "in c, please", False, id="signs-count"),
        pytest.param("C#", "abc#", False, id="signs-inside-a-word"),
        pytest.param(".net", "asp.net", True, id="sign-before"),
        pytest.param("合同", "我需要一份租房合同吗", True, id="chinese"),
        pytest.param("สัญญา", "ร่างสัญญาเช่า", True, id="thai"),
        pytest.param("договор", "Мне нужен ДОГОВОР.", True, id="cyrillic"),
        pytest.param("договор", "договорились", False, id="cyrillic-inside-a-word"),
        pytest.param("계약", "임대차 계약서를 써 주세요", True, id="korean-with-an-ending"),
        pytest.param("x", "", False, id="nothing"),
        pytest.param("\u0301", "", False, id="accent-alone"),
    ],
)
def test_a_keyword_is_found_as_a_whole(keyword: str, text: str, is_found: bool) -> None:
    assert Keywords([keyword, "other"]).found_in(Words(text)) == (keyword if is_found else "")


@given(st.text(st.characters(max_codepoint=127)))
def test_words_of_ascii_are_those_of_any_text(text: str) -> None:
    """Both ways to find words agree: the accent makes the second text take the other."""
    assert Words(text).joined.split() == Words(f"{text} é").joined.split()[:-1]


@pytest.mark.parametrize("text", ["\u1dce\u1dca" * 8192, "\u0301\u0316" * 8192, "\ufdfa" * 16384])
def test_no_text_takes_long_to_fold(text: str) -> None:
    def took_s() -> float:
        began_s = time.perf_counter()
        fold(text)
        return time.perf_counter() - began_s

    assert min(took_s() for _ in range(5)) < 0.03
    assert len(fold(text)) < 5 * len(text)


@pytest.mark.parametrize("text", ["🙂" * 100, "x" + "\u0301" * 100 + "y", "—" * 31 + "é", "ﷺ"])
def test_signs_in_a_row_stay_what_they_are(text: str) -> None:
    assert fold(text) == re.sub("[\u0300-\u036f]", "", unicodedata.normalize("NFKD", text))


@pytest.mark.parametrize(("keyword", "text"), [("kw{} foo", "kw foo é " * 1800), ("漢{}字", "漢" * 16384), ("+a{}", "+a " * 5400)])
def test_thousands_of_keywords_take_no_longer_than_one(keyword: str, text: str) -> None:
    many, words = Keywords(keyword.format(number) for number in range(5000)), Words(text)
    began_s = time.thread_time()
    assert many.found_in(words) == ""
    assert time.thread_time() - began_s < 0.02
    assert many.found_in(Words(f"{text} {keyword.format(4999)}.")) == keyword.format(4999)
    assert many.found_in(Words(f"x{keyword.format(7)}x")) == (keyword.format(7) if "漢" in keyword else "")


@pytest.mark.parametrize("keywords", [("b c", "a b", "c d"), ("漢字", "字漢"), ("+b", "a+", "+b+")])
def test_keywords_may_overlap(keywords: tuple[str, ...]) -> None:
    assert Keywords(keywords).found_in(Words("x a b c d y 漢字漢 a+ +b+")) in keywords
    assert Keywords(("a+b", "a+")).found_in(Words("xa+b a+")) == "a+"
