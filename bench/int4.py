"""Round weights to 4 bits and lay them out as AWQ, GPTQ and compressed-tensors checkpoints do."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# AWQ's order: nibble i of a word holds column AWQ_ORDER[i] of eight.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
PLAIN_ORDER = tuple(range(8))
NIBBLES = 8  # in a word of 32 bits
SYMMETRIC_ZERO = 8

Layout = Callable[["Rounded"], dict[str, Tensor]]


@dataclass(frozen=True)
class Rounded:
    """A weight of shape (n, k) is about `(q - zero) * scale`."""

    q: Tensor  # (n, k), 0 to 15
    scale: Tensor  # (n, k / group)
    zero: Tensor  # (n, k / group), 0 to 15

    @property
    def group(self) -> int:
        return int(self.q.shape[1] // self.scale.shape[1])


def round_asymmetric(weight: Tensor, group: int) -> Rounded:
    """Round *weight*, shape (n, k), with a scale and a zero point for every *group* of k."""
    grouped = weight.float().unflatten(1, (-1, group))
    low, high = grouped.amin(-1).clamp_max(0), grouped.amax(-1).clamp_min(0)
    scale = ((high - low) / 15).clamp_min(1e-8)
    zero = (-low / scale).round().clamp(0, 15)
    return _rounded(grouped, scale, zero)


def round_symmetric(weight: Tensor, group: int) -> Rounded:
    """Round *weight*, shape (n, k), with a scale for every *group* of k, and 8 for zero."""
    grouped = weight.float().unflatten(1, (-1, group))
    scale = torch.maximum(grouped.amax(-1) / 7, grouped.amin(-1) / -8).clamp_min(1e-8)
    return _rounded(grouped, scale, torch.full_like(scale, SYMMETRIC_ZERO))


def _rounded(grouped: Tensor, scale: Tensor, zero: Tensor) -> Rounded:
    q = ((grouped / scale[..., None]).round() + zero[..., None]).clamp(0, 15)
    return Rounded(q.flatten(1).long(), scale, zero.long())


def pack(values: Tensor, order: tuple[int, ...] = PLAIN_ORDER) -> Tensor:
    """Pack eight neighbours of a row, 0 to 15, into one int32; the first in *order* takes the lowest bits."""
    words = values.unflatten(-1, (-1, NIBBLES))
    packed = sum((words[..., column] << (4 * i) for i, column in enumerate(order)), torch.zeros_like(words[..., 0]))
    return torch.where(packed >= 2**31, packed - 2**32, packed).int()


def awq(weight: Rounded) -> dict[str, Tensor]:
    """AutoAWQ's "gemm": packed along n."""
    return {"qweight": pack(weight.q.T, AWQ_ORDER), "qzeros": pack(weight.zero.T, AWQ_ORDER), "scales": weight.scale.T.half()}


def gptq(weight: Rounded) -> dict[str, Tensor]:
    """GPTQ's first version: weights are packed along k, and zero points are stored less one."""
    return {
        "qweight": pack(weight.q).T,
        "qzeros": pack(weight.zero.T - 1),
        "scales": weight.scale.T.half(),
        "g_idx": torch.arange(weight.q.shape[1], dtype=torch.int32) // weight.group,
    }


def compressed_tensors(weight: Rounded) -> dict[str, Tensor]:
    """compressed-tensors' "pack-quantized", symmetric: packed along k."""
    return {"weight_packed": pack(weight.q), "weight_scale": weight.scale.bfloat16(), "weight_shape": torch.tensor(weight.q.shape)}


def compressed_tensors_int8(weight: Rounded) -> dict[str, Tensor]:
    """compressed-tensors' "int-quantized", symmetric: every weight has a byte to itself."""
    return {"weight": (weight.q - SYMMETRIC_ZERO).to(torch.int8), "weight_scale": weight.scale.bfloat16()}
