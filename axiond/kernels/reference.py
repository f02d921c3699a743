"""
What the linear kernels mean, in plain torch and double precision. Shares no code with them: it never sees a packed weight.

Shapes: x (m, k) of any float type, q (n, k) whole numbers, scales and zero points (n, k / group), bias (n,).
"""

import torch
from torch import Tensor


def dequantize(q: Tensor, scales: Tensor, zero_points: Tensor | None, group: int) -> Tensor:
    """Return float64 weights of shape (n, k): (q - zero point) * scale, zero point 8 if None."""
    zeros = torch.full(scales.shape, 8.0, dtype=torch.float64) if zero_points is None else zero_points.double()
    return (q.double() - zeros.repeat_interleave(group, 1)) * scales.double().repeat_interleave(group, 1)


def round_int8(table: Tensor) -> tuple[Tensor, Tensor]:
    """Round weights (n, k) to whole numbers from -127 to 127, with a float32 scale for each row."""
    rows = table.float()
    scales = rows.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
    return (rows / scales[:, None]).round().clamp(-127, 127).to(torch.int8), scales


def quantize_rows(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """
    Round each group of each row to whole numbers from -127 to 127.

    Returns:
        The numbers as float64, shape (m, k), and the float32 scales, shape (m, k / group), as the kernels compute them:
        amax / 127 and rint(x * (127 / amax)) in single precision. A group below 2^-100 counts as zeros.
    """
    m, k = x.shape
    groups = x.float().reshape(m, k // group, group)
    amax = groups.abs().amax(-1)
    # A true division: torch makes a reciprocal and a product of 127.0 / amax, which rounds twice.
    inverse = torch.where(amax < 2.0**-100, 0.0, torch.full_like(amax, 127.0) / amax)
    q = (groups * inverse[..., None]).round().clamp(-127, 127)
    return q.double().reshape(m, k), torch.where(amax < 2.0**-100, 0.0, amax / torch.full_like(amax, 127.0))


def w4a8(x: Tensor, q: Tensor, scales: Tensor, zero_points: Tensor | None, group: int, bias: Tensor | None = None) -> Tensor:
    """Return the float64 product (m, n) of rounded activations and 4-bit weights, the sums exact."""
    rounded, lhs_scales = quantize_rows(x, group)
    lhs = rounded * lhs_scales.double().repeat_interleave(group, 1)
    return with_bias(lhs @ dequantize(q, scales, zero_points, group).T, bias)


def w8a8(x: Tensor, q: Tensor, scales: Tensor, group: int, bias: Tensor | None = None) -> Tensor:
    """Return the float64 product (m, n) of rounded activations and 8-bit weights with a scale for each column."""
    rounded, lhs_scales = quantize_rows(x, group)
    lhs = rounded * lhs_scales.double().repeat_interleave(group, 1)
    return with_bias((lhs @ q.double().T) * scales.double(), bias)


def matmul(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the float64 product (m, n) of unrounded activations and weights."""
    return with_bias(x.double() @ weight.double().T, bias)


def with_bias(product: Tensor, bias: Tensor | None) -> Tensor:
    return product if bias is None else product + bias.double()
