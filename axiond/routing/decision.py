"""What routing knows of a request, what it may ask meanwhile, and what it decides. Values only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from axiond.manifest.routes import Failure, SystemPrompt

ANY_FAILURE: frozenset[Failure] = frozenset(("error", "overload", "timeout"))

Stage = Literal["keyword", "embedding", "none"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """
    The text that routing reads.

    *text* is what the user said last, sampled if it is long; *tokens* estimates the whole prompt, and the truth lies
    between *least_tokens* and *most_tokens*. *conversation* is a digest that stays the same from turn to turn.
    """

    text: str = ""
    tokens: int = 0
    least_tokens: int = 0
    most_tokens: int = 0
    conversation: str = ""


@dataclass(frozen=True, slots=True)
class Features:
    """One request, as rules see it. *headers* are case-insensitive; *key* and *client*, which is the key or the address, are digests."""

    requested: str
    path: str = "/v1/chat/completions"
    headers: Mapping[str, str] = field(default_factory=dict)
    client: str = ""
    key: str = ""
    key_group: str = ""
    is_stream: bool = False
    has_tools: bool = False
    has_images: bool = False
    response_format: str = "text"
    language: str = ""
    prompt: Prompt = Prompt()


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    What a prompt is about; *domain* is "" where no score reaches its threshold.

    *scores* by domain, in [0, 1], are those of the *stage* that decided. *tokens* were read by the encoder, 0 by keywords alone.
    """

    domain: str = ""
    score: float = 0.0
    stage: Stage = "none"
    scores: Mapping[str, float] = field(default_factory=dict)
    tokens: int = 0
    is_cached: bool = False
    took_s: float = 0.0


@dataclass(frozen=True, slots=True)
class FindDomain:
    """Question: what is the prompt about? The answer is a `Verdict`."""


@dataclass(frozen=True, slots=True)
class CountTokens:
    """Question: how many tokens has the whole prompt for *model*? The answer is a number, or None where nobody can count."""

    model: str


Question = FindDomain | CountTokens
Answer = Verdict | int | None


@dataclass(frozen=True, slots=True)
class Decision:
    """
    What becomes of a request.

    *models*: the chosen one first, then those to fall back on. *route* is "" where no rule matched and the name alone
    decided. *reason* is one line of ASCII. *refusal* is status and message. *counts* are the prompt's tokens for each model
    that was asked about. *is_scored*: how long each model takes to be ready was weighed, so one on its way is waited for.
    """

    models: tuple[str, ...] = ()
    route: str = ""
    reason: str = ""
    fallback_on: frozenset[Failure] = frozenset()
    timeout_s: float | None = None
    max_wait_s: float | None = None
    shadow: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    system_prompt: SystemPrompt | None = None
    refusal: tuple[int, str] | None = None
    verdict: Verdict | None = None
    counts: Mapping[str, int | None] = field(default_factory=dict)
    is_scored: bool = False


@dataclass(slots=True)
class Condition:
    """One condition of a rule: its name, what it wants, what it met, and whether it holds; None: cannot be told."""

    name: str
    wants: str
    met: str
    holds: bool | None


@dataclass(slots=True)
class Tried:
    """One rule tried: conditions in the order looked at, up to the first that did not hold."""

    route: str
    matched: bool | None
    conditions: list[Condition] = field(default_factory=list)


@dataclass(slots=True)
class Scored:
    """One model's score: *fit*, *wait_s* (None: not known) and *cost* as weighed by [auto]."""

    model: str
    score: float
    fit: float
    wait_s: float | None
    cost: float


@dataclass(slots=True)
class Trace:
    """How a decision came about, for explanations."""

    tried: list[Tried] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)
