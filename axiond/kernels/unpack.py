"""4-bit weights as checkpoints hold them, made ready for packing. Pure."""

from dataclasses import dataclass

import torch
from torch import Tensor

# vLLM's names for them: q with a zero point of its own, q with zero point 8, and signed.
KINDS = ("uint4", "uint4b8", "int4")
SPLITS = (128, 64, 32)
IN_ORDER, AWQ_ORDER = [0, 1, 2, 3, 4, 5, 6, 7], [0, 4, 1, 5, 2, 6, 3, 7]
ACTIVATIONS = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True, slots=True)
class Weights:
    """(q - zero point) * scale, as `axiond.kernels.ops.pack_q4` takes it."""

    q: Tensor
    scales: Tensor
    zero_points: Tensor | None
    group: int
    is_awq: bool = False


def kernel_group(group_size: int, k: int) -> int | None:
    """The kernels' group for a checkpoint's *group_size* (-1: all of k): the largest that divides it; None if none does."""
    size = k if group_size == -1 else group_size
    return next((group for group in SPLITS if size > 0 and size % group == 0), None)


def problem(kind: str, activations: torch.dtype, group_size: int, k: int) -> str | None:
    """Say why the kernels cannot take a layer of *k* inputs; None if they can."""
    if kind not in KINDS:
        return f"its weights are {kind}, and the kernels take {', '.join(KINDS)}"
    if activations not in ACTIVATIONS:
        return f"its activations are {activations}, and the kernels take bfloat16, float16 and float32"
    if kernel_group(group_size, k) is None:
        what = f"its {k} inputs share one scale, but are" if group_size == -1 else f"its group size {group_size} is"
        return f"{what} no multiple of 32"
    if k % (k if group_size == -1 else group_size):
        return f"its {k} inputs are no multiple of the group size {group_size}"
    return None


def arranged(weight: Tensor, scales: Tensor, zero_points: Tensor | None, group_size: int, is_awq: bool = False) -> Weights:
    """
    Give each of the kernels' groups a scale and a zero point of its own. The weights stay as they are.

    Args:
        weight: int32 of eight numbers each, lowest bits first, shape (n, k / 8); or int8 of -8..7, shape (n, k); or, with *is_awq*,
            int32 of eight numbers each along n in AWQ's order, shape (n / 8, k).
        scales: shape (n, k / group size), or (n, 1).
        zero_points: int32 of eight numbers each along n, shape (k / group size, n / 8 rounded up), in the order of *weight*.
        group_size: the checkpoint's, or -1.

    Raises:
        ValueError: the shapes do not fit together.
    """
    rows, columns = weight.shape
    n, k = (rows * 8, columns) if is_awq else (rows, columns if weight.dtype == torch.int8 else columns * 8)
    group = kernel_group(group_size, k)
    zeros = None if zero_points is None else nibbles(zero_points, AWQ_ORDER if is_awq else IN_ORDER)[:, :n].t()
    groups = 1 if group_size == -1 else k // group_size
    if group is None or scales.shape != (n, groups) or (zeros is not None and zeros.shape != (n, groups)):
        shapes = f"scales {tuple(scales.shape)}, zero points {None if zeros is None else tuple(zeros.shape)}"
        raise ValueError(f"weights {(n, k)} of group size {group_size} do not go with {shapes}")
    # Where the kernels' groups are smaller than the checkpoint's, neighbours have equal scales.
    if (times := k // group // groups) > 1:
        scales, zeros = scales.repeat_interleave(times, 1), None if zeros is None else zeros.repeat_interleave(times, 1)
    return Weights(weight, scales, zeros, group, is_awq)


def nibbles(words: Tensor, order: list[int] = IN_ORDER) -> Tensor:
    """Spread int32 of shape (rows, columns / 8) to uint8 of shape (rows, columns): of each word the numbers in this *order*."""
    return torch.stack([words >> 4 * place & 15 for place in order], -1).to(torch.uint8).flatten(1)
