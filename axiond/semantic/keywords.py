"""The first stage: domains told by the keywords in a prompt, in one linear pass over a bounded sample of it. Pure."""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from ahocorasick_rs import AhoCorasick

from axiond.routing.words import fold

HEAD_CHARS, MIDDLE_CHARS, TAIL_CHARS = 256, 128, 128
FOR_NONE = 0.5
SHORTEST_WITH_PLURAL = 3
# Stands between the pieces of a sample and joins them into one word, so that no word is found that was cut in two.
CUT = "\ue000"
# Most words end at one of these, and a look-up is quicker than asking what a character is.
_EDGES = frozenset(" .,;:!?()\"'-/")

# These put no spaces between words, or endings right behind them: Thai to Khmer, Hangul, kana, Chinese.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff]"
)


def sample(text: str, head: int = HEAD_CHARS, middle: int = MIDDLE_CHARS, tail: int = TAIL_CHARS) -> str:
    """A text's head, middle and tail; the whole text where it is not longer."""
    if len(text) <= head + middle + tail:
        return text
    at = (len(text) - middle) // 2
    return CUT.join((text[:head], text[at : at + middle], text[len(text) - tail :]))


class KeywordStage:
    """
    The keywords of all domains in one automaton.

    A keyword is found as whole words, in any case, with or without accents, and with an s or es behind it. Of keywords
    one inside the other only the longer one counts. In scripts without spaces it is found anywhere.

    The score of a domain is its share of what was found, where half a keyword counts as found for none: one keyword
    scores 0.67, two 0.8, three 0.86; two against one of another domain 0.57. A phrase counts as often as it has words,
    and a keyword of several domains counts in part for each.
    """

    def __init__(self, keywords: Mapping[str, Sequence[str]]) -> None:
        domains: dict[str, list[str]] = {}
        for domain, words in keywords.items():
            for word in dict.fromkeys(filter(None, (" ".join(fold(word).split()) for word in words))):
                domains.setdefault(word, []).append(domain)
        self.keywords = tuple(domains)
        self._weights = [dict.fromkeys(found, len(word.split()) / len(found)) for word, found in domains.items()]
        self._automaton = AhoCorasick(self.keywords)

    def scores(self, text: str) -> dict[str, float]:
        """The score of each domain of which a keyword is in the text."""
        evidence: dict[str, float] = {}
        for keyword in self.find(text):
            for domain, weight in self._weights[keyword].items():
                evidence[domain] = evidence.get(domain, 0.0) + weight
        all_found = sum(evidence.values()) + FOR_NONE
        return {domain: found / all_found for domain, found in evidence.items()}

    def find(self, text: str) -> frozenset[int]:
        """Which of *keywords* are in the text, or in its sample."""
        folded = f" {' '.join(fold(sample(text)).split())} "
        hits = self._automaton.find_matches_as_indexes(folded, overlapping=True)
        return frozenset(_longest([(start, end, keyword) for keyword, start, end in hits if _is_whole(folded, start, end)]))


def _longest(hits: list[tuple[int, int, int]]) -> Iterator[int]:
    covered_to = 0
    for _, end, keyword in sorted(hits, key=lambda hit: (hit[0], -hit[1])):
        if end > covered_to:
            covered_to = end
            yield keyword


def _is_whole(text: str, start: int, end: int) -> bool:
    """Whether a keyword from *start* to *end* stands by itself; the text begins and ends with a space."""
    if text[start - 1] not in _EDGES and _are_joined(text[start - 1], text[start]):
        return False
    if text[end] in _EDGES:
        return True
    if text[end] in "es" and end - start >= SHORTEST_WITH_PLURAL and text[end - 1].isalpha():
        behind = end + (2 if text.startswith("es", end) else 1)
        if text[behind - 1] == "s" and not _are_joined("s", text[behind]):
            return True
    return not _are_joined(text[end - 1], text[end])


def _are_joined(left: str, right: str) -> bool:
    """Whether both stand in one word."""
    return _is_letter(left) and _is_letter(right) and not (_UNSPACED.match(left) or _UNSPACED.match(right))


def _is_letter(character: str) -> bool:
    return character.isalnum() or character == CUT or unicodedata.category(character)[0] == "M"
