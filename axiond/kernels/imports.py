"""Do something when a module is imported, which may be never."""

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Action = Callable[[], None]


def after_import(name: str, action: Action) -> None:
    """Do *action* once the module *name* is imported, or now if it is."""
    if name in sys.modules:
        _act(action)
    else:
        sys.meta_path.insert(0, _AfterImport(name, action))


_waiting: list[Action] = []


def _act(action: Action) -> None:
    """Do *action*, or leave it to the one that is under way: what that one imports is not ready for another."""
    _waiting.append(action)
    if len(_waiting) == 1:
        try:
            while _waiting:
                _waiting[0]()
                _waiting.pop(0)
        finally:
            _waiting.clear()


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds one module as everybody else would, once, and acts when it has been executed."""

    def __init__(self, name: str, action: Action) -> None:
        self._name, self._action = name, action

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec and spec.loader:
            execute: Callable[[ModuleType], Any] = spec.loader.exec_module

            def execute_and_act(module: ModuleType) -> None:
                execute(module)
                _act(self._action)

            spec.loader.exec_module = execute_and_act  # type: ignore[method-assign]
        return spec
