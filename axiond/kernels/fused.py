"""
Has vLLM's small layers and its sampler run on axiond's kernels, in eager mode.

What torch.compile traces is left as it is: Inductor's code for these layers is as fast, and has no call to make (3.4
microseconds for an add, a norm and a gated activation of one token, where eager torch takes 19, and ours 4).
"""

import importlib
import os

from axiond.kernels import active
from axiond.kernels.imports import after_import
from axiond.kernels.settings import FORCE_ISA

LAYERS = ("vllm.model_executor.layers.layernorm", "vllm.model_executor.layers.activation")
SAMPLER = "vllm.v1.sample.sampler"


def install() -> None:
    """Wait for the modules that have something to replace. Calling it again changes nothing."""
    for name in LAYERS:
        after_import(name, lambda: replace("axiond.kernels.layers"))
    after_import(SAMPLER, lambda: replace("axiond.kernels.sampling"))


def replace(module: str) -> None:
    """Import *module* and let it do its work, where the kernels are better than torch's."""
    native = active.native()
    if native is None:
        return
    if native._native.small_isa() == "portable" and not os.environ.get(FORCE_ISA):
        active.left("small operations", "torch's kernels are faster on this CPU")
        return
    importlib.import_module(module).install()
