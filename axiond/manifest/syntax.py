"""Bytes to a tree of plain values, or the place where they are no TOML or JSON."""

import json
import re
import tomllib
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from itertools import islice
from pathlib import Path
from typing import Any

from axiond.errors import ManifestError, Place, Problem
from axiond.manifest.document import MAX_PROBLEMS, dotted, is_json
from axiond.manifest.place import Position, column_of, duplicate_keys

LONG_DOTTED_KEY = re.compile(r"""(?<![\w"'-])(?>(?:[\w-]++|"[^"\n]{0,99}+"|'[^'\n]{0,99}+')[ \t]*+\.[ \t]*+){64}""")
"""tomllib needs quadratic time and memory for keys of thousands of parts."""

TOML_WORDS = {
    "Cannot overwrite a value": "this is already defined above",
    "Cannot redefine an existing table": "this table is already defined above",
    "Invalid statement": 'expected a [table] or "key = value"',
    "Invalid value": "expected a value: text goes in quotes",
    "Unterminated string": "the text has no closing quote",
    "Unclosed array": 'the list has no closing "]"',
}


def parse_syntax(path: Path, text: bytes) -> tuple[dict[str, Any], list[Problem]]:
    """
    Parse a whole file: JSON if it is called so, else TOML.

    Returns:
        The tree, and a problem for every key of a JSON object that stands there twice.

    Raises:
        ManifestError: there is no tree; with line and column.
    """
    try:
        characters = _decode(text)
        data, has_duplicates = _parse_json(characters) if is_json(path) else (_parse_toml(characters), False)
    except _Wrong as exc:
        raise ManifestError([Problem(Place(str(path), *exc.position), exc.what, exc.remedy)]) from exc
    except RecursionError:
        raise ManifestError([Problem(Place(str(path)), "the file is nested too deeply")]) from None
    duplicates = islice(duplicate_keys(text), MAX_PROBLEMS) if has_duplicates else []
    return data, [Problem(Place(str(path), *position, dotted(at)), "the key stands twice in one object") for at, position in duplicates]


class _Wrong(Exception):
    def __init__(self, position: Position, what: str, remedy: str = "") -> None:
        self.position, self.what, self.remedy = position, what, remedy
        super().__init__(what)


def _position(text: bytes, offset: int) -> Position:
    return text.count(b"\n", 0, offset) + 1, column_of(text, offset)


def _decode(text: bytes) -> str:
    if text.startswith(BOM_UTF8):
        raise _Wrong((1, 1), "the file begins with a byte order mark (BOM)", "save it as UTF-8 without BOM")
    if text.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        raise _Wrong((1, 1), "the file is UTF-16", "save it as UTF-8 without BOM")
    if (offset := text.find(b"\0")) >= 0:
        raise _Wrong(_position(text, offset), "the file holds a NUL byte", "it was damaged, or is not text")
    if not text.strip():
        raise _Wrong((1, 1), "the file is empty", "a manifest that serves no model says so with an empty [models] table")
    try:
        return text.decode()
    except UnicodeDecodeError as exc:
        raise _Wrong(_position(text, exc.start), f"the file is not UTF-8: byte 0x{text[exc.start]:02x}", "save it as UTF-8") from exc


def _parse_toml(characters: str) -> dict[str, Any]:
    if long_key := LONG_DOTTED_KEY.search(characters):
        raise _Wrong(_position_in(characters, long_key.start()), "a key has more than 64 parts")
    try:
        return tomllib.loads(characters)
    except tomllib.TOMLDecodeError as exc:
        raise _Wrong(*_explain_toml(characters, str(exc))) from exc
    except ValueError as exc:
        raise _Wrong(_long_number(characters), "a number has too many digits") from exc


def _explain_toml(characters: str, message: str) -> tuple[Position, str]:
    what, _, place = message.rpartition(" (at ")
    numbers = re.findall(r"\d+", place)
    position = (int(numbers[0]), int(numbers[1])) if numbers else _position_in(characters, len(characters))
    if twice := re.fullmatch(r"Cannot declare \((.*)\) twice", what):
        key = tuple(part.strip().strip("'\"") for part in twice[1].strip(",").split(","))
        return position, f"[{dotted(key)}] is already defined above"
    ends_early = " here, at the end of the file" if "end of document" in place else ""
    return position, "not valid TOML: " + TOML_WORDS.get(what, what[:1].lower() + what[1:]) + ends_early


def _parse_json(characters: str) -> tuple[dict[str, Any], bool]:
    has_duplicates = False

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal has_duplicates
        table = dict(pairs)
        has_duplicates |= len(table) < len(pairs)
        return table

    try:
        data = json.loads(characters, object_pairs_hook=collect)
    except json.JSONDecodeError as exc:
        raise _Wrong((exc.lineno, exc.colno), f"not valid JSON: {exc.msg[:1].lower()}{exc.msg[1:]}") from exc
    except ValueError as exc:
        raise _Wrong(_long_number(characters), "a number has too many digits") from exc
    if not isinstance(data, dict):
        raise _Wrong((1, 1), "a manifest must be a JSON object", 'begin with "{"')
    return data, has_duplicates


def _long_number(characters: str) -> Position:
    number = re.search(r"\d[\d_]{4000}", characters)
    return _position_in(characters, number.start() if number else 0)


def _position_in(characters: str, offset: int) -> Position:
    start = characters.rfind("\n", 0, offset) + 1
    return characters.count("\n", 0, offset) + 1, offset - start + 1
