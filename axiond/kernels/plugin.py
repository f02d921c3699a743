"""
Runs in every vLLM process (entry point `vllm.general_plugins`): has axiond's kernels used where layers are made.

What it changes are modules that only a process with a model imports, and it waits for those imports: the others do not pay.
"""

import os
from functools import cache

from axiond.kernels.imports import after_import
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

    # All imports of what imports vLLM or torch are late: without a model, or off, they would be for nothing.
    def linear() -> None:
        from axiond.kernels import linear

        linear.install(settings)

    def dispatch() -> None:
        from axiond.kernels import dispatch

        dispatch.install(settings)

    after_import("vllm.model_executor.kernels.linear", linear)
    after_import("vllm.model_executor.layers.linear", dispatch)
    from axiond.kernels import fused, step

    if settings.fused:
        fused.install()
    step.install()
