"""Words and phrases in a text, whatever their case and accents. Pure."""

import re
import unicodedata
from collections.abc import Iterable
from functools import cached_property

_ACCENTS = re.compile("[\u0300-\u036f\u0591-\u05c7\u064b-\u0652\u0670]+")
_WORD = re.compile(r"\w+")
# ASCII needs no expression for that, which is three times as fast.
_APART = bytes(byte if chr(byte).isalnum() or byte == ord("_") else ord(" ") for byte in range(128)) + bytes(128)
# Marks in a row are put into order, at a cost that grows with the square of their number: U+034F ends a row, and goes with the accents.
_MARKS = re.compile(r"[^\w\s\x00-\x7f]{30}")
_MOST_GROWTH, _GROWTH_CHARS = 4, 100  # one sign of U+FDFA comes apart into 18; no language writes only such
# These put no spaces between words, or endings right behind them: Thai to Khmer, Hangul, kana, Chinese.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def fold(text: str) -> str:
    """Take case and accents away."""
    if text.isascii():
        return text.lower()
    apart = unicodedata.normalize("NFKD", _MARKS.sub("\\g<0>\u034f", text.casefold()))
    return _ACCENTS.sub("", apart[: _MOST_GROWTH * len(text) + _GROWTH_CHARS])


class Words:
    """A text, ready to be searched for many keywords."""

    def __init__(self, text: str) -> None:
        self.folded = fold(text)
        self._list = _split(self.folded)
        self.all = frozenset(self._list)

    @cached_property
    def joined(self) -> str:
        return f" {' '.join(self._list)} "


class Keywords:
    """Keywords, compiled. Single words are looked up all at once; phrases and words with signs, like C++, one by one."""

    def __init__(self, keywords: Iterable[str]) -> None:
        folded = {" ".join(fold(keyword).split()): keyword for keyword in keywords}
        folded.pop("", None)
        self._written = folded
        self._words = frozenset(keyword for keyword in folded if _WORD.fullmatch(keyword) and not _UNSPACED.search(keyword))
        self._inner = tuple(keyword for keyword in folded if _UNSPACED.search(keyword))
        rest = [keyword for keyword in folded if keyword not in self._words and keyword not in self._inner]
        self._phrases = {f" {keyword} ": keyword for keyword in rest if all(map(_WORD.fullmatch, keyword.split()))}
        self._odd = {keyword: _whole(keyword) for keyword in rest if f" {keyword} " not in self._phrases}

    def found_in(self, words: Words) -> str:
        """One of the keywords, as it was written; "" where *words* has none."""
        return self._written.get(self._find(words), "")

    def _find(self, words: Words) -> str:
        if not self._words.isdisjoint(words.all):
            return min(self._words & words.all)
        for padded, keyword in self._phrases.items():
            if padded in words.joined:
                return keyword
        for keyword in self._inner:
            if keyword in words.folded:
                return keyword
        for keyword, pattern in self._odd.items():
            if keyword in words.folded and pattern.search(words.folded):
                return keyword
        return ""


def words_of(keyword: str) -> tuple[str, ...]:
    """The words of a keyword that is found word by word; none where signs, or a script without spaces, make it otherwise."""
    words = tuple(fold(keyword).split())
    return words if all(map(_WORD.fullmatch, words)) and not _UNSPACED.search("".join(words)) else ()


def _split(folded: str) -> list[str]:
    return folded.encode().translate(_APART).decode().split() if folded.isascii() else _WORD.findall(folded)


def _whole(keyword: str) -> re.Pattern[str]:
    """*keyword* with no letter or digit to either side of its own."""
    before = r"(?<!\w)" if _WORD.match(keyword[:1]) else ""
    after = r"(?!\w)" if _WORD.match(keyword[-1:]) else ""
    return re.compile(before + re.escape(keyword) + after)
