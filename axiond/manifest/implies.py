"""Whether every request that one route takes is taken by another. Sound: where it says so, it is so; it does not find all."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from axiond.manifest.routes import Match, Route
from axiond.routing.words import fold

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MINUTES = 24 * 60
WEEK_MINUTES = 7 * DAY_MINUTES
ANYTHING = ("", ".*")
FLAGS = ("stream", "tools", "images")

Words = tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Condition:
    """What a route asks of a request, ready to be compared. None, or an empty mapping: it does not ask."""

    models: tuple[str, ...] | None
    paths: tuple[str, ...] | None
    headers: Mapping[str, str]
    keys: frozenset[str] | None
    flags: Mapping[str, bool]
    formats: frozenset[str] | None
    languages: frozenset[str] | None
    least_tokens: int
    most_tokens: int | None
    phrases: tuple[Words, ...] | None
    regexes: frozenset[str] | None
    domains: frozenset[str] | None
    minutes: int | None
    percent: float

    @classmethod
    def of(cls, route: Route, groups: Mapping[str, Collection[SecretStr]]) -> "Condition":
        when = route.when or Match.model_construct(model=(route.name,))
        return cls(
            models=when.model or None,
            paths=when.path or None,
            headers={name.lower(): pattern for name, pattern in when.headers.items()},
            keys=keys_of(when, groups),
            flags={flag: value for flag in FLAGS if (value := getattr(when, flag)) is not None},
            formats=_set(when.response_format),
            languages=_set(when.language),
            least_tokens=when.min_prompt_tokens or 0,
            most_tokens=when.max_prompt_tokens,
            phrases=tuple(tuple(fold(phrase).split()) for phrase in when.keywords) or None,
            regexes=_set(when.regex),
            domains=_set(when.domain),
            minutes=minutes_of(when) if when.hours or when.days else None,
            percent=100.0 if when.percent is None else when.percent,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The names that it asks for, where it asks for nothing but names."""
        return self.models if self.models and not any("*" in model for model in self.models) else ()

    def implies(self, other: "Condition") -> bool:
        """Whether a request that meets this meets *other* too."""
        return (
            other.percent >= 100
            and _is_covered(self.models, other.models)
            and _is_covered(self.paths, other.paths)
            and _is_within(self.keys, other.keys)
            and other.flags.items() <= self.flags.items()
            and _is_within(self.formats, other.formats)
            and _is_within(self.languages, other.languages)
            and self.least_tokens >= other.least_tokens
            and (other.most_tokens is None or (self.most_tokens is not None and self.most_tokens <= other.most_tokens))
            and (other.minutes is None or (self.minutes is not None and self.minutes & ~other.minutes == 0))
            and all(_has_header(self.headers, name, pattern) for name, pattern in other.headers.items())
            and _is_said(self.phrases, other.phrases)
            and (_is_within(self.regexes, other.regexes) or not other.regexes or not other.regexes.isdisjoint(ANYTHING))
            and _is_within(self.domains, other.domains)
        )


def covers(general: str, special: str) -> bool:
    """Whether all that fits the pattern *special* fits *general*; "*" stands for any characters, and nothing else is special."""
    if "*" not in general:
        return general == special
    first, *middle, last = general.split("*")
    if not (special.startswith(first) and special.endswith(last) and len(special) >= len(first) + len(last)):
        return False
    at, end = len(first), len(special) - len(last)
    for part in middle:
        found = special.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


def keys_of(when: Match, groups: Mapping[str, Collection[SecretStr]]) -> frozenset[str] | None:
    """The API keys that a condition lets pass; None where it does not ask for one. What a group holds that is not known is its own."""
    keys = frozenset(key.get_secret_value() for key in when.api_key)
    if not when.key_group:
        return keys or None
    grouped = frozenset(key for group in when.key_group for key in _keys_in(group, groups))
    return keys & grouped if keys else grouped


def minutes_of(when: Match) -> int:
    """The minutes of a week in which a condition holds, one bit each, from Monday 00:00."""
    days = [DAYS.index(day) for day in when.days] or range(7)
    start, end = (int(clock[:2]) * 60 + int(clock[3:]) for clock in (when.hours or "00:00-24:00").split("-"))
    length = end - start if start < end else end - start + DAY_MINUTES
    return _union(_span(day * DAY_MINUTES + start, length) for day in days)


def _span(start: int, length: int) -> int:
    bits = ((1 << length) - 1) << start
    return (bits | bits >> WEEK_MINUTES) & ((1 << WEEK_MINUTES) - 1)


def _union(sets: Iterable[int]) -> int:
    whole = 0
    for one in sets:
        whole |= one
    return whole


def _keys_in(group: str, groups: Mapping[str, Collection[SecretStr]]) -> Iterable[str]:
    return (key.get_secret_value() for key in groups[group]) if group in groups else (f"\0{group}",)


def _set(values: Sequence[Any]) -> frozenset[Any] | None:
    return frozenset(values) or None


def _is_within(mine: frozenset[str] | None, others: frozenset[str] | None) -> bool:
    return others is None or (mine is not None and mine <= others)


def _is_covered(mine: tuple[str, ...] | None, others: tuple[str, ...] | None) -> bool:
    return others is None or all(any(covers(general, special) for general in others) for special in mine or ("*",))


def _has_header(mine: Mapping[str, str], name: str, pattern: str) -> bool:
    return name in mine and (mine[name] == pattern or pattern in ANYTHING)


def _is_said(mine: tuple[Words, ...] | None, others: tuple[Words, ...] | None) -> bool:
    return others is None or (mine is not None and all(any(_holds(phrase, part) for part in others) for phrase in mine))


def _holds(phrase: Words, part: Words) -> bool:
    return any(phrase[start : start + len(part)] == part for start in range(len(phrase) - len(part) + 1))
