"""What the small kernels mean, in plain torch and double precision. Every argument and result is a matrix of rows."""

import math

import torch
from torch import Tensor

ACTIVATIONS = ("silu", "gelu", "gelu_tanh")  # in the kernels' order


def rms_norm(x: Tensor, weight: Tensor | None, weight_offset: float = 0, epsilon: float = 1e-6) -> Tensor:
    """Return x / sqrt(mean(x * x) + epsilon) * (weight + weight_offset)."""
    x = x.double()
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)
    return normed if weight is None else normed * (weight.double() + weight_offset)


def gate(activation: str, gate: Tensor, up: Tensor) -> Tensor:
    """Return activation(gate) * up. The gelus are written so that their small negative values keep their digits."""
    x = gate.double()
    if activation == "silu":
        return x * torch.sigmoid(x) * up.double()
    if activation == "gelu":
        return x * torch.special.erfc(-x / math.sqrt(2)) / 2 * up.double()
    return x * torch.sigmoid(2 * tanh_argument(x)) * up.double()


def tanh_argument(x: Tensor) -> Tensor:
    return math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, is_interleaved: bool) -> Tensor:
    """
    Turn pairs of elements.

    Args:
        x: shape (rows, heads, head_size).
        cos, sin: shape (rows, rotary_dim / 2).
    """
    x, half = x.double(), cos.shape[-1]
    one, other = (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if is_interleaved else (slice(0, half), slice(half, 2 * half))
    cos, sin = cos.double().unsqueeze(1), sin.double().unsqueeze(1)
    turned = x.clone()
    turned[..., one] = x[..., one] * cos - x[..., other] * sin
    turned[..., other] = x[..., other] * cos + x[..., one] * sin
    return turned


def top_k_top_p(logits: Tensor, k: Tensor | None, p: Tensor | None) -> Tensor:
    """Return *logits* with minus infinity where a token is not among the k greatest, or is beyond the mass p of those."""
    kept = logits.clone()
    for row in range(len(kept)):
        if k is not None:
            kept[row][kept[row] < kept[row].sort(descending=True).values[k[row] - 1]] = -math.inf
        if p is not None and p[row] < 1:
            ranked = kept[row].flip(0).sort(descending=True, stable=True)  # flipped: of equal ones the last goes first
            mass = ranked.values.double().softmax(0)
            is_beyond = mass.cumsum(0) - mass >= float(p[row])
            kept[row][kept.shape[1] - 1 - ranked.indices[is_beyond]] = -math.inf
    return kept
