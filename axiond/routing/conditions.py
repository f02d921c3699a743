"""The conditions of a rule, compiled once, cheap ones first. Pure."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import re2

from axiond.manifest.routes import Match, Sticky
from axiond.routing.decision import Features
from axiond.routing.sticky import digest, share_of

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_OPTIONS = re2.Options()
_OPTIONS.log_errors = False


@dataclass(frozen=True, slots=True)
class Test:
    """One condition: its name, what it wants, whether it holds (None: cannot be told), and what it met."""

    name: str
    wants: str
    holds: Callable[[Features, datetime], bool | None]
    met: Callable[[Features], str]


def conditions(when: Match, label: str) -> tuple[Test, ...]:
    """
    Compile all conditions but tokens and domain, which may need an answer from outside.

    Args:
        when: what the manifest says.
        label: the rule's name, which tells its share of the traffic from those of other rules.
    """
    return (*_of_the_head(when), *_of_time_and_chance(when, label), *_of_the_body(when))


def compile_regex(pattern: str) -> Any:
    """An expression whose search takes time linear in the text."""
    return re2.compile(pattern, _OPTIONS)


def names_in(patterns: Iterable[str]) -> list[str]:
    """Those of *patterns* that are names."""
    return [pattern for pattern in patterns if "*" not in pattern]


def identity(features: Features, sticky: Sticky) -> str:
    """What stays on its side: the conversation where it is known, else the key or the address."""
    return (features.prompt.conversation if sticky == "conversation" else "") or features.key or features.client


def _of_the_head(when: Match) -> Iterator[Test]:
    if when.model:
        asked = _glob(when.model)
        yield Test("model", _listed(when.model), lambda f, _: asked(f.requested), lambda f: f.requested[:128])
    if when.path:
        on_path = _glob(when.path)
        yield Test("path", _listed(when.path), lambda f, _: on_path(f.path), lambda f: f.path[:128])
    if when.key_group:
        yield Test("key_group", _listed(when.key_group), lambda f, _: f.key_group in when.key_group, lambda f: f.key_group or "none")
    if when.api_key:
        keys = frozenset(digest(key.get_secret_value()) for key in when.api_key)
        yield Test("api_key", "an API key of the rule", lambda f, _: f.key in keys, lambda f: "a key" if f.key else "none")
    for name, pattern in when.headers.items():
        yield _header(name, pattern)


def _header(name: str, pattern: str) -> Test:
    regex = compile_regex(pattern)

    def holds(features: Features, _: datetime) -> bool:
        value = features.headers.get(name)
        return value is not None and regex.search(_valid(value)) is not None

    return Test(f"header {name}", pattern, holds, lambda f: "there" if name in f.headers else "not there")


def _of_time_and_chance(when: Match, label: str) -> Iterator[Test]:
    if when.hours or when.days:
        start, end = _minutes(when.hours or "00:00-24:00")
        days = frozenset(DAYS.index(day) for day in when.days) or frozenset(range(7))
        wants = " ".join(part for part in (",".join(when.days), when.hours or "") if part)
        yield Test("hours", wants, lambda _, now: is_within(now, start, end, days), lambda _: "")
    if (percent := when.percent) is not None:
        sticky = when.sticky
        yield Test(
            "percent",
            f"{percent:g}% by {sticky}",
            lambda f, _: share_of(label, identity(f, sticky)) * 100 < percent,
            lambda f: f"at {share_of(label, identity(f, sticky)) * 100:.1f}",
        )


def _of_the_body(when: Match) -> Iterator[Test]:
    if when.stream is not None:
        yield Test("stream", str(when.stream).lower(), lambda f, _: f.is_stream is when.stream, lambda f: str(f.is_stream).lower())
    if when.tools is not None:
        yield Test("tools", str(when.tools).lower(), lambda f, _: f.has_tools is when.tools, lambda f: str(f.has_tools).lower())
    if when.images is not None:
        yield Test("images", str(when.images).lower(), lambda f, _: f.has_images is when.images, lambda f: str(f.has_images).lower())
    if when.response_format:
        formats = when.response_format
        yield Test("response_format", _listed(formats), lambda f, _: f.response_format in formats, lambda f: f.response_format)
    if when.language:
        yield Test(
            "language",
            _listed(when.language),
            lambda f, _: f.language in when.language if f.language else None,
            lambda f: f.language or "not sure",
        )
    if when.regex:
        regexes = [compile_regex(pattern) for pattern in when.regex]
        yield Test("regex", _listed(when.regex), lambda f, _: any(regex.search(f.prompt.text) for regex in regexes), lambda _: "")


def is_within(now: datetime, start: int, end: int, days: frozenset[int]) -> bool:
    """
    Whether *now* lies between the minutes *start* and *end* of a day.

    Where that passes midnight, *days* are those on which it begins.
    """
    minute, day = now.hour * 60 + now.minute, now.weekday()
    if start < end:
        return start <= minute < end and day in days
    return (minute >= start and day in days) or (minute < end and (day - 1) % 7 in days)


def _minutes(hours: str) -> tuple[int, int]:
    start, end = (int(clock[:2]) * 60 + int(clock[3:]) for clock in hours.split("-"))
    return start, end


def _glob(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a name is one of *patterns*, in which "*" stands for any characters."""
    names = frozenset(names_in(patterns))
    globs = [pattern for pattern in patterns if "*" in pattern]
    if not globs:
        return names.__contains__
    regex = compile_regex("(?s)" + "|".join(".*".join(map(re2.escape, pattern.split("*"))) for pattern in globs))
    return lambda name: name in names or regex.fullmatch(_valid(name)) is not None


def _valid(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _listed(entries: Iterable[str]) -> str:
    return ", ".join(entries)
