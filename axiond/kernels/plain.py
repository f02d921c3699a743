"""Linear layers with bfloat16 weights, packed once for every number of rows."""

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from vllm.platforms import current_platform

from axiond.kernels import active, cache

WHAT = "bfloat16 weights"


def take(layer: Module, remove_weight: bool) -> bool:
    """Pack a layer's weight of shape (n, k); False if vLLM shall do it."""
    weight = layer.weight
    if reason := reason_against(weight):
        active.left(WHAT, reason)
        return False
    ops = active.native()
    assert ops
    rhs = cache.packed(layer, (weight,) if remove_weight else (), lambda: ops.pack_bf16(weight.data))
    linear = ops.linear
    layer.cpu_linear = lambda x, _weight, bias: linear(x, rhs, bias)
    if remove_weight:
        drop_weight(layer)
    active.took("bf16")
    return True


def reason_against(weight: Tensor) -> str | None:
    return unsuitable(weight, torch.bfloat16) or stock_is_better("bf16")


def unsuitable(weight: Tensor, *types: torch.dtype) -> str | None:
    """Say why axiond's kernels cannot multiply by a weight of shape (n, k) that should be of one of *types*; None if they can."""
    if active.native() is None:
        return "axiond's kernels could not be loaded"
    if weight.dtype not in types:
        return f"its weights are {weight.dtype}"
    return f"its {weight.shape[1]} inputs are no multiple of 32" if weight.shape[1] % 32 else None


def stock_is_better(op: str) -> str | None:
    """Say why vLLM's bfloat16 kernels are better here; None if they are not."""
    if active.is_better_left(op):
        return "vLLM's kernel is faster on this CPU"
    if current_platform.is_zen_cpu():
        return "zentorch is installed"
    return "vLLM has a kernel for AMX" if torch.cpu._is_amx_tile_supported() and op == "bf16" else None


def drop_weight(layer: Module) -> None:
    layer.weight = Parameter(torch.empty(0, dtype=layer.weight.dtype), requires_grad=False)
