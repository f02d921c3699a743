"""
torch.compile, where the manifest asks for it (enforce_eager = false): what was compiled once is loaded at the next start.

vLLM 0.32 saves what it compiled for a CPU, and fails to load it: it calls finalize_loading() of its own kind of compiled
function, and on CPUs it gets torch's, which has no such thing and needs none. So every start compiles again, for a minute
and more.

What is loaded is run unchecked, so what it depends on has to be in its name. vLLM's own hash knows nothing of the kernels
that the traced layers call, nor of the CPU, and on the other hand counts on which cores an engine runs.
"""

import hashlib
import platform
import re
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import Any

from axiond import __version__
from axiond.kernels import active
from axiond.kernels.imports import after_import
from axiond.kernels.settings import Settings

WRITTEN_FOR = "0.32."
FRESH, LOADED = "compiled at this start", "compiled at an earlier start"
CORES = "VLLM_CPU_OMP_THREADS_BIND"


def install(settings: Settings) -> None:
    """Wait for vLLM's compilation to be imported. Calling it again changes nothing."""
    after_import("vllm.compilation.decorators", lambda: _patch(settings))


def _patch(settings: Settings) -> None:
    import vllm
    from torch._dynamo.aot_compile_types import BundledAOTAutogradSerializableCallable as Compiled
    from torch._inductor.cpu_vec_isa import VecISA
    from vllm import envs
    from vllm.compilation import caching, decorators
    from vllm.platforms import current_platform

    if not vllm.__version__.startswith(WRITTEN_FOR) or not current_platform.is_cpu() or hasattr(Compiled, "finalize_loading"):
        return
    Compiled.finalize_loading = lambda _self, _config: None
    caching.aot_compile_hash_factors = with_factors(caching.aot_compile_hash_factors, settings)
    envs.compile_factors = without_cores(envs.compile_factors)
    decorators._try_load_aot_compiled_fn = said(decorators._try_load_aot_compiled_fn)
    VecISA._probe_load = once(VecISA._probe_load)


def with_factors(stock: Callable[[Any], list[str]], settings: Settings) -> Callable[[Any], list[str]]:
    """Have a compiled function named after what it calls, and what it was compiled for."""

    @wraps(stock)
    def factors(config: Any) -> list[str]:
        ops = None if settings.is_off else active.native()
        # The type of a layer's scales depends on their values, and the compiled code names it.
        packed = ops and (ops._native.isa(), ops.arguments_taken)
        return [*stock(config), __version__, repr(settings), repr(packed), cpu()]

    return factors


def without_cores(stock: Callable[[], dict[str, object]]) -> Callable[[], dict[str, object]]:
    """Have it not named after the cores of this engine: what is compiled takes as many threads as there are."""

    @wraps(stock)
    def factors() -> dict[str, object]:
        return {name: value for name, value in stock().items() if name != CORES}

    return factors


def said(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Report whether there was something to load."""

    @wraps(stock)
    def load(*args: Any) -> Any:
        found = stock(*args)
        active.tell(mode=FRESH if found is None else LOADED)
        return found

    return load


def once(stock: Callable[[Any, str], bool]) -> Callable[[Any, str], bool]:
    """
    Do not ask again whether this CPU runs a test program that it has run before.

    torch starts a Python for each of six of them, which is most of what loading takes.
    """

    @wraps(stock)
    def probe(isa: Any, program: str) -> bool:
        mark = Path(f"{program}.{cpu()}")
        if mark.exists():
            return True
        is_good = stock(isa, program)
        if is_good:
            mark.touch()
        return is_good

    return probe


@cache
def cpu() -> str:
    """A short name for what this CPU can do."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return hashlib.sha256(f"{platform.machine()} {found and found[1]}".encode()).hexdigest()[:16]
