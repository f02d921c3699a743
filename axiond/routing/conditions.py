"""The conditions of a rule, compiled once, cheap ones first. Pure."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import re2

from axiond.manifest.fields import REGEX_BYTES
from axiond.manifest.routes import Match, Sticky
from axiond.routing.decision import Features
from axiond.routing.sticky import digest, share_of
from axiond.routing.words import Keywords, Words

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
SECRET_HEADERS = frozenset(("authorization", "proxy-authorization", "x-api-key", "api-key", "cookie"))
_SHOWN_CHARS = 128
_OPTIONS, _MADE_HERE = re2.Options(), re2.Options()
_OPTIONS.log_errors, _OPTIONS.max_mem = False, REGEX_BYTES
_MADE_HERE.log_errors = False


class Case:
    """A request to be judged at a local time; what several rules look at is made once. *any_regex*: any of theirs at once."""

    def __init__(self, features: Features, now: datetime, any_regex: Any = None) -> None:
        self.features, self.now, self._any_regex = features, now, any_regex

    @cached_property
    def text(self) -> bytes:
        return self.features.prompt.text.encode("utf-8", "replace")

    @cached_property
    def may_have_regex(self) -> bool:
        """False: no expression of any rule is in the text."""
        return self._any_regex is None or self._any_regex.search(self.text) is not None

    @cached_property
    def words(self) -> Words:
        return Words(self.features.prompt.text)


@dataclass(frozen=True, slots=True)
class Test:
    """One condition: its name, what it wants, whether it holds (None: cannot be told), and what it met. No secret, no prompt."""

    name: str
    wants: str
    holds: Callable[[Case], bool | None]
    met: Callable[[Case], str]


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many tokens a prompt may have."""

    least: int
    most: int | None

    @classmethod
    def of(cls, when: Match) -> "Bounds | None":
        if when.min_prompt_tokens is None and when.max_prompt_tokens is None:
            return None
        return cls(when.min_prompt_tokens or 0, when.max_prompt_tokens)

    def hold(self, tokens: int) -> bool:
        return self.least <= tokens and (self.most is None or tokens <= self.most)

    def hold_between(self, least: int, most: int) -> bool | None:
        """Whether they hold for all numbers from *least* to *most* or for none; None: for some."""
        if self.hold(least) and self.hold(most):
            return True
        return False if most < self.least or (self.most is not None and least > self.most) else None

    def __str__(self) -> str:
        return f"at least {self.least}" if self.most is None else f"{self.least} to {self.most}"


def conditions(when: Match, label: str) -> tuple[Test, ...]:
    """
    Compile all conditions but tokens and domain, which may need an answer from outside.

    Args:
        when: what the manifest says.
        label: the rule's name, which tells its share of the traffic from those of other rules.
    """
    return (*_of_the_head(when), *_of_the_body(when), *_of_time_and_chance(when, label), *_of_the_text(when))


def asks_for(name: str) -> Test:
    """The condition of a route without `when`."""
    return Test("name", name, lambda case: case.features.requested == name, lambda case: case.features.requested[:_SHOWN_CHARS])


def compile_regex(pattern: str) -> Any:
    """An expression of the manifest over UTF-8, whose search takes time linear in the text."""
    return re2.compile(pattern.encode(), _OPTIONS)


def any_of(patterns: Sequence[str]) -> Any:
    """One expression for all of *patterns*, so that most texts are read once; None where that would not be the same."""
    if len(patterns) < 2 or any(r"\Q" in pattern for pattern in patterns):  # that would quote what follows too
        return None
    try:
        return re2.compile("|".join(f"(?:{pattern})" for pattern in dict.fromkeys(patterns)).encode(), _MADE_HERE)
    except re2.error:  # too large together
        return None


def names_in(patterns: Iterable[str]) -> list[str]:
    """Those of *patterns* that are names."""
    return [pattern for pattern in patterns if "*" not in pattern]


def identity(features: Features, sticky: Sticky) -> str:
    """What stays on its side: the conversation where it is known, else the key or the address."""
    return (features.prompt.conversation if sticky == "conversation" else "") or features.key or features.client


def is_within(now: datetime, start: int, end: int, days: frozenset[int]) -> bool:
    """
    Whether *now* lies between the minutes *start* and *end* of a day.

    Where that passes midnight, *days* are those on which it begins.
    """
    minute, day = now.hour * 60 + now.minute, now.weekday()
    if start < end:
        return start <= minute < end and day in days
    return (minute >= start and day in days) or (minute < end and (day - 1) % 7 in days)


def _of_the_head(when: Match) -> Iterator[Test]:
    if when.model:
        asked = _glob(when.model)
        yield Test("model", _listed(when.model), lambda case: asked(case.features.requested), lambda case: _shown(case.features.requested))
    if when.path:
        on_path = _glob(when.path)
        yield Test("path", _listed(when.path), lambda case: on_path(case.features.path), lambda case: _shown(case.features.path))
    if when.key_group:
        groups = frozenset(when.key_group)
        yield Test(
            "key_group", _listed(groups), lambda case: case.features.key_group in groups, lambda case: case.features.key_group or "none"
        )
    if when.api_key:
        keys = frozenset(digest(key.get_secret_value()) for key in when.api_key)
        yield Test(
            "api_key",
            "an API key of the rule",
            lambda case: case.features.key in keys,
            lambda case: "another key" if case.features.key else "no key",
        )
    for name, pattern in when.headers.items():
        yield _header(name, pattern)


def _header(name: str, pattern: str) -> Test:
    regex = compile_regex(pattern)

    def holds(case: Case) -> bool:
        value = case.features.headers.get(name)
        return value is not None and regex.search(value.encode("utf-8", "surrogateescape")) is not None

    wants = "a pattern of the rule" if name.lower() in SECRET_HEADERS else pattern
    return Test(f"headers.{name}", wants, holds, lambda case: "there" if name in case.features.headers else "not there")


def _of_the_body(when: Match) -> Iterator[Test]:
    if (stream := when.stream) is not None:
        yield Test("stream", _yes(stream), lambda case: case.features.is_stream is stream, lambda case: _yes(case.features.is_stream))
    if (tools := when.tools) is not None:
        yield Test("tools", _yes(tools), lambda case: case.features.has_tools is tools, lambda case: _yes(case.features.has_tools))
    if (images := when.images) is not None:
        yield Test("images", _yes(images), lambda case: case.features.has_images is images, lambda case: _yes(case.features.has_images))
    if when.response_format:
        formats: frozenset[str] = frozenset(when.response_format)
        yield Test(
            "response_format",
            _listed(when.response_format),
            lambda case: case.features.response_format in formats,
            lambda case: _shown(case.features.response_format),
        )
    if when.language:
        languages = frozenset(when.language)
        yield Test(
            "language",
            _listed(when.language),
            lambda case: case.features.language in languages if case.features.language else None,
            lambda case: case.features.language or "not sure",
        )


def _of_time_and_chance(when: Match, label: str) -> Iterator[Test]:
    if when.hours or when.days:
        start, end = _minutes(when.hours or "00:00-24:00")
        days = frozenset(DAYS.index(day) for day in when.days) or frozenset(range(7))
        wants = " ".join(part for part in (",".join(when.days), when.hours or "") if part)
        yield Test("hours", wants, lambda case: is_within(case.now, start, end, days), lambda case: f"{case.now:%a %H:%M}".lower())
    if (percent := when.percent) is not None:
        sticky = when.sticky

        def point(case: Case) -> float:
            return share_of(f"when {label}", identity(case.features, sticky)) * 100

        yield Test("percent", f"below {percent:g} by {sticky}", lambda case: point(case) < percent, lambda case: f"{point(case):.1f}")


def _of_the_text(when: Match) -> Iterator[Test]:
    if when.keywords:
        keywords = Keywords(when.keywords)
        yield Test(
            "keywords",
            f"one of {len(when.keywords)}" if len(when.keywords) > 5 else _listed(when.keywords),
            lambda case: bool(keywords.found_in(case.words)),
            lambda case: keywords.found_in(case.words) or "none",
        )
    if when.regex:
        regexes = [(pattern, compile_regex(pattern)) for pattern in when.regex]
        yield Test(
            "regex",
            _listed(when.regex),
            lambda case: case.may_have_regex and any(regex.search(case.text) for _, regex in regexes),
            lambda case: next((pattern for pattern, regex in regexes if regex.search(case.text)), "none"),
        )


def _minutes(hours: str) -> tuple[int, int]:
    start, end = (int(clock[:2]) * 60 + int(clock[3:]) for clock in hours.split("-"))
    return start, end


def _glob(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a name is one of *patterns*, in which "*" stands for any characters."""
    names = frozenset(names_in(patterns))
    globs = [pattern for pattern in patterns if "*" in pattern]
    if not globs:
        return names.__contains__
    regex = re2.compile(("(?s)" + "|".join(".*".join(map(re.escape, pattern.split("*"))) for pattern in globs)).encode(), _MADE_HERE)
    return lambda name: name in names or regex.fullmatch(name.encode("utf-8", "replace")) is not None


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"


def _shown(text: str) -> str:
    return text[:_SHOWN_CHARS]


def _listed(entries: Iterable[str]) -> str:
    return ", ".join(entries)
