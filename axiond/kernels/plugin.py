"""
Runs in every vLLM process (entry point `vllm.general_plugins`): has axiond's kernels used where layers are made.

What it changes are modules that only a process with a model imports, and it waits for those imports: the others do not pay.
What it hooks into is not all meant for that: with any other version than the one below, vLLM stays as it is.
"""

import importlib
import os
from functools import cache
from typing import Any

from axiond.kernels import active, compiled, memory
from axiond.kernels.imports import after_import
from axiond.kernels.settings import FORCE_ISA, from_environ

WRITTEN_FOR = "0.32."


@cache
def register() -> None:
    """
    Do what AXIOND_KERNELS says. Calling it again changes nothing.

    Raises:
        ValueError: it says something unknown.
    """
    settings = from_environ(os.environ)
    compiled.install(settings)
    memory.install()
    if settings.is_off:
        return

    # All imports of what imports vLLM or torch are late: without a model, or off, they would be for nothing.
    import vllm
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    if not vllm.__version__.startswith(WRITTEN_FOR):
        active.not_used(f"are for vLLM {WRITTEN_FOR}x", f"this is {vllm.__version__}")
        return
    if settings.force_isa != "auto":
        os.environ[FORCE_ISA] = settings.force_isa

    after_import("vllm.model_executor.kernels.linear", lambda: module("linear").install(settings))
    after_import("vllm.model_executor.layers.quantization.auto_awq", lambda: module("linear").install_awq())
    after_import("vllm.model_executor.layers.linear", lambda: module("dispatch").install(settings))
    after_import("vllm.model_executor.model_loader", lambda: module("loader").install(settings))
    from axiond.kernels import baseline, fused, step

    baseline.install()
    if settings.fused:
        fused.install()
    step.install(settings)


def module(name: str) -> Any:
    return importlib.import_module(f"axiond.kernels.{name}")
