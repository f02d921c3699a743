"""One file of a manifest, and what is found wrong in it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KeyPath = tuple[str | int, ...]

MAX_PROBLEMS = 1000


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """*raw* is the file as written; *data* has variables expanded and paths made absolute."""

    path: Path
    text: bytes = field(repr=False)
    raw: Mapping[str, Any] = field(repr=False)
    data: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong at a key path of a document; *other* is the second place that has to do with it."""

    document: Document
    at: KeyPath
    what: str
    remedy: str = ""
    other: tuple[Document, KeyPath] | None = None


def is_json(path: Path) -> bool:
    return path.suffix.lower() == ".json"


def dotted(at: KeyPath) -> str:
    """A key path as TOML writes it, with list positions in brackets: `models."q2.5".aliases[0]`."""
    text = ""
    for key in at:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            text += ("." if text else "") + (key if re.fullmatch(r"[A-Za-z0-9_$-]+", key) else json.dumps(key, ensure_ascii=False))
    return text


def follow(data: Any, at: KeyPath) -> tuple[Any, KeyPath]:
    """Go down as far as *at* leads; return the value there and the part of *at* that exists."""
    for depth, key in enumerate(at):
        is_there = key in data if isinstance(data, Mapping) else isinstance(data, list) and isinstance(key, int) and key < len(data)
        if not is_there:
            return data, at[:depth]
        data = data[key]
    return data, at
