"""What can be told of a body that is too long to be decoded, or cannot be: from its beginning, its middle and its end. Pure."""

import json
import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from axiond.routing.prompt import IMAGE_TYPES, Said

WINDOW_BYTES = 2**16
MOST_FIELDS = 500
_MIDDLE_BYTES = 2**12
_LONGEST_WORD = 1000

_STRING = r'(?P<value>(?:[^"\\]++|\\.)*+)(?P<end>"?)'
# Inside a string every quote has a backslash before it, so this finds keys only, on whatever level.
_FIELDS = re.compile(
    r'"(?:(?P<list>system|messages|input)"\s*+:\s*+\[\s*+\{'
    rf'|(?P<key>role|type|content|text|input|prompt|query|system|instructions|conversation|prompt_cache_key)"\s*+:\s*+\[?\s*+"{_STRING})',
    re.DOTALL,
)
_REST_OF_STRING = re.compile(r'((?:[^"\\]++|\\.)*+)(?:"\s*+[,}\]]|\Z)', re.DOTALL)
_STREAM = re.compile(r'"stream"\s*+:\s*+true')
_TOOLS = re.compile(r'"(?:tools|functions)"\s*+:\s*+\[\s*+\{')
_FORMAT = re.compile(r'"(?:response_format|output_format|format)"\s*+:\s*+\{\s*+"type"\s*+:\s*+"(text|json_object|json_schema)"')
_IS_CHAT = re.compile(r'"role"\s*+:')
_LENIENT = json.JSONDecoder(strict=False)
_CUT_ESCAPE = re.compile(r"\\u[0-9a-fA-F]{0,3}\Z")


@dataclass(slots=True)
class _Field:
    key: str
    value: str = ""
    is_whole: bool = True


def skim(body: bytes) -> Said:
    """What *body* seems to say; never raises, and takes no longer for a longer one."""
    start = body[:WINDOW_BYTES].decode("utf-8", "ignore")
    tail_starts = _outside_escape(body, max(WINDOW_BYTES, len(body) - WINDOW_BYTES))
    tail = body[tail_starts:].decode("utf-8", "ignore")
    windows = (start, tail)
    unread_bytes = max(0, tail_starts - WINDOW_BYTES)
    said = Said(read_bytes=len(body) - unread_bytes, unread_bytes=unread_bytes)
    said.is_stream = any(_STREAM.search(window) for window in windows)
    said.has_tools = any(_TOOLS.search(window) for window in windows)
    said.is_chat = any(_IS_CHAT.search(window) for window in windows)
    said.response_format = next((found[1] for window in windows if (found := _FORMAT.search(window))), "text")
    begun = [*_fields(islice(_FIELDS.finditer(start), MOST_FIELDS))]
    ended = [*_fields(deque(_FIELDS.finditer(tail), MOST_FIELDS))]
    rest = _REST_OF_STRING.match(tail) if tail and begun and not begun[-1].is_whole else None
    if rest and not _is_data(rest[1]):
        begun[-1].value += f"\n{_middle(body)}\n{_unescape(rest[1])}"
    _take(said, [*begun, *ended])
    if tail:
        _take(head := Said(), begun)
        said.begins = Said([*(turn for turn in said.turns if turn[0] == "system"), *head.turns]).beginning()
    return said


def _fields(matches: Iterable[re.Match[str]]) -> Iterator[_Field]:
    for found in matches:
        if found["list"]:
            yield _Field(f"{found['list']} list")
        else:
            yield _Field(found["key"], _unescape(found["value"]), bool(found["end"]))


def _take(said: Said, fields: list[_Field]) -> None:
    """Sort *fields* into turns."""
    is_role_first = _is_role_first(fields)
    role = "user"
    without_role = 0
    for found in fields:
        match found.key:
            case "messages list" | "input list" | "system list":
                role, without_role = "system" if found.key == "system list" else "user", len(said.turns)
            case "role":
                role = "system" if found.value == "developer" else found.value
                if not is_role_first:
                    said.turns[without_role:] = [(role, text) for _, text in said.turns[without_role:]]
                    without_role = len(said.turns)
            case "type":
                said.has_images |= found.value in IMAGE_TYPES
            case "conversation" | "prompt_cache_key":
                said.conversation = said.conversation or found.value
            case "system" | "instructions":
                said.turns.insert(0, ("system", found.value))
                without_role += 1
            case _:
                said.turns.append((role, found.value))


def _is_role_first(fields: list[_Field]) -> bool:
    """Some clients write the role of a turn before its text, some after it."""
    begins = next((place for place, found in enumerate(fields) if found.key in ("messages list", "input list")), 0)
    return next((found.key == "role" for found in fields[begins:] if found.key in ("role", "content", "text")), True)


def _middle(body: bytes) -> str:
    start = _outside_escape(body, (len(body) - _MIDDLE_BYTES) // 2)
    text = body[start : start + _MIDDLE_BYTES].decode("utf-8", "ignore")
    return "" if _is_data(text) else _unescape(text.replace('"', " ").replace("\\ ", " "))


def _outside_escape(body: bytes, at: int) -> int:
    """The first place from *at* on where no escape is cut through."""
    escape = body.rfind(b"\\u", max(0, at - 5), at + 1)
    if escape >= 0:
        at = escape + 6
    slashes = at - len(body[max(0, at - 64) : at].rstrip(b"\\")) - max(0, at - 64)
    return at + slashes % 2


def _is_data(text: str) -> bool:
    """Whether *text* is an encoded file: no language writes so long without a break."""
    return len(text) > _LONGEST_WORD and text.isascii() and " " not in text[:_LONGEST_WORD] and "\\n" not in text[:_LONGEST_WORD]


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    for attempt in (text, _CUT_ESCAPE.sub("", text), text[:-1]):
        try:
            plain = str(_LENIENT.decode(f'"{attempt}"'))
        except ValueError:
            continue
        return plain.encode("utf-8", "replace").decode()
    return text.replace("\\n", "\n").replace("\\", "")
