"""The packed linear layers as torch sees them: shapes, strides, types, torch.compile, refusals. Arithmetic is test_linear.py's."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from axiond.kernels import _native, compiled, ops, reference
from axiond.kernels.settings import Settings

N, K, GROUP = 40, 128, 64
RANDOM = torch.Generator().manual_seed(1)
Q = torch.randint(0, 16, (N, K), dtype=torch.uint8, generator=RANDOM)
SCALES = torch.rand(N, K // GROUP, generator=RANDOM).half()
ZEROS = torch.randint(0, 16, (N, K // GROUP), dtype=torch.uint8, generator=RANDOM)


@pytest.fixture(scope="module")
def rhs() -> ops.PackedRhs:
    return ops.pack_q4(Q, SCALES, ZEROS, GROUP)


@pytest.mark.parametrize("dtype", list(ops.TYPES), ids=str)
@pytest.mark.parametrize(
    "shaped",
    [
        lambda x: x,
        lambda x: x.reshape(2, 3, K),
        lambda x: x[0],
        lambda x: x[:0],
        lambda x: x.repeat(1, 2)[:, :K],
        lambda x: x.repeat_interleave(2, 0)[::2],
        lambda x: x.T.contiguous().T,
    ],
    ids=["matrix", "batch", "vector", "empty", "wide rows", "every other row", "columns first"],
)
def test_any_shape_and_stride(rhs: ops.PackedRhs, dtype: torch.dtype, shaped: Callable[[Tensor], Tensor]) -> None:
    x = shaped(torch.randn(6, K, generator=torch.Generator().manual_seed(2)).to(dtype))
    got = ops.linear(x, rhs)
    assert got.dtype == dtype
    assert got.shape == (*x.shape[:-1], N)
    assert torch.equal(got.reshape(-1, N), ops.linear(x.reshape(-1, K).contiguous(), rhs))


def test_scales_that_float16_holds_stay_exact_and_others_become_bfloat16() -> None:
    x = torch.eye(GROUP)
    q = torch.randint(0, 16, (16, GROUP), dtype=torch.uint8)
    for scales in (torch.rand(16, 1).half(), (torch.rand(16, 1) * 1e-20).bfloat16(), torch.rand(16, 1).half().float()):
        got = ops.linear(x, ops.pack_q4(q, scales, None, GROUP), exact=True)
        want = reference.dequantize(q, scales, None, GROUP).T
        torch.testing.assert_close(got.double(), want, rtol=2**-23, atol=0)


def words(values: Tensor) -> Tensor:
    """Eight neighbours of a row in one int32, the first in the lowest bits."""
    found = (values.long().unflatten(1, (-1, 8)) << torch.arange(0, 32, 4)).sum(-1)
    return torch.where(found >= 2**31, found - 2**32, found).int()


STORED: dict[str, Callable[[Tensor], Tensor]] = {
    "bytes": lambda q: q,
    "bytes of another order": lambda q: q.T.contiguous().T,
    "signed bytes": lambda q: (q.int() - 8).to(torch.int8),
    "words along k": words,
    "GPTQ": lambda q: words(q).T.contiguous().T,
    "AWQ": lambda q: words(q.T.reshape(q.shape[1], -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]].flatten(1)).T,
}


@pytest.mark.parametrize("zeros", [ZEROS, None], ids=["zeros", "no zeros"])
@pytest.mark.parametrize("stored", STORED)
def test_every_way_to_hold_4_bit_weights_is_packed_alike(stored: str, zeros: Tensor | None) -> None:
    """40 columns: the last panel is half full, and its spare bytes are zeros."""
    got = ops.pack_q4(STORED[stored](Q), SCALES, zeros, GROUP, is_awq=stored == "AWQ")
    want = ops.pack_q4(Q, SCALES, zeros, GROUP)
    x = torch.eye(K)
    assert torch.equal(got.data, want.data)
    torch.testing.assert_close(ops.linear(x, got, exact=True).double(), reference.dequantize(Q, SCALES, zeros, GROUP).T, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", list(ops.TYPES), ids=str)
def test_rounding_while_packing(dtype: torch.dtype) -> None:
    """To the last bit as torch rounds: halves to even, and a row of zeros is one."""
    weight = torch.randn(N, K, generator=torch.Generator().manual_seed(6)).to(dtype)
    weight[1] = 0
    weight[2] = torch.arange(K) / 2 - 31.75  # the largest is 31.75, so the steps are quarters
    q, scales = reference.round_int8(weight)
    assert torch.equal(ops.round_q8(weight, GROUP).data, ops.pack_q8(q, scales, GROUP).data)


def test_compiled_code_is_named_after_the_types_of_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are part of it, and depend on the weights: those of another checkpoint of the same shapes may be held in bfloat16."""
    factors, names = compiled.with_factors(lambda _: [], Settings()), []
    for scales in (SCALES, SCALES.float() / 3, SCALES):
        monkeypatch.setattr(ops, "arguments_taken", [])
        ops.pack_q4(Q, scales, ZEROS, GROUP)
        names.append(factors(None))
    assert names[0] == names[2] != names[1]


def test_packed_weights_are_taken_over(rhs: ops.PackedRhs) -> None:
    x = torch.randn(3, K)
    assert torch.equal(ops.linear(x, ops.adopt(rhs.data.clone(), list(rhs.arguments))), ops.linear(x, rhs))


def test_the_result_does_not_depend_on_the_threads(rhs: ops.PackedRhs) -> None:
    x = torch.randn(70, K)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            results.append(ops.linear(x, rhs))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_torch_compile_traces_it(rhs: ops.PackedRhs) -> None:
    x, bias = torch.randn(5, K), torch.randn(N)
    compiled = torch.compile(lambda x: ops.linear(x * 2, rhs, bias) + 1, fullgraph=True, backend="aot_eager", dynamic=True)
    assert torch.equal(compiled(x), ops.linear(x * 2, rhs, bias) + 1)
    assert torch.equal(compiled(x[:3]), ops.linear(x[:3] * 2, rhs, bias) + 1)


def test_the_registered_op_keeps_torchs_contract(rhs: ops.PackedRhs) -> None:
    torch.library.opcheck(torch.ops.axiond.linear.default, (torch.randn(5, K), rhs.data, None, *rhs.arguments, False))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda rhs: ops.linear(torch.randn(2, K + 1), rhs), rf"x: wanted .* \(\.\.\., {K}\), got torch.float32 of shape \(2, {K + 1}\)"),
        (lambda rhs: ops.linear(torch.randn(2, K).double(), rhs), "x: wanted float32, float16 or bfloat16 .* got torch.float64"),
        (lambda rhs: ops.linear(torch.randn(2, K), rhs, torch.randn(N - 1)), rf"bias: wanted torch.float32 of shape \({N},\)"),
        (lambda rhs: ops.linear(torch.randn(2, K), rhs, torch.randn(N).half()), "bias: wanted torch.float32 .* got torch.float16"),
        (lambda rhs: ops.pack_q4(Q.long(), SCALES, ZEROS, GROUP), "q: wanted uint8, int8 or int32 of two dimensions, got torch.int64"),
        (lambda rhs: ops.pack_q4(Q, SCALES, ZEROS, GROUP, is_awq=True), "q: wanted uint8, int8 or int32"),
        (lambda rhs: ops.round_q8(torch.zeros(8, 64, dtype=torch.int8), GROUP), "weight: wanted float32, float16 or bfloat16"),
        (lambda rhs: ops.adopt(rhs.data[:-64], rhs.arguments), r"data: wanted \d+ bytes, got torch.uint8 of shape"),
        (lambda rhs: ops.adopt(rhs.data[1:], rhs.arguments), "data: wanted an address that is a multiple of 64"),
        (lambda rhs: ops.pack_q4(Q, SCALES[:, :1], ZEROS, GROUP), r"scales: wanted shape \(40, 2\), got torch.float16 of shape \(40, 1\)"),
        (lambda rhs: ops.pack_q4(Q, SCALES, ZEROS.int(), GROUP), "zero_points: wanted uint8, as scales"),
        (lambda rhs: ops.pack_q4(Q, torch.rand(N, 8), None, 16), "group: wanted 32, 64 or 128, got 16"),
        (lambda rhs: ops.pack_bf16(torch.randn(8, 48).bfloat16()), "group: wanted 32, 64 or 128"),
        (lambda rhs: ops.pack_q8(Q, torch.rand(N), GROUP), "q: wanted torch.int8"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(rhs: ops.PackedRhs, wrong: Callable[[ops.PackedRhs], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        wrong(rhs)


def test_weights_lie_on_cache_lines_and_in_huge_page_mappings() -> None:
    small = [ops.pack_bf16(torch.randn(16, 32).bfloat16()) for _ in range(3)]
    assert all(packed.data.data_ptr() % 64 == 0 for packed in small)
    large = _native.Buffer(24 * 2**20)
    assert torch.frombuffer(large, dtype=torch.uint8).data_ptr() % 2**21 == 0


def test_there_is_one_openmp_in_the_process() -> None:
    code = "import torch; from axiond.kernels import _native; print(open('/proc/self/maps').read())"
    maps = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    loaded = {line.split()[-1] for line in maps.splitlines() if "libgomp" in line or "libiomp" in line}
    assert len(loaded) == 1, loaded


@pytest.mark.parametrize("module", ["ops", "small"])
def test_torchs_openmp_is_opened_for_the_native_module_first(module: str) -> None:
    code = f"import sys, axiond.kernels.{module}; print(*(name for name in sys.modules if name.startswith('axiond.kernels.')))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.split()
    assert loaded.index("axiond.kernels.openmp") < loaded.index("axiond.kernels._native")


OUT_OF_MEMORY = """
import resource, torch
from axiond.kernels import ops
rhs = ops.pack_bf16(torch.ones(16, 4096).bfloat16())
x = torch.ones(4096, 4096)
before = ops.linear(x[:64], rhs)  # starts the threads
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**24,) * 2)
try:
    ops.linear(x, rhs)
except MemoryError:
    assert torch.equal(ops.linear(x[:64], rhs), before)
    print("refused")
"""


def test_without_memory_for_the_activations_a_call_fails_and_the_next_works() -> None:
    done = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True, timeout=60)
    assert done.stdout == "refused\n", done.stderr
