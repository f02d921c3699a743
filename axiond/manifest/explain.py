"""Pydantic's errors as sentences for people, with the key path of what was written."""

import json
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ByteSize, ValidationError
from pydantic_core import ErrorDetails

from axiond.manifest.document import KeyPath, follow
from axiond.manifest.expand import Found
from axiond.manifest.nearest import did_you_mean
from axiond.manifest.spec import TYPED_OPTIONS, Manifest, ModelSpec

SENTENCES = {
    "int": "must be a whole number",
    "float": "must be a number",
    "finite": "must be a finite number",
    "bool": "must be true or false",
    "string": "must be text in quotes",
    "tuple": "must be a list",
    "list": "must be a list",
    "mapping": "must be a table",
    "dict": "must be a table",
    "model": "must be a table",
    "path": "must be a path in quotes",
    "byte": 'must be a size like "2GiB"',
}
PATTERNS = {
    "listen": 'must be an address and port like "127.0.0.1:8080"',
    "hours": 'must be hours and minutes like "08:00-18:00"',
    "language": 'must be a code of ISO 639-1 like "es"',
    "headers": "is no name of a header",
}
SECRET = frozenset(("api_keys", "key_groups", "api_key"))


def explain(error: ValidationError, tree: Mapping[str, Any], written: Callable[[KeyPath], Any]) -> Iterator[Found]:
    """
    Yield key path, sentence and remedy for everything wrong with *tree*.

    What a union says of its members becomes one sentence. *written* tells what stands in the file before variables are
    replaced, so that no sentence holds what came out of a secret's file.
    """
    by_path: dict[KeyPath, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        by_path.setdefault(_written_path(details, tree), []).append(details)
    around = {at[:depth] for at in by_path for depth in range(len(at))}
    for at, alternatives in by_path.items():
        if at in around and all(details["type"].endswith(("_type", "too_short")) for details in alternatives):
            continue  # a list that is too short without its bad items, or that is not the text of a union
        yield _explain_one(at, alternatives, written(at) if SECRET.isdisjoint(at) else None)


def fields_at(at: KeyPath) -> type[BaseModel] | None:
    """The table of fields that *at* leads to."""
    return _walk(at)[0]


def _written_path(details: ErrorDetails, tree: Mapping[str, Any]) -> KeyPath:
    """Pydantic's location without the tags it puts in for members of a union and for keys."""
    at: KeyPath = ()
    value: Any = tree
    for key in details["loc"]:
        below, there = follow(value, (key,))
        if there:
            at, value = (*at, key), below
    return (*at, details["loc"][-1]) if details["type"] == "missing" else at


def _explain_one(at: KeyPath, alternatives: list[ErrorDetails], value: Any) -> Found:
    specific = [details for details in alternatives if not details["type"].endswith("_type")]
    if not specific and len(alternatives) > 1:
        wanted = dict.fromkeys(_sentence(details, at).removeprefix("must be ") for details in alternatives)
        return at, f"must be {' or '.join(wanted)}{_instead(value)}", ""
    details = (specific or alternatives)[0]
    if details["type"] == "missing":
        return at, "is missing", _description(at)
    if details["type"] == "extra_forbidden":
        return at, "no such field", _remedy_for_unknown(at, value)
    if details["type"] == "literal_error":
        return at, f"is not allowed{_instead(value, ': ')}", _allowed(at, value, details)
    sentence = _sentence(details, at)
    return at, sentence + (_instead(value) if sentence.startswith("must") else ""), ""


def _sentence(details: ErrorDetails, at: KeyPath) -> str:
    kind, context = details["type"], details.get("ctx", {})
    limit = next((value for key, value in context.items() if key in ("ge", "gt", "le", "lt", "min_length", "max_length")), None)
    match kind:
        case "value_error" | "assertion_error":
            return str(context["error"])
        case "greater_than_equal" | "greater_than" | "less_than_equal" | "less_than":
            words = {"greater_than_equal": "at least", "greater_than": "more than", "less_than_equal": "at most", "less_than": "less than"}
            return f"must be {words[kind]} {_amount(at, limit)}"
        case "too_short" | "string_too_short":
            return "must not be empty" if limit == 1 else f"must have at least {limit} entries"
        case "too_long" | "string_too_long":
            return f"must have at most {limit} {'characters' if kind.startswith('string') else 'entries'}"
        case "string_pattern_mismatch":
            return next(PATTERNS[key] for key in reversed(at) if key in PATTERNS)
    return SENTENCES.get(kind.split("_")[0], details["msg"].replace("Input should be", "must be"))


def _amount(at: KeyPath, limit: Any) -> str:
    _, annotation = _walk(at)
    if annotation is ByteSize:
        return ByteSize(limit).human_readable()
    return f"{limit:g}" if isinstance(limit, float) else str(limit)


def _instead(value: Any, joint: str = ", not ") -> str:
    if value == "" or not isinstance(value, str | int | float):
        return ""
    text = json.dumps(value, ensure_ascii=False)
    return joint + (text if len(text) <= 60 else text[:57] + '..."')


def _allowed(at: KeyPath, value: Any, details: ErrorDetails) -> str:
    allowed = list(_literals(_walk(at)[1])) or [details["ctx"]["expected"]]
    return f"{did_you_mean(str(value), allowed)} allowed: {', '.join(allowed)}".strip()


def _literals(annotation: Any) -> Iterator[str]:
    """The words that are allowed, also as items of a list."""
    for part in typing.get_args(annotation):
        if isinstance(part, str):
            yield part
        else:
            yield from _literals(part)


def _description(at: KeyPath) -> str:
    fields = fields_at(at[:-1])
    info = fields.model_fields.get(str(at[-1])) if fields else None
    return info.description[:1].lower() + info.description[1:].rstrip(".") if info and info.description else ""


def _remedy_for_unknown(at: KeyPath, value: Any) -> str:
    fields, key = fields_at(at[:-1]), str(at[-1])
    if fields is None:
        return ""
    is_model = fields is ModelSpec and at[0] == "models"
    if is_model and isinstance(value, Mapping) and not did_you_mean(key, fields.model_fields):
        return f'a name with a dot is written in quotes: [models."{at[-2]}.{key}"]'
    twin = TYPED_OPTIONS.get(key.replace("_", "-"), "") if is_model else ""
    if twin.split(".")[0] in fields.model_fields:
        return f'did you mean "{twin}"?'
    last = "vLLM's other options go into engine_args" if is_model else f"there are {', '.join(fields.model_fields)}"
    return did_you_mean(key, fields.model_fields) or last


def _walk(at: KeyPath) -> tuple[type[BaseModel] | None, Any]:
    """The table that *at* ends in, and the annotation of what is there."""
    fields: type[BaseModel] | None = Manifest
    annotation: Any = Manifest
    is_entry = False
    for key in at:
        if is_entry:
            is_entry = False
            continue
        info = fields.model_fields.get(str(key)) if fields else None
        if info is None:
            return None, None
        annotation = info.annotation
        fields = _table_in(annotation)
        is_entry = _is_container(annotation)
    return fields, annotation


def _is_container(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (tuple, Mapping)


def _table_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((table for part in typing.get_args(annotation) if (table := _table_in(part))), None)
