"""The tables that decide which model answers a request: routes, domains, and how models are scored. All of it is `live`."""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, SecretStr, StringConstraints

from axiond.manifest.fields import LinearRegex, Name, Seconds, Spec, live

Text = Annotated[str, StringConstraints(min_length=1)]
Pattern = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Language = Annotated[str, StringConstraints(pattern=r"^[a-z]{2}$")]
HeaderName = Annotated[str, StringConstraints(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
Hours = Annotated[str, StringConstraints(pattern=r"^([01]\d|2[0-3]):[0-5]\d-(([01]\d|2[0-3]):[0-5]\d|24:00)$")]
Failure = Literal["error", "overload", "timeout"]
Sticky = Literal["conversation", "key"]


class Match(Spec):
    """A request has to meet every condition that is given, and of a list any entry."""

    model: tuple[Pattern, ...] = live((), 'Names that requests ask for; "*" stands for any characters.')
    path: tuple[Pattern, ...] = live((), 'Paths like "/v1/embeddings"; "*" stands for any characters.')
    headers: Mapping[HeaderName, LinearRegex] = live({}, "Headers that must be there, and a regular expression to be found in each.")
    api_key: tuple[SecretStr, ...] = live((), "API keys.")
    key_group: tuple[Name, ...] = live((), "Groups of API keys, as named in server.key_groups.")
    stream: bool | None = live(None, "Whether the answer is asked for as a stream.")
    tools: bool | None = live(None, "Whether tools are offered.")
    images: bool | None = live(None, "Whether the messages hold images.")
    response_format: tuple[Literal["text", "json_object", "json_schema"], ...] = live((), "The format that is asked for.")
    language: tuple[Language, ...] = live((), 'Languages of the prompt, as ISO 639-1 codes like "es".')
    min_prompt_tokens: int | None = live(None, "Shortest prompt, in tokens.", ge=0)
    max_prompt_tokens: int | None = live(None, "Longest prompt, in tokens.", ge=0)
    keywords: tuple[Text, ...] = live((), "Words or phrases in the prompt, in any case, with or without accents.")
    regex: tuple[LinearRegex, ...] = live((), "Regular expressions (RE2) to be found in the prompt.")
    domain: tuple[Name, ...] = live((), "What the prompt is about, as defined in [domains].")
    hours: Hours | None = live(None, 'Time of day on this machine, like "08:00-18:00"; it may pass midnight.')
    days: tuple[Day, ...] = live((), "Days of the week on this machine, on which the hours begin.")
    percent: float | None = live(None, "Share of the requests that pass, in percent.", gt=0, le=100)
    sticky: Sticky = live("conversation", "What is always on the same side of percent: a conversation, or an API key.")


def _weighted(written: Any) -> Any:
    match written:
        case str():
            return {"model": written}
        case dict() | Weighted():
            return written
    raise ValueError("must be a model's name or a table")


class Weighted(Spec):
    model: Name = live(description="A model's name.")
    weight: float | None = live(
        None, "Share of the requests; all weights of a route sum to 100 or to 1. Equal shares if none is given.", ge=0
    )


class Canary(Spec):
    model: Name = live(description="The model on trial.")
    percent: float = live(description="Share of the requests that it gets, in percent.", gt=0, lt=100)
    sticky: Sticky = live("conversation", "What always gets the same model: a conversation, or an API key.")


class Shadow(Spec):
    model: Name = live(description="A model that gets a copy of each request; its answer is discarded, its figures are kept.")
    percent: float = live(100.0, "Share of the requests that are copied, in percent.", gt=0, le=100)


class Sampling(Spec):
    """What the engine is asked for where a request says nothing; a field that is unset is left to the engine."""

    temperature: float | None = live(None, "0 for always the likeliest token.", ge=0, le=2)
    top_p: float | None = live(None, "Tokens of this much probability together are drawn from.", gt=0, le=1)
    top_k: int | None = live(None, "So many of the likeliest tokens are drawn from; 0 for all.", ge=-1)
    min_p: float | None = live(None, "Least probability of a token that is drawn, relative to the likeliest.", ge=0, le=1)
    max_tokens: int | None = live(None, "Longest answer in tokens, by whatever name the path gives it.", ge=1)
    min_tokens: int | None = live(None, "Shortest answer in tokens.", ge=0)
    frequency_penalty: float | None = live(None, "Against tokens, for each time they were there.", ge=-2, le=2)
    presence_penalty: float | None = live(None, "Against tokens that were there.", ge=-2, le=2)
    repetition_penalty: float | None = live(None, "Above 1 against tokens that were there, the prompt included.", gt=0)
    seed: int | None = live(None, "Makes draws repeatable.")
    stop: Text | tuple[Text, ...] | None = live(None, "Texts that end the answer.")
    stop_token_ids: tuple[int, ...] | None = live(None, "Tokens that end the answer.")
    bad_words: tuple[Text, ...] | None = live(None, "Words that are never generated.")
    logit_bias: Mapping[str, float] | None = live(None, "Added to the logits of tokens, by their number.")
    ignore_eos: bool | None = live(None, "Go on after the end.")
    skip_special_tokens: bool | None = live(None, "Leave special tokens out of the answer.")
    include_stop_str_in_output: bool | None = live(None, "Leave the text that ended the answer in it.")
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = live(None, "How much the model thinks.")
    thinking_token_budget: int | None = live(None, "Longest thinking in tokens.", ge=-1)
    chat_template_kwargs: Mapping[str, Any] | None = live(None, "Settings of the chat template, like enable_thinking.")

    @cached_property
    def given(self) -> Mapping[str, Any]:
        """What is set, as JSON has it."""
        return self.model_dump(mode="json", exclude_none=True)


class SystemPrompt(Spec):
    text: Text = live(description="The system prompt.")
    mode: Literal["default", "prepend", "replace"] = live(
        "default", "default: where the request has none; prepend: before its own; replace."
    )


class Refusal(Spec):
    status: int = live(403, "HTTP status.", ge=400, le=599)
    message: Text = live(description="What the client is told.")


class Route(Spec):
    """
    Which requests, and what becomes of them; the first route that matches decides.

    Without `when` it takes the requests that ask for its name. With neither models nor refusal the model asked for answers.
    """

    name: Name = live(description="Its name, in answers, metrics and explanations; without `when`, what requests ask for.")
    when: Match | None = live(None, "Which requests it takes; unset, those that ask for its name.")
    models: tuple[Annotated[Weighted, BeforeValidator(_weighted, json_schema_input_type=Name | Weighted)], ...] = live(
        (), "The models that share the requests; names, or tables with a weight."
    )
    choose: Literal["weight", "score"] = live("weight", "By weight, or the best score of [auto].")
    canary: Canary | None = live(None, "A model on trial, which gets a small share of the requests.")
    shadow: Shadow | None = live(None, "A model that gets a copy of the requests; its answers are discarded, its figures are kept.")
    fallback: tuple[Name, ...] = live(
        (), "Models tried in this order when the chosen one cannot answer, or is not loaded and timeout and max_wait are unset."
    )
    fallback_on: tuple[Failure, ...] = live(("error", "overload", "timeout"), "What makes the next model be tried.")
    timeout: Seconds | None = live(None, "Longest wait for the beginning of an answer, before the next model is tried.")
    max_wait: Seconds | None = live(
        None, "Longest expected wait for a turn; a model with more is overloaded. Unset: when its queue is full."
    )
    sampling: Sampling = live(Sampling(), "Sampling parameters for requests that do not give them, like temperature.")
    system_prompt: SystemPrompt | None = live(None, "A system prompt for the requests.")
    refuse: Refusal | None = live(None, "Requests are not answered, but told so.")


class Domain(Spec):
    """What prompts can be about. Needs a description, examples or keywords."""

    description: str = live("", "A sentence that says what such prompts are about.")
    examples: tuple[Text, ...] = live((), "Prompts of this domain, in any language.")
    keywords: tuple[Text, ...] = live((), "Words and phrases that tell it, in any language.")
    threshold: float | None = live(None, "Instead of semantic.threshold.", ge=0, le=1)


class Semantic(Spec):
    """How the domain of a prompt is found: by keywords, and by embeddings where they are not sure."""

    embedding_model: Text | None = live(None, "A sentence-transformers folder, or pypi:PACKAGE; without one, keywords alone tell domains.")
    keyword_threshold: float = live(
        0.8, "Score of the keywords from which no embedding is computed: one scores 0.67, two that agree 0.8.", ge=0, le=1
    )
    threshold: float = live(
        0.25, "Score of the embedding below which a prompt has no domain: 1 is a text like its examples, 0 one unlike all.", ge=0, le=1
    )
    margin: float = live(0.1, "Lead over the second domain below which more of a long prompt is read.", ge=0, le=1)
    cache_entries: int = live(10_000, "Embeddings that are remembered, by the text's hash.", ge=0, le=1_000_000)


AUTO = "auto"  # what requests ask for to have all models scored


class Auto(Spec):
    """The score of a model for a request: fit times its fit, minus wait times the expected wait, minus cost times its cost."""

    fit: float = live(1.0, "Weight of how good the model is at the prompt's domain.", ge=0)
    wait: float = live(0.05, "Weight of each second until the model would answer.", ge=0)
    cost: float = live(0.1, "Weight of the model's cost.", ge=0)
    residency: bool = live(True, "Whether it counts that a model has to be loaded, or has others waiting.")
