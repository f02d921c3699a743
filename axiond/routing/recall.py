"""What is remembered of a request that was decided, and how rules judge it again: hashes of its words, never its text. Pure."""

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, cast

from multidict import CIMultiDict

from axiond.manifest.routes import AUTO, Match
from axiond.routing.conditions import SECRET_HEADERS, Case, Test, compile_regex
from axiond.routing.decision import Decision, Features, Prompt, Verdict
from axiond.routing.features import Needs
from axiond.routing.judge import Judge
from axiond.routing.paths import JSON_PATHS
from axiond.routing.rules import Rule, Rules, Scene
from axiond.routing.words import Keywords, Words, words_of

MOST_WORDS = 512
BEGINNING_CHARS = 8 * MOST_WORDS
FLAGS = ("is_stream", "has_tools", "has_images", "response_format")
NOT_READ = "their bodies were not read, because no rule asked for it"


_NO_HEADERS: CIMultiDict[str] = CIMultiDict()

Sought = str | tuple[str, str]


class Untold(Exception):
    """What a rule wants to know of a request is not remembered; in words."""


@dataclass(frozen=True, slots=True)
class Probes:
    """
    What the rules in force look for that hashes cannot tell later.

    Of headers the values are remembered, but of *secrets* only whether each pattern is in them. *odd* are keywords that are
    not found word by word; *plain* the others, which are only looked for in long prompts.
    """

    headers: frozenset[str] = frozenset()
    secrets: Mapping[tuple[str, str], Any] = field(default_factory=dict)
    regexes: Mapping[str, Any] = field(default_factory=dict)
    odd: Mapping[str, Keywords] = field(default_factory=dict)
    plain: Mapping[str, Keywords] = field(default_factory=dict)

    @classmethod
    def of(cls, rules: Rules) -> "Probes":
        whens = [rule.route.when for rule in rules.rules if rule.route.when]
        patterns = {(name.lower(), pattern) for when in whens for name, pattern in when.headers.items()}
        return cls(
            frozenset(name for name, _ in patterns if name not in SECRET_HEADERS),
            {(name, pattern): compile_regex(pattern) for name, pattern in patterns if name in SECRET_HEADERS},
            {pattern: compile_regex(pattern) for when in whens for pattern in when.regex},
            {keyword: Keywords([keyword]) for when in whens for keyword in when.keywords if not words_of(keyword)},
            {keyword: Keywords([keyword]) for when in whens for keyword in when.keywords if words_of(keyword)},
        )


@dataclass(frozen=True, slots=True)
class Kept:
    """
    A request that was decided.

    *features* has no text and only the headers that were looked for. *words* are hashed, in their order; None where the
    text was not read, and *is_whole* unless there were more. *found* tells of each pattern whether it was there. *text* is
    kept only where the manifest asks for it.
    """

    at: datetime
    draw: float
    features: Features
    needs: Needs
    headers: frozenset[str]
    words: "array[int] | None"
    is_whole: bool
    found: Mapping[Sought, bool]
    counts: Mapping[str, int | None]
    verdict: Verdict | None
    judge: Judge | None
    text: str | None


class Hashes:
    """Hashes words, with a salt that only this process knows."""

    def __init__(self, salt: int) -> None:
        self._salt = salt

    def __call__(self, words: Iterable[str]) -> "array[int]":
        salt = self._salt
        return array("q", [hash((salt, word)) for word in words])


def keep(features: Features, needs: Needs, scene: Scene, decision: Decision, probes: Probes, judge: Judge | None, hashes: Hashes) -> Kept:
    """
    What to remember of a request that was decided.

    Args:
        features: what was read of it, because of its *needs*.
        needs: of the rules in force.
        scene: that it was decided in.
        decision: what became of it.
        probes: what else to look for.
        judge: who gave the decision's verdict.
        hashes: of its words.
    """
    text = features.prompt.text if needs.text or (needs.auto and features.requested == AUTO) else None
    words, is_whole = _beginning(text) if text else ((), True)
    found: dict[Sought, bool] = _in_secrets(features.headers, probes) if probes.secrets else {}
    if text is not None:
        found |= _in_text(text, probes, is_whole=is_whole)
    headers = _NO_HEADERS
    if probes.headers:
        headers = CIMultiDict((name, value) for name in probes.headers if (value := features.headers.get(name)) is not None)
    said = features.prompt
    return Kept(
        at=scene.now,
        draw=scene.draw,
        features=replace(features, headers=headers, prompt=Prompt("", said.tokens, said.least_tokens, said.most_tokens, said.conversation)),
        needs=needs,
        headers=probes.headers,
        words=None if text is None else hashes(words),
        is_whole=is_whole,
        found=found,
        counts=decision.counts,
        verdict=decision.verdict,
        judge=judge,
        text=text if scene.table.keep_prompts else None,
    )


def _beginning(text: str) -> tuple[Sequence[str], bool]:
    """The first words of a text, and whether they are all; a word that may be cut is left out."""
    words = Words(text[:BEGINNING_CHARS]).joined.split()
    if len(text) > BEGINNING_CHARS:
        return words[:-1][:MOST_WORDS], False
    return words[:MOST_WORDS], len(words) <= MOST_WORDS


def _in_secrets(given: Mapping[str, str], probes: Probes) -> dict[Sought, bool]:
    secrets: dict[Sought, bool] = {}
    for (name, pattern), regex in probes.secrets.items():
        value = given.get(name)
        secrets[name, pattern] = value is not None and regex.search(value.encode("utf-8", "surrogateescape")) is not None
    return secrets


def _in_text(text: str, probes: Probes, *, is_whole: bool) -> dict[Sought, bool]:
    wanted = probes.odd if is_whole else {**probes.odd, **probes.plain}
    said = Words(text) if wanted else None
    encoded = text.encode("utf-8", "replace")
    found: dict[Sought, bool] = {pattern: regex.search(encoded) is not None for pattern, regex in probes.regexes.items()}
    return found | {keyword: bool(said and matcher.found_in(said)) for keyword, matcher in wanted.items()}


class _View:
    """Stands for the features of a request, or for its prompt; what was not read, it cannot tell."""

    def __init__(self, known: Mapping[str, Any], unread: str) -> None:
        self.__dict__.update(known)
        self._unread = unread

    def __getattr__(self, name: str) -> Any:
        raise Untold(self._unread)


def recalled(kept: Kept, group: str) -> Features:
    """
    The features of a remembered request, for rules out of `recalling`.

    Args:
        kept: what is remembered.
        group: its key's group under those rules.

    Any attribute that was not read raises Untold.
    """
    features, needs = kept.features, kept.needs
    has_body = features.path in JSON_PATHS
    prompt: dict[str, Any] = {}
    if kept.text is not None or not has_body:
        prompt["text"] = kept.text or ""
    if needs.tokens or not has_body:
        prompt |= {name: getattr(features.prompt, name) for name in ("tokens", "least_tokens", "most_tokens")}
    if needs.conversation or not has_body:
        prompt["conversation"] = features.prompt.conversation
    known: dict[str, Any] = {name: getattr(features, name) for name in ("requested", "path", "headers", "client", "key")}
    known |= {"key_group": group, "kept": kept, "prompt": _View(prompt, NOT_READ)}
    if needs.any_of(features.requested) or not has_body:
        known |= {name: getattr(features, name) for name in FLAGS}
    if needs.language or not has_body:
        known["language"] = features.language
    return cast("Features", _View(known, NOT_READ))


def recalling(rules: Rules, hashes: Hashes) -> Rules:
    """The same rules, for features out of `recalled`; a rule holds, does not hold, or raises Untold."""
    return replace(rules, rules=tuple(replace(rule, tests=(_together(rule, hashes),)) for rule in rules.rules))


def _together(rule: Rule, hashes: Hashes) -> Test:
    """All conditions at once: one that does not hold settles it, whatever is not known of others."""
    tests = [_recalling(test, rule.route.when, hashes) for test in rule.tests]
    bounds = rule.bounds

    def within_bounds(case: Case) -> bool:
        prompt = case.features.prompt
        return bounds is None or bounds.hold_between(prompt.least_tokens, prompt.most_tokens) is not False

    def holds(case: Case) -> bool:
        untold: Untold | None = None
        for test in (*tests, within_bounds):
            try:
                if not test(case):
                    return False
            except Untold as exc:
                untold = untold or exc
        if untold:
            raise untold
        return True

    return Test("all", "", holds, lambda _: "")


def _recalling(test: Test, when: Match | None, hashes: Hashes) -> Callable[[Case], bool | None]:
    match test.name.partition("."):
        case ("headers", _, name):
            pattern = when.headers[name] if when else ""
            return lambda case: _has_header(test, name.lower(), pattern, case)
        case ("keywords", "", ""):
            phrases = [(keyword, hashes(words_of(keyword))) for keyword in (when.keywords if when else ())]
            return lambda case: _by_text(test, case, (lambda kept: (_says(kept, keyword, words) for keyword, words in phrases)))
        case ("regex", "", ""):
            patterns = when.regex if when else ()
            return lambda case: _by_text(test, case, lambda kept: (kept.found.get(pattern) for pattern in patterns))
    return test.holds


def _kept(case: Case) -> Kept:
    kept: Kept = case.features.kept  # type: ignore[attr-defined]
    return kept


def _has_header(test: Test, name: str, pattern: str, case: Case) -> bool | None:
    kept = _kept(case)
    if name in kept.headers:
        return test.holds(case)
    if (known := kept.found.get((name, pattern))) is None:
        raise Untold(f"the header {name} was not looked at then")
    return known


def _by_text(test: Test, case: Case, look: Callable[[Kept], Iterable[bool | None]]) -> bool | None:
    """Whether a condition on the text holds: judged on the text where it is kept, else by looking for any of what it names."""
    kept = _kept(case)
    if kept.text is not None or kept.features.path not in JSON_PATHS:
        return test.holds(case)
    if kept.words is None:
        raise Untold(NOT_READ)
    answers = list(look(kept))
    if None in answers and not any(answers):
        raise Untold(f"their text is not remembered, and the {test.name} of a rule was not looked for then")
    return any(answers)


def _says(kept: Kept, keyword: str, words: "array[int]") -> bool | None:
    """Whether a keyword is in the prompt; None: cannot be told."""
    if words and kept.words is not None and (kept.is_whole or _holds(kept.words, words)):
        return _holds(kept.words, words)
    return kept.found.get(keyword)


def _holds(text: "array[int]", phrase: "array[int]") -> bool:
    first, length = phrase[0], len(phrase)
    if length == 1:
        return first in text
    return any(text[start] == first and text[start : start + length] == phrase for start in range(len(text) - length + 1))
