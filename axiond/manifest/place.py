"""Where key paths stand in a TOML or JSON text. Only used once something is wrong."""

import json
import re
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache

import tree_sitter_json
import tree_sitter_toml
from tree_sitter import Language, Node, Parser

from axiond.manifest.document import KeyPath

Position = tuple[int, int]
TABLES = ("object", "inline_table")


def column_of(text: bytes, offset: int) -> int:
    """The column of a byte offset, counted in characters from 1."""
    start = text.rfind(b"\n", 0, offset) + 1
    return offset - start + 1 if text.isascii() else len(text[start:offset].decode(errors="replace")) + 1


def positions(text: bytes, is_json: bool, wanted: Iterable[KeyPath]) -> dict[KeyPath, Position]:
    """
    Line and column of every key path in *wanted*: of its key, or of the list item itself.

    What does not exist (a missing field) is placed at the nearest table around it; the whole file is (0, 0).
    """
    wanted = set(wanted)
    prefixes = {at[:depth] for at in wanted for depth in range(len(at) + 1)}
    root = _parse(text, is_json)
    spots: dict[KeyPath, Node] = {}
    for at, node in _json_spots(root, prefixes) if is_json else _toml_spots(root, prefixes):
        spots.setdefault(at, node)
    return {at: _nearest(text, spots, at) for at in wanted}


def duplicate_keys(text: bytes) -> Iterator[tuple[KeyPath, Position]]:
    """Every key of a JSON text that stands in its object a second time."""
    todo: list[tuple[KeyPath, Node]] = [((), _parse(text, is_json=True))]
    while todo:
        at, node = todo.pop()
        keys: set[str] = set()
        below: list[tuple[KeyPath, Node]] = []
        for index, child in enumerate(node.named_children):
            if child.type != "pair":
                below.append(((*at, index) if node.type == "array" else at, child))
                continue
            key_node, value = child.named_children[0], child.named_children[-1]
            key = json.loads(_text(key_node))
            if key in keys:
                yield (*at, key), _position(text, key_node)
            keys.add(key)
            below.append(((*at, key), value))
        todo += reversed(below)


@cache
def _parser(is_json: bool) -> Parser:
    return Parser(Language(tree_sitter_json.language() if is_json else tree_sitter_toml.language()))


def _parse(text: bytes, is_json: bool) -> Node:
    return _parser(is_json).parse(text).root_node


def _text(node: Node) -> str:
    return (node.text or b"").decode(errors="replace")


def _position(text: bytes, node: Node) -> Position:
    return node.start_point.row + 1, column_of(text, node.start_byte)


def _nearest(text: bytes, spots: dict[KeyPath, Node], at: KeyPath) -> Position:
    for depth in range(len(at), 0, -1):
        if node := spots.get(at[:depth]):
            return _position(text, node)
    return 0, 0


def _json_spots(root: Node, prefixes: set[KeyPath]) -> Iterator[tuple[KeyPath, Node]]:
    for child in root.named_children:
        yield from _value_spots((), child, prefixes)


def _toml_spots(root: Node, prefixes: set[KeyPath]) -> Iterator[tuple[KeyPath, Node]]:
    counts: dict[KeyPath, int] = {}
    for child in root.named_children:
        if child.type == "pair":
            yield from _pair_spots((), child, prefixes)
        elif child.type in ("table", "table_array_element"):
            header, *pairs = child.named_children
            at = _header_path(_toml_keys(header), counts, is_array=child.type == "table_array_element")
            yield from ((at[:depth], header) for depth in range(1, len(at) + 1) if at[:depth] in prefixes)
            for pair in pairs if at in prefixes else ():
                if pair.type == "pair":
                    yield from _pair_spots(at, pair, prefixes)


def _header_path(keys: KeyPath, counts: dict[KeyPath, int], *, is_array: bool) -> KeyPath:
    at: KeyPath = ()
    for key in keys[:-1]:
        at = (*at, key)
        if at in counts:
            at = (*at, counts[at] - 1)
    at = (*at, keys[-1])
    if is_array:
        counts[at] = counts.get(at, 0) + 1
        at = (*at, counts[at] - 1)
    return at


def _pair_spots(at: KeyPath, pair: Node, prefixes: set[KeyPath]) -> Iterator[tuple[KeyPath, Node]]:
    key_node, value = pair.named_children[0], next((node for node in pair.named_children[1:] if node.type != "comment"), None)
    for key in _toml_keys(key_node) if key_node.type != "string" else (json.loads(_text(key_node)),):
        at = (*at, key)
        if at not in prefixes:
            return
        yield at, key_node
    if value:
        yield from _value_spots(at, value, prefixes)


def _value_spots(at: KeyPath, value: Node, prefixes: set[KeyPath]) -> Iterator[tuple[KeyPath, Node]]:
    if value.type in TABLES:
        for child in value.named_children:
            if child.type == "pair":
                yield from _pair_spots(at, child, prefixes)
    elif value.type == "array":
        for index, child in enumerate(node for node in value.named_children if node.type != "comment"):
            if (*at, index) in prefixes:
                yield (*at, index), child
                yield from _value_spots((*at, index), child, prefixes)


def _toml_keys(node: Node) -> KeyPath:
    """The parts of a TOML key, which tree-sitter nests to the left."""
    parts: list[str | int] = []
    while node.type == "dotted_key":
        node, last = node.named_children[0], node.named_children[-1]
        parts.append(_toml_key(last))
    return (_toml_key(node), *reversed(parts))


def _toml_key(node: Node) -> str:
    text = _text(node)
    return text if re.fullmatch(r"[\w-]+", text) else str(tomllib.loads(f"key = {text}")["key"])
