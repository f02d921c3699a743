"""
The small operations around the linear layers, as torch sees them. Importing this loads the native module.

Rows are the last dimension, of any stride; float32, float16 and bfloat16. Inside torch.compile each is one operator of
torch's; outside the dispatcher is left out, which costs more than the smaller ones of them.
"""

import torch
from torch import Tensor

import axiond.kernels.openmp  # noqa: F401  first
from axiond.kernels import _native

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
SILU, GELU, GELU_TANH = range(3)


def rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, weight_offset: float = 0.0) -> Tensor:
    """
    Divide rows by the root of their mean square, and multiply them by *weight* + *weight_offset*.

    Args:
        x: shape (..., n).
        weight: shape (n,), contiguous; ones if None.

    Returns:
        A new tensor like *x*, contiguous.

    Raises:
        ValueError: a shape or dtype above is not met.
    """
    if torch.compiler.is_compiling():
        return torch.ops.axiond.rms_norm(x, weight, epsilon, weight_offset)
    return _rms_norm(x, weight, epsilon, weight_offset)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor | None, epsilon: float, weight_offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """
    Add *residual* to *x*, in single precision, and give the sum to rms_norm().

    Returns:
        The result and the sum, both new.

    Raises:
        ValueError: *residual* is not like *x*, or as rms_norm().
    """
    if torch.compiler.is_compiling():
        return torch.ops.axiond.add_rms_norm(x, residual, weight, epsilon, weight_offset)  # type: ignore[no-any-return]
    return _add_rms_norm(x, residual, weight, epsilon, weight_offset)


def add_rms_norm_(x: Tensor, residual: Tensor, weight: Tensor | None, epsilon: float, weight_offset: float = 0.0) -> None:
    """As add_rms_norm(), but the result replaces *x*, and the sum *residual*; both have to be contiguous. Not for torch.compile."""
    _check_residual(x, residual)
    if not (x.is_contiguous() and residual.is_contiguous()):
        raise ValueError("x and residual: wanted contiguous tensors")
    _norm(x, residual, residual, weight, weight_offset, epsilon, x)


def gate(x: Tensor, activation: int) -> Tensor:
    """
    Return activation(x[..., :n]) * x[..., n:].

    Args:
        x: shape (..., 2n).
        activation: SILU, GELU (by the error function) or GELU_TANH.

    Raises:
        ValueError: a shape or dtype is another.
    """
    if torch.compiler.is_compiling():
        return torch.ops.axiond.gate(x, activation)
    return _gate(x, activation)


def rotary_(positions: Tensor, query: Tensor, key: Tensor | None, head_size: int, cos_sin: Tensor, is_neox: bool) -> None:
    """
    Turn pairs of elements of each head by the angle of the token's position, in place.

    Args:
        positions: int64, one for each token.
        query: shape (tokens, heads * head_size) or (tokens, heads, head_size); the heads of a token follow each other.
        key: the same, with a number of heads of its own.
        cos_sin: dtype of *query*, shape (positions, rotary_dim): the cosines of a row, then its sines.
        is_neox: a pair is (i, i + rotary_dim / 2) and not (2i, 2i + 1).

    Raises:
        ValueError: a shape, dtype or stride above is not met.
    """
    if torch.compiler.is_compiling():
        torch.ops.axiond.rotary_(positions, query, key, head_size, cos_sin, is_neox)
    else:
        _rotary(positions, query, key, head_size, cos_sin, is_neox)


def softmax(x: Tensor) -> Tensor:
    """Return softmax over the last dimension of float32 *x*. Raises ValueError for another dtype."""
    return _softmax(x, False)


def log_softmax(x: Tensor) -> Tensor:
    """Return the logarithm of softmax(). Raises ValueError for another dtype."""
    return _softmax(x, True)


def argmax(x: Tensor) -> Tensor:
    """
    Return where each row is greatest: the first place of equal ones; a NaN is greater than all.

    Args:
        x: shape (rows, n), n at least 1.

    Raises:
        ValueError: a shape or dtype is another.
    """
    type_, stride = _matrix("x", x)
    out = torch.empty(x.shape[0], dtype=torch.int64)
    _native.argmax(type_, x.shape[0], x.shape[1], x.data_ptr(), stride, out.data_ptr())
    return out


def top_k_top_p_(logits: Tensor, k: Tensor | None, p: Tensor | None) -> Tensor:
    """
    Set to minus infinity, in place, what is not among the *k* greatest of a row or is beyond the mass *p* of those.

    Equal to the k-th greatest all stay; at the mass *p* those at the end of the row do, and one always. A row with a NaN
    stays as it is.

    Args:
        logits: float32, shape (rows, n), n at least 1.
        k: whole numbers from 1 to n, shape (rows,).
        p: float32, shape (rows,).

    Returns:
        *logits*.

    Raises:
        ValueError: a shape or dtype above is not met.
    """
    type_, stride = _matrix("logits", logits)
    rows, n = logits.shape
    if type_ != TYPES[torch.float32]:
        raise ValueError(f"logits: wanted float32, got {logits.dtype}")
    if k is not None:
        k = k.to(torch.int64).clamp(1, n).contiguous()
    if p is not None:
        p = p.float().contiguous()
    if any(each is not None and each.shape != (rows,) for each in (k, p)):
        raise ValueError(f"k and p: wanted shape {(rows,)}, got {[None if each is None else tuple(each.shape) for each in (k, p)]}")
    _native.top_k_top_p(rows, n, logits.data_ptr(), stride, 0 if k is None else k.data_ptr(), 0 if p is None else p.data_ptr())
    return logits


def _rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, weight_offset: float) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype)
    _norm(x, None, None, weight, weight_offset, epsilon, out)
    return out


def _add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor | None, epsilon: float, weight_offset: float) -> tuple[Tensor, Tensor]:
    _check_residual(x, residual)
    residual = residual.contiguous()
    out, total = torch.empty(x.shape, dtype=x.dtype), torch.empty(x.shape, dtype=x.dtype)
    _norm(x, residual, total, weight, weight_offset, epsilon, out)
    return out, total


def _norm(
    x: Tensor, residual: Tensor | None, total: Tensor | None, weight: Tensor | None, weight_offset: float, epsilon: float, out: Tensor
) -> None:
    type_, n = TYPES.get(x.dtype), x.shape[-1]
    if type_ is None or not n:
        raise _wanted("x", x, "float32, float16 or bfloat16 of shape (..., n)")
    if weight is not None and (weight.shape != (n,) or not weight.is_contiguous() or weight.dtype not in TYPES):
        raise _wanted("weight", weight, f"float32, float16 or bfloat16 of shape {(n,)}, contiguous")
    rows, inner, stride, inner_stride = x.numel() // n, 1, n, 0
    if not x.is_contiguous():
        if x.dim() == 3 and x.stride(2) == 1:
            inner, stride, inner_stride = x.shape[1], x.stride(0), x.stride(1)
        elif x.dim() == 2 and x.stride(1) == 1:
            stride = x.stride(0)
        else:
            x = x.contiguous()
    _native.rms_norm(
        type_, type_ if weight is None else TYPES[weight.dtype], rows, n, x.data_ptr(), inner, stride, inner_stride,
        0 if residual is None else residual.data_ptr(), n, 0 if total is None else total.data_ptr(),
        0 if weight is None else weight.data_ptr(), weight_offset, epsilon, out.data_ptr(),
    )  # fmt: skip


def _check_residual(x: Tensor, residual: Tensor) -> None:
    if residual.dtype != x.dtype or residual.shape != x.shape:
        raise _wanted("residual", residual, f"{x.dtype} of shape {tuple(x.shape)}")


def _gate(x: Tensor, activation: int) -> Tensor:
    shape, dtype = x.shape, x.dtype
    type_, n = TYPES.get(dtype), shape[-1] // 2
    if type_ is None or not n or shape[-1] % 2:
        raise _wanted("x", x, "float32, float16 or bfloat16 of shape (..., 2n)")
    stride = 2 * n
    if not x.is_contiguous():
        if x.dim() == 2 and x.stride(1) == 1:
            stride = x.stride(0)
        else:
            x = x.contiguous()
    out = torch.empty((*shape[:-1], n), dtype=dtype)
    at = x.data_ptr()
    _native.gate(type_, activation, out.numel() // n, n, at, at + n * dtype.itemsize, stride, out.data_ptr())
    return out


def _rotary(positions: Tensor, query: Tensor, key: Tensor | None, head_size: int, cos_sin: Tensor, is_neox: bool) -> None:
    rows, type_ = positions.numel(), TYPES.get(query.dtype)
    if positions.dtype != torch.int64 or not positions.is_contiguous():
        raise _wanted("positions", positions, "int64, contiguous")
    if type_ is None or cos_sin.dtype != query.dtype or not cos_sin.is_contiguous() or cos_sin.shape[-1] > head_size:
        raise _wanted("cos_sin", cos_sin, f"{query.dtype} of shape (positions, at most {head_size}), contiguous")
    heads, stride = _heads("query", query, rows, head_size)
    key_heads, key_stride = (0, 0) if key is None else _heads("key", key, rows, head_size)
    if key is not None and key.dtype != query.dtype:
        raise _wanted("key", key, str(query.dtype))
    _native.rotary(
        type_, rows, head_size, cos_sin.shape[-1], not is_neox, positions.data_ptr(), cos_sin.data_ptr(), query.data_ptr(), heads, stride,
        0 if key is None else key.data_ptr(), key_heads, key_stride,
    )  # fmt: skip


def _heads(name: str, x: Tensor, rows: int, head_size: int) -> tuple[int, int]:
    """The number of heads of a token, and the elements from one token to the next."""
    shape = x.shape
    if len(shape) == 2 and shape[0] == rows and shape[1] % head_size == 0 and x.stride(1) == 1:
        return shape[1] // head_size, x.stride(0)
    if len(shape) == 3 and shape[0] == rows and shape[2] == head_size and x.stride(2) == 1 and x.stride(1) == head_size:
        return shape[1], x.stride(0)
    raise _wanted(name, x, f"shape ({rows}, heads * {head_size}), the heads of a token next to each other")


def _softmax(x: Tensor, is_log: bool) -> Tensor:
    if x.dtype != torch.float32 or not x.shape[-1]:
        raise _wanted("x", x, "float32 of shape (..., n)")
    x = x.contiguous()
    out, n = torch.empty_like(x), x.shape[-1]
    _native.softmax(x.numel() // n, n, x.data_ptr(), n, out.data_ptr(), is_log)
    return out


def _matrix(name: str, x: Tensor) -> tuple[int, int]:
    type_ = TYPES.get(x.dtype)
    if type_ is None or x.dim() != 2 or not x.shape[1] or x.stride(1) != 1:
        raise _wanted(name, x, "float32, float16 or bfloat16 of shape (rows, n), each row contiguous")
    return type_, x.stride(0)


def _wanted(name: str, x: Tensor, wanted: str) -> ValueError:
    return ValueError(f"{name}: wanted {wanted}, got {x.dtype} of shape {tuple(x.shape)} and stride {x.stride()}")


_library = torch.library.Library("axiond", "FRAGMENT")
for _schema, _function, _fake in (
    ("rms_norm(Tensor x, Tensor? weight, float epsilon, float weight_offset) -> Tensor", _rms_norm, lambda x, *_: x.new_empty(x.shape)),
    (
        "add_rms_norm(Tensor x, Tensor residual, Tensor? weight, float epsilon, float weight_offset) -> (Tensor, Tensor)",
        _add_rms_norm,
        lambda x, *_: (x.new_empty(x.shape), x.new_empty(x.shape)),
    ),
    ("gate(Tensor x, int activation) -> Tensor", _gate, lambda x, _: x.new_empty((*x.shape[:-1], x.shape[-1] // 2))),
    (
        "rotary_(Tensor positions, Tensor(a!) query, Tensor(b!)? key, int head_size, Tensor cos_sin, bool is_neox) -> ()",
        _rotary,
        lambda *_: None,
    ),
):
    _library.define(_schema)
    _name = _schema[: _schema.index("(")]
    _library.impl(_name, _function, "CPU")
    torch.library.register_fake(f"axiond::{_name}", _fake, lib=_library)
