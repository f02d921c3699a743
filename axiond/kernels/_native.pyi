"""What native/bindings.cc exports. Addresses are data_ptr() of tensors, 0 for none; strides count elements."""

from enum import Enum
from typing import TypedDict

class Format(Enum):
    q4 = 0
    q8 = 1
    bf16 = 2

    def __int__(self) -> int: ...

class Dtype(Enum):
    f32 = 0
    f16 = 1
    bf16 = 2

    def __int__(self) -> int: ...

class Nibbles(Enum):
    """How a checkpoint holds 4-bit numbers; native/linear/pack.h describes them."""

    bytes = 0
    signed_bytes = 1
    words = 2
    awq = 3

class Buffer:
    """Zeroed bytes on huge pages, through the buffer protocol."""

    def __init__(self, bytes: int) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

class Rhs:
    """Packed weights of logical shape (n, k) at an address."""

    def __init__(self, format: Format, scale_type: Dtype, n: int, k: int, group: int, data: int) -> None: ...
    n: int
    k: int
    bytes: int

class Levels(TypedDict):
    detected: str
    active: str

def pack_q4(rhs: Rhs, q: int, kind: Nibbles, stride_n: int, stride_k: int, scales: int, zero_points: int) -> None: ...
def pack_q8(rhs: Rhs, q: int, scales: int) -> None: ...
def round_q8(rhs: Rhs, weight: int, type: Dtype) -> None: ...
def pack_bf16(rhs: Rhs, weight: int) -> None: ...
def linear(rhs: Rhs, x: int, type: Dtype, m: int, x_stride: int, bias: int, dst: int, exact: bool) -> None: ...
def kernel_for(op: str, m: int) -> str: ...
def isa() -> Levels: ...
def force_isa(name: str) -> None: ...
def rms_norm(
    type: int, weight_type: int, rows: int, n: int, x: int, inner_rows: int, x_stride: int, x_inner_stride: int, residual: int,
    residual_stride: int, sum: int, weight: int, weight_offset: float, epsilon: float, out: int,
) -> None: ...  # fmt: skip
def gate(type: int, activation: int, rows: int, n: int, gate: int, up: int, stride: int, out: int) -> None: ...
def rotary(
    type: int, rows: int, head_size: int, rotary_dim: int, interleaved: bool, positions: int, cos_sin: int, query: int,
    query_heads: int, query_stride: int, key: int, key_heads: int, key_stride: int,
) -> None: ...  # fmt: skip
def softmax(rows: int, n: int, x: int, x_stride: int, out: int, log: bool) -> None: ...
def argmax(type: int, rows: int, n: int, x: int, x_stride: int, out: int) -> None: ...
def top_k_top_p(rows: int, n: int, x: int, x_stride: int, k: int, p: int) -> None: ...
def small_isa() -> str: ...
