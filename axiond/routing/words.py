"""Words and phrases in a text, whatever their case and accents. Pure."""

import re
import unicodedata
from collections.abc import Iterable
from functools import cached_property

from ahocorasick_rs import AhoCorasick

_ACCENTS = re.compile("[\u0300-\u036f\u0591-\u05c7\u064b-\u0652\u0670]+")
_WORD = re.compile(r"\w+")
# ASCII needs no expression for that, which is three times as fast.
_APART = bytes(byte if chr(byte).isalnum() or byte == ord("_") else ord(" ") for byte in range(128)) + bytes(128)
# Marks in a row are put into order, at a cost that grows with the square of their number: U+034F ends a row, and goes with the accents.
_ROW = 30
_MARKS = re.compile(rf"[^\w\s\x00-\x7f]{{{_ROW}}}")
_MOST_GROWTH, _GROWTH_CHARS = 4, 100  # one sign of U+FDFA comes apart into 18; no language writes only such
# These put no spaces between words, or endings right behind them: Thai to Khmer, Hangul, kana, Chinese.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def fold(text: str) -> str:
    """Take case and accents away."""
    if text.isascii():
        return text.lower()
    text = text.casefold()
    if len(text) - len(text.encode("ascii", "ignore")) >= _ROW:
        text = _MARKS.sub("\\g<0>\u034f", text)
    apart = unicodedata.normalize("NFKD", text)
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
    """Keywords, compiled: however many, a text is gone through once for words, phrases, scripts without spaces and signs, like C++."""

    def __init__(self, keywords: Iterable[str]) -> None:
        folded = {" ".join(fold(keyword).split()): keyword for keyword in keywords}
        folded.pop("", None)
        self._written = folded
        self._words = frozenset(keyword for keyword in folded if _WORD.fullmatch(keyword) and not _UNSPACED.search(keyword))
        self._inner = _Several(keyword for keyword in folded if _UNSPACED.search(keyword))
        rest = [keyword for keyword in folded if keyword not in self._words and not _UNSPACED.search(keyword)]
        phrases = {keyword for keyword in rest if all(map(_WORD.fullmatch, keyword.split()))}
        self._phrases = _Several(f" {keyword} " for keyword in rest if keyword in phrases)
        odd = [keyword for keyword in rest if keyword not in phrases]
        self._odd, self._whole = _Several(odd), {keyword: _whole(keyword) for keyword in odd}

    def found_in(self, words: Words) -> str:
        """One of the keywords, as it was written; "" where *words* has none."""
        return self._written.get(self._find(words), "")

    def _find(self, words: Words) -> str:
        if not self._words.isdisjoint(words.all):
            return min(self._words & words.all)
        if self._phrases and (found := self._phrases.found_in(words.joined)):
            return found[0].strip()
        if self._inner and (found := self._inner.found_in(words.folded)):
            return found[0]
        found = self._odd.found_in(words.folded, overlapping=True) if self._odd else []
        return next((keyword for keyword in found if self._whole[keyword].search(words.folded)), "")


class _Several:
    """Texts that are looked for at once in another; false if there are none."""

    def __init__(self, sought: Iterable[str]) -> None:
        self._sought = tuple(sought)
        self._automaton = AhoCorasick(self._sought)

    def __bool__(self) -> bool:
        return bool(self._sought)

    def found_in(self, text: str, *, overlapping: bool = False) -> list[str]:
        """Those that are there, in their order; of those that overlap at least one."""
        hits = self._automaton.find_matches_as_indexes(text, overlapping=overlapping)
        return [self._sought[index] for index in sorted({index for index, _, _ in hits})]


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
