"""The small kernels as torch sees them: shapes, strides, torch.compile, refusals. Arithmetic is test_small.py's."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from axiond.kernels import reference_small as reference
from axiond.kernels import small

N = 48
HALF_ULP = 2.0**-8  # of bfloat16
WEIGHT = torch.randn(N, generator=torch.Generator().manual_seed(1)).bfloat16()


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)).bfloat16()


SHAPES: list[Callable[[Tensor], Tensor]] = [
    lambda x: x,
    lambda x: x.reshape(2, 3, -1),
    lambda x: x[0],
    lambda x: x[:0],
    lambda x: x.repeat(1, 2)[:, : x.shape[1]],
    lambda x: x.repeat(1, 2).view(6, 2, -1)[:, :1],
    lambda x: x.T.contiguous().T,
]
NAMES = ["matrix", "batch", "vector", "empty", "wide rows", "heads", "columns first"]


def assert_close(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    assert got.is_contiguous()
    assert ((got.double() - want).abs() <= 1.01 * HALF_ULP * want.abs() + 1e-30).all()


@pytest.mark.parametrize("shaped", SHAPES, ids=NAMES)
def test_norms_take_any_shape_and_stride(shaped: Callable[[Tensor], Tensor]) -> None:
    x, residual = shaped(random(6, N)), shaped(random(12, N)[6:])
    assert_close(small.rms_norm(x, WEIGHT, 1e-6), reference.rms_norm(x, WEIGHT))
    out, total = small.add_rms_norm(x, residual, WEIGHT, 1e-6, 1.0)
    assert_close(total, x.double() + residual.double())
    assert_close(out, reference.rms_norm(x.double() + residual.double(), WEIGHT, 1.0))


@pytest.mark.parametrize("shaped", SHAPES, ids=NAMES)
def test_gate_takes_any_shape_and_stride(shaped: Callable[[Tensor], Tensor]) -> None:
    x = shaped(random(6, 2 * N))
    assert_close(small.gate(x, small.GELU), reference.gate("gelu", x[..., :N], x[..., N:]))


def test_add_rms_norm_in_place_changes_both_and_is_the_same() -> None:
    x, residual = random(3, N), random(6, N)[3:]
    out, total = small.add_rms_norm(x, residual, WEIGHT, 1e-6)
    small.add_rms_norm_(x, residual, WEIGHT, 1e-6)
    assert torch.equal(x, out)
    assert torch.equal(residual, total)


def test_add_rms_norm_leaves_its_arguments() -> None:
    x, residual = random(3, N), random(3, N)
    small.add_rms_norm(x, residual, WEIGHT, 1e-6)
    assert torch.equal(x, random(3, N))
    assert torch.equal(residual, random(3, N))


@pytest.mark.parametrize("is_neox", [True, False])
@pytest.mark.parametrize("rows", [1, 700], ids=["one thread", "all threads"])
def test_rotary_turns_the_query_and_key_of_a_merged_row(rows: int, is_neox: bool) -> None:
    merged, cos_sin = random(rows, 7 * 16), random(rows + 5, 12)
    positions = torch.randperm(rows + 5, generator=torch.Generator().manual_seed(3))[:rows]
    query, key, value = (x.clone().view(rows, -1, 16) for x in merged.split([64, 32, 16], 1))
    q, k, v = merged.split([64, 32, 16], 1)
    small.rotary_(positions, q, k, 16, cos_sin, is_neox)
    cos, sin = cos_sin[positions].chunk(2, 1)
    for got, x in ((q, query), (k, key)):
        want = reference.rotate(x, cos, sin, not is_neox)
        assert ((got.reshape(rows, -1, 16).double() - want).abs() <= 1.01 * HALF_ULP * want.abs() + 2.0**-20).all()
    assert torch.equal(v, value.view(rows, -1))


def test_softmax_and_argmax_are_those_of_torch() -> None:
    x = torch.randn(3, 70_000, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(small.softmax(x), x.softmax(1), rtol=2e-5, atol=0)
    torch.testing.assert_close(small.log_softmax(x), x.log_softmax(1), rtol=1e-5, atol=1e-5)
    assert torch.equal(small.argmax(x), x.argmax(1))


def test_top_k_top_p_takes_the_numbers_that_vllm_has() -> None:
    x = torch.randn(2, 300, generator=torch.Generator().manual_seed(5))
    k, p = torch.tensor([5, 300], dtype=torch.int32), torch.tensor([0.7, 0.2])
    want = reference.top_k_top_p(x, k, p)
    assert torch.equal(small.top_k_top_p_(x, k, p), want)
    assert torch.equal(x, want)


@pytest.mark.parametrize("rows", [1, 64], ids=["one thread", "all threads"])
def test_a_row_does_not_depend_on_its_batch(rows: int) -> None:
    x = random(rows, 2048)
    gated, normed = small.gate(x, small.SILU), small.rms_norm(x, None, 1e-6)
    for row in (0, rows - 1):
        assert torch.equal(gated[row], small.gate(x[row], small.SILU))
        assert torch.equal(normed[row], small.rms_norm(x[row], None, 1e-6))


def test_torch_compile_traces_them() -> None:
    def layer(x: Tensor, residual: Tensor, positions: Tensor, cos_sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query = small.rms_norm(x, WEIGHT, 1e-6)
        small.rotary_(positions, query, None, 16, cos_sin, True)
        normed, total = small.add_rms_norm(query, residual, WEIGHT, 1e-6)
        return small.gate(normed, small.SILU), total, query

    arguments = (random(4, N), random(4, N), torch.arange(4), random(8, 16))
    for got, want in zip(torch.compile(layer, backend="aot_eager", fullgraph=True)(*arguments), layer(*arguments), strict=True):
        assert torch.equal(got, want)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "float64": (lambda: small.rms_norm(torch.ones(2, N).double(), None, 1e-6), "x: wanted float32, float16 or bfloat16"),
    "weight": (lambda: small.rms_norm(random(2, N), WEIGHT[1:], 1e-6), r"weight: wanted .* of shape \(48,\)"),
    "residual": (lambda: small.add_rms_norm(random(2, N), random(1, N), WEIGHT, 1e-6), r"residual: wanted .* of shape \(2, 48\)"),
    "in place": (lambda: small.add_rms_norm_(random(2, 2 * N)[:, :N], random(2, N), WEIGHT, 1e-6), "wanted contiguous"),
    "odd": (lambda: small.gate(random(2, 5), small.SILU), r"x: wanted .* of shape \(\.\.\., 2n\)"),
    "positions": (lambda: small.rotary_(torch.zeros(2).int(), random(2, 32), None, 16, random(9, 16), True), "positions: wanted int64"),
    "heads": (lambda: small.rotary_(torch.zeros(2).long(), random(2, 40), None, 16, random(9, 16), True), r"query: .* heads \* 16"),
    "cos_sin": (lambda: small.rotary_(torch.zeros(2).long(), random(2, 32), None, 16, random(9, 18), True), "cos_sin: wanted"),
    "softmax": (lambda: small.softmax(random(2, N)), "x: wanted float32"),
    "argmax": (lambda: small.argmax(random(N)), r"x: wanted .* of shape \(rows, n\)"),
    "top-k": (lambda: small.top_k_top_p_(torch.ones(2, 9), torch.tensor([1]), None), r"k and p: wanted shape \(2,\)"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_by_name(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_level_that_is_none_is_refused_where_all_threads_work_too() -> None:
    code = "import torch; from axiond.kernels import small; small.rms_norm(torch.ones(64, 2048), None, 1e-6)"
    environment = os.environ | {"AXIOND_FORCE_ISA": "sse9"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert "ValueError: AXIOND_FORCE_ISA=sse9: there is no such level" in done.stderr
