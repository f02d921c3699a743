"""Values as written to values as meant: variables replaced, relative paths made absolute."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from axiond.manifest.document import KeyPath
from axiond.manifest.files import Files, Unreadable

MAX_DEPTH = 32
MAX_VALUES = 250_000
REFERENCE = re.compile(r"\$\$\{|\$\{([^${}]*)\}|\$\{")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SERVER_PATHS = ("admin_socket", "state_dir", "runtime_dir")

Found = tuple[KeyPath, str, str]


@dataclass(slots=True)
class Expansion:
    """
    Expands the values of one file and collects what is wrong in them: key path, what, remedy.

    `${NAME}` is taken from *environ* and `${file:PATH}` through *files*, relative to *folder*. `$${` stands for `${`.
    References are refused under `engine_args`, because what stands there is not secret.
    What was put in is not expanded again. Keys are left alone.
    """

    folder: Path
    files: Files
    environ: Mapping[str, str]
    found: list[Found] = field(default_factory=list)
    values: int = 0

    def value(self, raw: Any, at: KeyPath = ()) -> Any:
        """Raises Unreadable if there are more than `MAX_VALUES`."""
        self.values += 1
        if self.values > MAX_VALUES:
            raise Unreadable(f"holds more than {MAX_VALUES:,} values")
        if len(at) > MAX_DEPTH:
            return self._wrong(at, "is nested too deeply", f"at most {MAX_DEPTH} levels")
        match raw:
            case str():
                return self._text(raw, at)
            case dict():
                return {key: self.value(item, (*at, key)) for key, item in raw.items() if self._is_key(key, (*at, key))}
            case list():
                return [self.value(item, (*at, index)) for index, item in enumerate(raw)]
            case bool() | None:
                return raw
            case int() if -(2**63) <= raw < 2**63:
                return raw
            case float() if math.isfinite(raw):
                return raw
            case int() | float():
                return self._wrong(at, "is not a finite number of ordinary size")
        return self._wrong(at, "is a date or time, which no field takes", "write it in quotes")

    def _wrong(self, at: KeyPath, what: str, remedy: str = "") -> None:
        if not self.found or self.found[-1][0] != at:
            self.found.append((at, what, remedy))

    def _is_key(self, key: str, at: KeyPath) -> bool:
        if problem := unfit_text(key):
            self._wrong(at[:-1], f"has a key that {problem}")
        return not problem

    def _text(self, raw: str, at: KeyPath) -> str:
        text = REFERENCE.sub(lambda match: self._reference(match, at), raw) if "${" in raw else raw
        if problem := unfit_text(text):
            self._wrong(at, problem)
        return text

    def _reference(self, match: re.Match[str], at: KeyPath) -> str:
        name = match[1]
        if match[0] == "$${":
            return "${"
        if at[:2] == ("defaults", "engine_args") or (at[:1] == ("models",) and at[2:3] == ("engine_args",)):
            self._wrong(at, "may hold no reference: every user can read an engine's arguments", 'write "$${" for a plain "${"')
        elif name is None:
            self._wrong(at, 'has "${" without "}"', 'write "$${" for a plain "${"')
        elif name.startswith("file:"):
            return self._file(Path(name.removeprefix("file:")), at)
        elif not VARIABLE.fullmatch(name):
            self._wrong(at, f'"${{{name[:40]}}}" names no variable', 'write ${NAME} or ${file:PATH}, and "$${" for a plain "${"')
        elif name in self.environ:
            self.files.variables[name] = self.environ[name]
            return self.environ[name]
        else:
            self._wrong(at, f"the environment variable {name} is not set", "set it where axiond is started")
        return ""

    def _file(self, path: Path, at: KeyPath) -> str:
        try:
            return self.files.read(self.folder / path).decode().rstrip("\r\n")
        except Unreadable as exc:
            self._wrong(at, f"{self.folder / path} {exc.what}", exc.remedy)
        except UnicodeDecodeError:
            self._wrong(at, f"{self.folder / path} is not UTF-8")
        return ""


def unfit_text(text: str) -> str:
    """What keeps a text from being a path or an argument of a process; empty if nothing does."""
    if "\0" in text:
        return "holds a NUL character"
    return "" if text.isascii() or text.encode(errors="ignore").decode() == text else "holds half of a surrogate pair"


def anchor_paths(data: dict[str, Any], folder: Path) -> None:
    """Make the paths of one file absolute, in place: they are relative to the folder the file is in."""
    server = data.get("server")
    if isinstance(server, dict):
        _anchor(server, SERVER_PATHS, folder, lambda _: True)
    if isinstance(semantic := data.get("semantic"), dict):
        _anchor(semantic, ("embedding_model",), folder, is_relative_source)
    for model in _models(data):
        _anchor(model, ("source",), folder, is_relative_source)
        _anchor(model, ("chat_template",), folder, lambda text: text.startswith(("./", "../")))
        if isinstance(lora := model.get("lora"), dict):
            _anchor(lora, tuple(lora), folder, lambda _: True)


def is_relative_source(source: str) -> bool:
    is_file = source.lower().endswith(".gguf") and not source.startswith(("pypi:", "~", "/"))
    return is_file or source in (".", "..") or source.startswith(("./", "../"))


def _models(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    models = data.get("models")
    for model in (data.get("defaults"), *(models.values() if isinstance(models, dict) else ())):
        if isinstance(model, dict):
            yield model


def _anchor(table: dict[str, Any], keys: tuple[str, ...], folder: Path, is_path: Callable[[str], bool]) -> None:
    for key in keys:
        if isinstance(value := table.get(key), str) and value and is_path(value):
            table[key] = str(folder / value)
