"""
What a request's body says: its text, its flags, and what its conversation begins with. Pure.

Bodies of the usual size are decoded, but only the fields below. Larger ones, and those that do not decode, are skimmed.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

MOST_PARSED_BYTES = 2**18
MOST_CHARS = 16_384
ENOUGH_CHARS = 200
CONVERSATION_CHARS = 4096
IMAGE_TYPES = frozenset({"image_url", "input_image", "image", "image_pil", "image_embeds"})

_HEAD_CHARS, _MIDDLE_CHARS, _TAIL_CHARS = MOST_CHARS // 2, MOST_CHARS // 4, MOST_CHARS // 4 - 2


@dataclass(slots=True)
class Said:
    """
    What was read.

    *turns* are role and text, in their order; *rest* is text of no turn, like tools. *token_ids* counts what was given as
    numbers. *conversation* is the name that the client gives it. Of a long body only *read_bytes* were looked at, and *begins*
    is its `beginning()`, where the user's part comes from the first of them: the last holds another turn each time.
    """

    turns: list[tuple[str, str]] = field(default_factory=list)
    rest: list[str] = field(default_factory=list)
    is_chat: bool = False
    token_ids: int = 0
    is_stream: bool = False
    has_tools: bool = False
    has_images: bool = False
    response_format: str = "text"
    conversation: str = ""
    begins: str | None = None
    read_bytes: int = 0
    unread_bytes: int = 0

    def text(self) -> str:
        """What the user said last, and of the turns before so many that it is not just "go on"; sampled where it is long."""
        taken: list[str] = []
        chars = 0
        for role, text in reversed(self.turns):
            if role == "user":
                taken.append(sample(text))
                chars += len(text)
                if chars >= ENOUGH_CHARS:
                    break
        return sample("\n".join(reversed(taken)) if taken else next((text for _, text in self.turns), ""))

    def beginning(self) -> str:
        """What stays the same from turn to turn: how the system prompt begins, and what the user said first."""
        if self.begins is not None:
            return self.begins
        system, user = (next((text[:CONVERSATION_CHARS] for by, text in self.turns if by == role), "") for role in ("system", "user"))
        return f"{system}\0{user}" if user else ""


class _Part(msgspec.Struct):
    type: str = ""
    text: str | None = None
    content: "str | list[_Part | str] | None" = None


_Content = str | list[_Part | str] | None


class _Turn(msgspec.Struct):
    role: str = ""
    content: _Content = None
    output: _Content = None
    tool_calls: msgspec.Raw = msgspec.Raw()


class _Kind(msgspec.Struct):
    type: str = "text"


class _Format(msgspec.Struct):
    format: _Kind | None = None


class _Id(msgspec.Struct):
    id: str = ""


_Prompt = str | list[str | int | list[int] | _Turn] | None


class _Body(msgspec.Struct):
    """The fields of all dialects: only `text` means several things."""

    messages: list[_Turn] = []
    system: _Content = None
    instructions: _Content = None
    input: _Prompt = None
    prompt: _Prompt = None
    query: _Prompt = None
    texts: list[str] | None = None
    token_ids: list[int] | None = None
    documents: msgspec.Raw = msgspec.Raw()
    text_1: msgspec.Raw = msgspec.Raw()
    text_2: msgspec.Raw = msgspec.Raw()
    stream: bool | None = None
    tools: msgspec.Raw = msgspec.Raw()
    functions: msgspec.Raw = msgspec.Raw()
    response_format: _Kind | None = None
    output_format: _Kind | None = None
    text: _Format | str | list[str] | None = None
    conversation: _Id | str | None = None
    prompt_cache_key: str | None = None


Fields = Mapping[str, bytes | memoryview | msgspec.Raw]

_BODY = msgspec.json.Decoder(_Body)
_FORMATS: Mapping[str, msgspec.json.Decoder[_Kind | None] | msgspec.json.Decoder[_Format | None]] = {
    "response_format": msgspec.json.Decoder(_Kind | None),
    "output_format": msgspec.json.Decoder(_Kind | None),
    "text": msgspec.json.Decoder(_Format | None),
}
_NOTHING = (b"", b"null", b"[]")


def parse(body: bytes) -> Said:
    """
    What a body of the usual size says.

    Raises:
        ValueError: it is not what any dialect sends.
    """
    try:
        return _said(_BODY.decode(body))
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc


def take_flags(said: Said, fields: Fields) -> None:
    """Put right what was told of a body in parts, by all its *fields*."""
    said.is_stream = _start(fields, "stream") == b"true"
    said.has_tools = any(_start(fields, name) not in _NOTHING for name in ("tools", "functions"))
    said.response_format = next((kind for name in _FORMATS if name in fields and (kind := _format_in(name, fields))), "text")


def sample(text: str) -> str:
    """Head, middle and tail of a long text."""
    if len(text) <= MOST_CHARS:
        return text
    middle = (len(text) - _MIDDLE_CHARS) // 2
    return f"{text[:_HEAD_CHARS]}\n{text[middle : middle + _MIDDLE_CHARS]}\n{text[-_TAIL_CHARS:]}"


def _said(body: _Body) -> Said:
    said = Said(is_chat=bool(body.messages), is_stream=body.stream or False)
    for content in (body.system, body.instructions):
        _add_turn(said, "system", content)
    for turn in body.messages:
        _add_turn(said, turn.role, turn.content)
        if turn.tool_calls:
            _add_rest(said, turn.tool_calls)
    for prompt in (body.input, body.prompt, body.query, body.texts, body.token_ids):
        _add_prompt(said, prompt)
    _add_rest(said, body.documents, body.text_1, body.text_2)
    said.has_tools = _add_rest(said, body.tools, body.functions)
    said.response_format = _format(body)
    named = body.conversation.id if isinstance(body.conversation, _Id) else body.conversation
    said.conversation = named or body.prompt_cache_key or ""
    return said


def _add_turn(said: Said, role: str, content: _Content) -> None:
    text = content if isinstance(content, str) else "\n".join(_texts(said, content or ()))
    if text:
        said.turns.append(("system" if role == "developer" else role, text))


def _add_rest(said: Said, *values: msgspec.Raw) -> bool:
    """Note what counts for its length alone; whether there is any."""
    given = [bytes(value).decode() for value in values if bytes(value) not in _NOTHING]
    said.rest += given
    return bool(given)


def _add_prompt(said: Said, prompt: "_Prompt | list[str] | list[int]") -> None:
    match prompt:
        case str() if prompt:
            said.turns.append(("user", prompt))
        case [str(), *_]:
            _add_turn(said, "user", "\n".join(text for text in prompt if isinstance(text, str)))
        case [int(), *_]:
            said.token_ids += len(prompt)
        case [list(), *_]:
            said.token_ids += sum(len(ids) for ids in prompt if isinstance(ids, list))
        case [_Turn(), *_]:
            said.is_chat = True
            for turn in prompt:
                if isinstance(turn, _Turn):
                    _add_turn(said, turn.role, turn.content)
                    _add_turn(said, "tool", turn.output)


def _texts(said: Said, parts: Iterable[_Part | str]) -> Iterator[str]:
    """The texts of *parts*; notes images on the way."""
    for part in parts:
        if isinstance(part, str):
            yield part
            continue
        said.has_images |= part.type in IMAGE_TYPES
        if part.text:
            yield part.text
        if part.content:  # what a tool found is not what the user said
            said.rest += (part.content,) if isinstance(part.content, str) else _texts(said, part.content)


def _format(body: _Body) -> str:
    kind = body.response_format or body.output_format or (body.text.format if isinstance(body.text, _Format) else None)
    return kind.type if kind else "text"


def _start(fields: Fields, name: str) -> bytes:
    """As much of a field as tells whether it is there; none is copied whole."""
    return bytes(memoryview(fields.get(name, b""))[:8])


def _format_in(name: str, fields: Fields) -> str:
    try:
        found = _FORMATS[name].decode(fields[name])
    except (msgspec.DecodeError, RecursionError):
        return ""
    kind = found.format if isinstance(found, _Format) else found
    return kind.type if kind else ""
