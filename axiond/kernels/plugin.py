"""
Runs in every vLLM process (entry point `vllm.general_plugins`): has axiond's kernels used where layers are made.

Only processes that hold a model import the modules that are changed here, so only they pay for it: everything waits for
those imports.
"""

import importlib
import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from axiond.kernels.settings import FORCE_ISA, from_environ


@cache
def register() -> None:
    """
    Do what AXIOND_KERNELS says. Calling it again changes nothing.

    Raises:
        ValueError: it says something unknown.
    """
    settings = from_environ(os.environ)
    if settings.is_off:
        return
    if settings.force_isa != "auto":
        os.environ[FORCE_ISA] = settings.force_isa

    def linear() -> None:
        from axiond.kernels import linear

        linear.install(settings)

    def dispatch() -> None:
        from axiond.kernels import dispatch

        dispatch.install(settings)

    after_import("vllm.model_executor.kernels.linear", linear)
    after_import("vllm.model_executor.layers.linear", dispatch)
    for name in ("axiond.kernels.fused", "axiond.kernels.step"):
        if (name != "axiond.kernels.fused" or settings.fused) and importlib.util.find_spec(name):
            importlib.import_module(name).install()


def after_import(name: str, action: Callable[[], None]) -> None:
    """Do something once the module *name* is imported, or now if it is."""
    if name in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _AfterImport(name, action))


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds one module as everybody else would, once, and acts when it has been executed."""

    def __init__(self, name: str, action: Callable[[], None]) -> None:
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
                self._action()

            spec.loader.exec_module = execute_and_act  # type: ignore[method-assign]
        return spec
