"""Find and replace the model's name in a request body, and leave every other value alone, byte for byte."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from axiond.errors import RequestError

MOST_LENIENT_BYTES = 2**18  # Python's parser is slow, and holds the loop up from a thread too
MOST_HEAD_BYTES = 2**13
LONG_BYTES = 2**20
MOST_PARTS = 2000  # vLLM's own form parser takes as many

# Possessive, so that a hostile line costs no more than its length.
_IS_MODEL = re.compile(
    rb"(?i:content-disposition):[^;]*+"
    rb'(?:;[ \t]*+(?!(?i:name)=)[^";]*+(?:"(?:[^"\\]|\\.)*+"[^";]*+)*+)*+'
    rb';[ \t]*+(?i:name)=(?:"model"|model)[ \t]*+(?:;|$)'
)


Piece = bytes | memoryview | msgspec.Raw
Pieces = tuple[Piece, ...]
Fields = dict[str, Piece]


class _Head(msgspec.Struct):
    model: str | None = None


class _Mode(msgspec.Struct):
    stream: bool | None = None


# Both skip what they do not need, which is ten times as fast as to build it. A thread would not help: parsers hold the GIL.
_HEAD = msgspec.json.Decoder(_Head)
_MODE = msgspec.json.Decoder(_Mode)
_FIELDS: msgspec.json.Decoder[Fields] = msgspec.json.Decoder(dict[str, msgspec.Raw])


def as_utf8(raw: bytes) -> bytes:
    """JSON in UTF-8 without a mark, as all expect that read it here; vLLM would take UTF-16 too, and no rule would see what it says."""
    encoding = json.detect_encoding(raw)
    if encoding == "utf-8" or len(raw) > MOST_LENIENT_BYTES:
        return raw
    try:
        return raw.decode(encoding, "surrogatepass").encode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return raw


def model_in_json(raw: bytes) -> str | None:
    """
    Read the `model` of a JSON body; None where it has none.

    Raises:
        RequestError: 400, not a JSON object or `model` is no string.
    """
    try:
        return _HEAD.decode(raw).model or None
    except (msgspec.DecodeError, RecursionError) as exc:
        model = _load_leniently(raw, exc).get("model")
    if model is not None and not (isinstance(model, str) and _is_text(model)):
        raise RequestError(400, "invalid_type", "`model` must be a string.", param="model")
    return model or None


def model_and_fields(raw: bytes) -> tuple[str | None, Fields | None]:
    """As `model_in_json()`. The fields of a long body come with it: to find them again would take as long as to find the name."""
    fields = fields_in_json(raw) if len(raw) > LONG_BYTES else None
    return model_in_json(raw if fields is None else b"{%s}" % b"".join((b'"model":', fields.get("model", b"null")))), fields


def wants_stream(raw: bytes) -> bool:
    """Whether a JSON body asks for a stream; not where that is hard to tell."""
    try:
        return _MODE.decode(raw).stream or False
    except (msgspec.DecodeError, RecursionError):
        return False


def fields_in_json(raw: bytes | memoryview) -> Fields | None:
    """The fields of a JSON object, as they are written; None where that is hard to tell."""
    try:
        return _FIELDS.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return None


def join(fields: Mapping[str, Piece | Pieces]) -> Pieces:
    """The JSON object of *fields*, in pieces; numbers keep all their digits and text its escapes."""
    pieces: list[Piece] = []
    for name, value in fields.items():
        pieces += (b"," if pieces else b"{", msgspec.json.encode(name), b":", *(value if isinstance(value, tuple) else (value,)))
    return (*pieces, b"}") if pieces else (b"{}",)


def rename_in_json(raw: bytes, new: str) -> Pieces:
    """Replace the value of `model`, and nothing else."""
    try:
        fields = _FIELDS.decode(raw)
    except msgspec.DecodeError as exc:
        return (json.dumps({**_load_leniently(raw, exc), "model": new}, separators=(",", ":")).encode(),)
    return join({**fields, "model": msgspec.json.encode(new)})


@dataclass(slots=True)
class Ask:
    """
    A body and the name it asks for; *is_named* is false where the name was supplied here.

    *known* are the body's fields, where they were found with the name, and *changed* those that a route writes anew.
    """

    name: str
    body: bytes | None
    is_named: bool = True
    form_type: str = ""
    known: Fields | None = None
    changed: Mapping[str, Pieces] = field(default_factory=dict)

    @property
    def fields(self) -> Fields | None:
        """Found when they are needed first; None where there are none, or none that could be told."""
        if self.known is None and self.body is not None and not self.form_type:
            self.known = fields_in_json(self.body) or _fields_leniently(self.body)
        return self.known

    def body_for(self, name: str) -> bytes | Pieces | None:
        """The body that asks for *name*: the very same bytes if it does already, and nothing else changes."""
        is_renamed = self.is_named and name != self.name
        if self.body is None or not (is_renamed or self.changed):
            return self.body
        if self.form_type:
            return rename_in_form(self.body, self.form_type, name)
        if (fields := self.fields) is None:
            return rename_in_json(self.body, name)
        return join({**fields, **({"model": msgspec.json.encode(name)} if is_renamed else {}), **self.changed})


def model_in_form(raw: bytes, content_type: str) -> str | None:
    """
    Read the field `model` of a multipart form; None where it has none.

    Raises:
        RequestError: 400, no form that could be read.
    """
    start, end = _form_value(raw, content_type)
    return raw[start:end].decode("utf-8", "replace") or None


def rename_in_form(raw: bytes, content_type: str, new: str) -> bytes:
    """Replace the value of the field `model`, which must be there."""
    start, end = _form_value(raw, content_type)
    return raw[:start] + new.encode() + raw[end:]


def _fields_leniently(raw: bytes) -> Fields | None:
    """The fields of a body that has NaN in it, written anew."""
    try:
        found = _load_leniently(raw, ValueError())
    except RequestError:
        return None
    return {name: json.dumps(value).encode() for name, value in found.items()} if all(map(_is_text, found)) else None


def _load_leniently(raw: bytes, why: Exception) -> dict[str, object]:
    """VLLM reads NaN too, so in bodies of usual size it is its to judge."""
    try:
        if len(raw) > MOST_LENIENT_BYTES:
            raise ValueError(why)
        body = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise RequestError(400, "invalid_json", f"The request body is not valid JSON: {str(exc)[:200]}") from exc
    if not isinstance(body, dict):
        raise RequestError(400, "invalid_json", "The request body must be a JSON object.")
    return body


def _is_text(name: str) -> bool:
    """Half a surrogate pair is none, though Python's parser lets it through."""
    return name.encode("utf-8", "replace").decode() == name


def _form_value(raw: bytes, content_type: str) -> tuple[int, int]:
    """Where the value of the field `model` starts and ends; (0, 0) if there is none."""
    boundary = re.search(r'boundary=("[^"]+"|[^;\s]+)', content_type)
    if not boundary or not boundary[1].isascii():
        raise RequestError(400, "invalid_form", "The multipart form's Content-Type names no boundary of ASCII characters.")
    delimiter = b"\r\n--" + boundary[1].strip('"').encode()
    start = 0 if raw.startswith(delimiter[2:]) else raw.find(delimiter)
    for _ in range(MOST_PARTS):
        end = raw.find(delimiter, start + 2)
        if start < 0 or end < 0:
            return 0, 0
        head_end = raw.find(b"\r\n\r\n", start, min(end, start + MOST_HEAD_BYTES))
        if head_end >= 0 and any(_IS_MODEL.match(line) for line in raw[start:head_end].split(b"\r\n")):
            return head_end + 4, end
        start = end
    raise RequestError(400, "invalid_form", f"The multipart form has more than {MOST_PARTS} parts.")
