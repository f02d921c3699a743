"""Linear layers with packed weights, as torch sees them. Importing this loads the native module."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

import axiond.kernels.openmp  # noqa: F401  first
from axiond.kernels import _native
from axiond.kernels._native import Dtype, Format, Nibbles

GROUPS = (128, 64, 32)  # along k, the largest first
NIBBLES = {torch.uint8: Nibbles.bytes, torch.int8: Nibbles.signed_bytes, torch.int32: Nibbles.words}
# Of all packed weights in this process, in order: what torch.compile makes part of its code.
arguments_taken: list[tuple[int, ...]] = []
TYPES = {torch.float32: Dtype.f32, torch.float16: Dtype.f16, torch.bfloat16: Dtype.bf16}


@dataclass(frozen=True, slots=True, eq=False)
class PackedRhs:
    """Weights of logical shape (n, k) in panels of 16 columns; native/linear/linear.h describes them."""

    data: Tensor
    native: _native.Rhs
    arguments: tuple[int, int, int, int, int]  # n, k, group, format, scale type: with them torch.compile finds its way

    @property
    def n(self) -> int:
        return self.arguments[0]

    @property
    def k(self) -> int:
        return self.arguments[1]

    @property
    def group(self) -> int:
        return self.arguments[2]


def pack_q4(q: Tensor, scales: Tensor, zero_points: Tensor | None, group: int, is_awq: bool = False) -> PackedRhs:
    """
    Pack 4-bit weights, which stand for (q - zero point) * scale.

    Args:
        q: of any strides; uint8 of 0..15, shape (n, k); or int8 of -8..7, which are q - 8, shape (n, k); or int32 of eight
            numbers each along k, the first in the lowest bits, shape (n, k / 8); or, with *is_awq*, int32 of eight numbers each
            along n in AWQ's order, shape (n / 8, k).
        scales: float, shape (n, k / group). Kept in float16 if that holds each exactly, else rounded to bfloat16.
        zero_points: uint8 of 0..15, shape (n, k / group); 8 everywhere if None.
        group: 32, 64 or 128, a divisor of k.

    Raises:
        ValueError: a shape or dtype above is not met.
    """
    kind = Nibbles.awq if is_awq else NIBBLES.get(q.dtype)
    is_known = kind is not None and q.dim() == 2 and (not is_awq or q.dtype == torch.int32)
    _check("q", q, is_known, "uint8, int8 or int32 of two dimensions")
    assert kind is not None
    n, k = q.shape[0] * (8 if is_awq else 1), q.shape[1] * (8 if kind == Nibbles.words else 1)
    _check("scales", scales, tuple(scales.shape) == (n, k // group), f"shape {(n, k // group)}")
    if zero_points is not None:
        _check("zero_points", zero_points, zero_points.dtype == torch.uint8 and zero_points.shape == scales.shape, "uint8, as scales")
        zero_points = zero_points.contiguous()
    half = scales.half()
    if not torch.equal(half.float(), scales.float()):
        half = scales.bfloat16()
    packed = _new(Format.q4, TYPES[half.dtype], n, k, group)
    half, q = half.contiguous(), q if q.dtype == torch.int32 else q.contiguous()
    zeros = 0 if zero_points is None else zero_points.data_ptr()
    _native.pack_q4(packed.native, q.data_ptr(), kind, q.stride(0), q.stride(1), half.data_ptr(), zeros)
    return packed


def pack_q8(q: Tensor, scales: Tensor, group: int) -> PackedRhs:
    """
    Pack 8-bit weights, which stand for q * scale.

    Args:
        q: int8 of -127..127, shape (n, k).
        scales: float32, shape (n,).
        group: 32, 64 or 128, a divisor of k: so many activations share a scale.

    Raises:
        ValueError: a shape or dtype above is not met.
    """
    n, k = _matrix("q", q, torch.int8)
    _check("scales", scales, scales.dtype == torch.float32 and tuple(scales.shape) == (n,), f"float32, shape {(n,)}")
    packed = _new(Format.q8, Dtype.f32, n, k, group)
    q, scales = q.contiguous(), scales.contiguous()
    _native.pack_q8(packed.native, q.data_ptr(), scales.data_ptr())
    return packed


def round_q8(weight: Tensor, group: int) -> PackedRhs:
    """
    Round weights of shape (n, k) to -127..127 with a scale for each row, and pack them as pack_q8() does.

    Args:
        weight: float32, float16 or bfloat16.
        group: 32, 64 or 128, a divisor of k: so many activations share a scale.

    Raises:
        ValueError: a shape or dtype above is not met.
    """
    _check("weight", weight, weight.dtype in TYPES and weight.dim() == 2, "float32, float16 or bfloat16 of two dimensions")
    weight = weight.contiguous()
    packed = _new(Format.q8, Dtype.f32, weight.shape[0], weight.shape[1], group)
    _native.round_q8(packed.native, weight.data_ptr(), TYPES[weight.dtype])
    return packed


def pack_bf16(weight: Tensor) -> PackedRhs:
    """Pack bfloat16 weights of shape (n, k), k a multiple of 32. Raises ValueError if they are something else."""
    n, k = _matrix("weight", weight, torch.bfloat16)
    packed = _new(Format.bf16, Dtype.bf16, n, k, largest_group(k) or 0)
    weight = weight.contiguous()
    _native.pack_bf16(packed.native, weight.data_ptr())
    return packed


def adopt(data: Tensor, arguments: Sequence[int]) -> PackedRhs:
    """
    Take bytes for packed weights which have been some before.

    Args:
        data: uint8, shape (bytes,), at an address that is a multiple of 64.
        arguments: of the `PackedRhs` that the bytes come from.

    Raises:
        ValueError: there are too few bytes or too many, or their address is another.
    """
    n, k, group, format_, scale_type = arguments
    native = _described(format_, scale_type, n, k, group, data.data_ptr())
    _check("data", data, data.dtype == torch.uint8 and data.numel() == native.bytes, f"{native.bytes} bytes")
    arguments_taken.append((n, k, group, format_, scale_type))
    return PackedRhs(data, native, (n, k, group, format_, scale_type))


def largest_group(k: int) -> int | None:
    """The largest group that divides k; None if none does."""
    return next((group for group in GROUPS if k % group == 0), None)


def linear(x: Tensor, rhs: PackedRhs, bias: Tensor | None = None, exact: bool = False) -> Tensor:
    """
    Multiply activations by packed weights.

    Args:
        x: float32, float16 or bfloat16, shape (..., k). With q4 and q8 weights rounded to int8 per row and group inside.
        rhs: from pack_q4(), pack_q8() or pack_bf16().
        bias: dtype of *x*, shape (n,).
        exact: do not round the activations of q4 weights.

    Returns:
        dtype of *x*, shape (..., n).

    Raises:
        ValueError: a shape or dtype above is not met.

    Source: zero points by the sum of the activations, as in ONNX Runtime's MatMulNBits.
    """
    if torch.compiler.is_compiling():
        return torch.ops.axiond.linear(x, rhs.data, bias, *rhs.arguments, exact)
    return _run(x, rhs.native, rhs.n, rhs.k, bias, exact)


def _run(x: Tensor, rhs: _native.Rhs, n: int, k: int, bias: Tensor | None, exact: bool) -> Tensor:
    shape, dtype = x.shape, x.dtype
    type_ = TYPES.get(dtype)
    if type_ is None or shape[-1] != k:
        raise ValueError(f"x: wanted float32, float16 or bfloat16 of shape (..., {k}), got {dtype} of shape {tuple(shape)}")
    if bias is not None and (bias.dtype != dtype or bias.shape != (n,) or not bias.is_contiguous()):
        raise ValueError(f"bias: wanted {dtype} of shape {(n,)}, got {bias.dtype} of shape {tuple(bias.shape)}")
    if x.dim() != 2:
        x = x.reshape(-1, k)
    m, stride = x.shape[0], x.stride(0)
    if x.stride(1) != 1 or stride < k:
        x = x.contiguous()
        stride = k
    out = torch.empty((*shape[:-1], n), dtype=dtype)
    _native.linear(rhs, x.data_ptr(), type_, m, stride, 0 if bias is None else bias.data_ptr(), out.data_ptr(), exact)
    return out


def _matrix(name: str, tensor: Tensor, dtype: torch.dtype) -> tuple[int, int]:
    _check(name, tensor, tensor.dtype == dtype and tensor.dim() == 2, f"{dtype} of shape (n, k)")
    return tensor.shape[0], tensor.shape[1]


def _check(name: str, tensor: Tensor, is_good: bool, wanted: str) -> None:
    if not is_good:
        raise ValueError(f"{name}: wanted {wanted}, got {tensor.dtype} of shape {tuple(tensor.shape)}")


def _new(format_: Format, scale_type: Dtype, n: int, k: int, group: int) -> PackedRhs:
    # The address comes later: its size is asked of a description without one.
    size = _native.Rhs(format_, scale_type, n, k, group, 0).bytes
    return adopt(torch.frombuffer(_native.Buffer(size), dtype=torch.uint8), (n, k, group, int(format_), int(scale_type)))


def _linear(x: Tensor, data: Tensor, bias: Tensor | None, n: int, k: int, group: int, format_: int, scale_type: int, exact: bool) -> Tensor:
    return _run(x, _described(format_, scale_type, n, k, group, data.data_ptr()), n, k, bias, exact)


@lru_cache(maxsize=4096)
def _described(format_: int, scale_type: int, n: int, k: int, group: int, address: int) -> _native.Rhs:
    return _native.Rhs(Format(format_), Dtype(scale_type), n, k, group, address)


def _linear_fake(
    x: Tensor, data: Tensor, bias: Tensor | None, n: int, k: int, group: int, format_: int, scale_type: int, exact: bool
) -> Tensor:
    return x.new_empty((*x.shape[:-1], n))


_library = torch.library.Library("axiond", "FRAGMENT")
_library.define("linear(Tensor x, Tensor data, Tensor? bias, int n, int k, int group, int format, int scale_type, bool exact) -> Tensor")
_library.impl("linear", _linear, "CPU")
torch.library.register_fake("axiond::linear", _linear_fake, lib=_library)
