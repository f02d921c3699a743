"""What a route adds to a request's body: sampling parameters and a system prompt. Pure; only what changes is written anew."""

import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from axiond.gateway.body import Fields, Piece, Pieces, fields_in_json, join
from axiond.manifest.routes import SystemPrompt

HEAD_BYTES = 2**16
OVERLAP_BYTES = 64
SYSTEM_ROLES = (b'"system"', b'"developer"')

_DIALECTS = {
    f"{path}{suffix}": dialect
    for path, suffixes, dialect in (
        ("/v1/chat/completions", ("", "/render"), "chat"),
        ("/v1/completions", ("", "/render"), "completions"),
        ("/v1/responses", ("", "/render"), "responses"),
        ("/v1/messages", ("", "/render", "/count_tokens"), "messages"),
    )
    for suffix in suffixes
}
_SYSTEM_FIELDS = {"responses": "instructions", "messages": "system"}
_TWINS = ({"max_tokens", "max_completion_tokens", "max_output_tokens"}, {"stop", "stop_sequences"})  # names for the same
_NAMES = {"responses": {"max_tokens": "max_output_tokens"}, "messages": {"stop": "stop_sequences"}}
_NULL = b"null"
_FIRST = json.JSONDecoder()
_SKIP = msgspec.json.Decoder(msgspec.Raw)
_FOLLOWS = re.compile(r"trailing characters \(byte (\d+)\)")
_ROLE_KEY = b'"role"'

Changed = dict[str, Pieces]


def rewrite(path: str, fields: Fields, sampling: Mapping[str, Any], system: SystemPrompt | None) -> Changed:
    """
    The fields that change in a body on *path*: *sampling* where the client gave none, and the *system* prompt.

    A field that is null was not given. What is not shaped as the API wants it is left to the engine to refuse.
    """
    dialect = _DIALECTS.get(path)
    if dialect is None:
        return {}
    changed = _missing(fields, sampling, dialect)
    if system and dialect == "chat":
        changed |= _in_messages(fields, system)
    elif system and dialect in _SYSTEM_FIELDS:
        changed |= _in_field(_SYSTEM_FIELDS[dialect], fields, system)
    return changed


def _missing(fields: Fields, sampling: Mapping[str, Any], dialect: str) -> Changed:
    added: Changed = {}
    for name, value in sampling.items():
        twins = next((names for names in _TWINS if name in names), {name})
        if not any(_is_given(fields.get(twin)) for twin in twins):
            added[_NAMES.get(dialect, {}).get(name, name)] = (msgspec.json.encode(value),)
    return added


def _in_field(name: str, fields: Fields, system: SystemPrompt) -> Changed:
    """A system prompt that has a field of its own: a string, or a list of blocks."""
    if not _is_given(fields.get(name)) or system.mode == "replace":
        return {name: (msgspec.json.encode(system.text),)}
    return {} if system.mode == "default" else {name: (_prepend(system.text, bytes(fields[name])),)}


def _in_messages(fields: Fields, system: SystemPrompt) -> Changed:
    """A system prompt that is the first message."""
    messages = memoryview(fields.get("messages", _NULL))
    if bytes(messages[:1]) != b"[":
        return {}
    if not _has_system(messages):
        message = msgspec.json.encode({"role": "system", "content": system.text})
        comma = b"" if bytes(messages[1:HEAD_BYTES]).lstrip().startswith(b"]") else b","
        return {"messages": (b"[", message, comma, messages[1:])}
    if system.mode == "default":
        return {}
    start, end = _first_in(messages, HEAD_BYTES) or _long_first_in(messages) or (0, 0)
    first = fields_in_json(messages[start:end]) or {}
    content = bytes(first.get("content", _NULL))
    first["content"] = _prepend(system.text, content) if system.mode == "prepend" else msgspec.json.encode(system.text)
    return {"messages": (b"[", *join(first), messages[end:])}


def _has_system(messages: memoryview) -> bool:
    """Whether the first message is a system prompt. In a very long one the key is searched, which no string can hold."""
    if found := _first_in(messages, HEAD_BYTES):
        return bytes((fields_in_json(messages[slice(*found)]) or {}).get("role", _NULL)) in SYSTEM_ROLES
    windows = (bytes(messages[at : at + HEAD_BYTES + OVERLAP_BYTES]) for at in range(0, len(messages), HEAD_BYTES))
    return next((role for window in windows if (role := _first_role(window))), b"").startswith(SYSTEM_ROLES)


def _first_role(text: bytes) -> bytes:
    """What follows the first key `role`; b"" where it is not there, or too near to the end."""
    at = text.find(_ROLE_KEY) if b'"' in text else -1  # the first byte alone is found fifty times as fast
    while at > 0 and text[at - 1 : at] == b"\\":
        at = text.find(_ROLE_KEY, at + 1)
    return text[at + len(_ROLE_KEY) : at + OVERLAP_BYTES].lstrip(b": \t\r\n") if at > 0 else b""


def _first_in(messages: memoryview, size: int) -> tuple[int, int] | None:
    """Where the first message starts and ends, if within *size* bytes. As Latin-1 every byte is one character."""
    head = str(messages[:size], "latin-1")
    start = len(head) - len(head[1:].lstrip())
    try:
        return start, _FIRST.raw_decode(head, start)[1]
    except (ValueError, RecursionError):
        return None


def _long_first_in(messages: memoryview) -> tuple[int, int] | None:
    """As `_first_in()`, of any size, and nothing is built: the parser complains of what follows, and counts bytes from 1."""
    try:
        _SKIP.decode(messages[1:])
    except (msgspec.DecodeError, RecursionError) as exc:
        return (1, int(found[1])) if (found := _FOLLOWS.search(str(exc))) else None
    return None


def _prepend(text: str, given: bytes) -> bytes:
    """Put *text* before the string or the blocks *given*."""
    if given.startswith(b'"'):
        return msgspec.json.encode(f"{text}\n\n")[:-1] + given[1:]
    if given.startswith(b"[") and not given[1:].lstrip().startswith(b"]"):
        return b"[" + msgspec.json.encode({"type": "text", "text": text}) + b"," + given[1:]
    return msgspec.json.encode(text)


def _is_given(field: Piece | None) -> bool:
    return field is not None and bytes(field) != _NULL
