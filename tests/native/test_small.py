"""Every small kernel of every level against the reference, and against the plain kernel to the last bit."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from axiond.kernels import reference_small as reference
from tests.native.probe import TYPES, Probe

DTYPES = tuple(TYPES)
EPS = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
TINY = {torch.float32: 2.0**-149, torch.float16: 2.0**-25, torch.bfloat16: 2.0**-134}  # (half of) the smallest number
LENGTHS = (1, 15, 16, 17, 63, 64, 65, 200, 1536)  # around the 16 lanes and the four sums
ROWS = (1, 2, 5)
GAP = 3  # elements between rows, which no kernel may touch
VECTOR = ("neon", "avx512vnni")  # the levels that bring kernels of their own


@pytest.fixture(autouse=True)
def _same_numbers_each_time() -> None:
    torch.manual_seed(0)


def test_a_level_without_kernels_of_its_own_has_those_of_the_one_below(probe: Probe, levels: tuple[str, ...]) -> None:
    used = [probe.ask("argmax", (torch.ones(1),), isa=level, rows=1, n=1, type=0, stride=1)[1] for level in levels]
    plain = [level for level in levels if level in ("portable", "avx2")]
    assert used == ["portable"] * len(plain) + [level for level in VECTOR if level in levels] * (len(levels) - len(plain))


def own(levels: tuple[str, ...]) -> list[str]:
    return [level for level in levels if level in ("portable", *VECTOR)]


def rows_with_gaps(*tensors: Tensor) -> Tensor:
    return torch.cat([*tensors, torch.full((len(tensors[0]), GAP), 7.0).to(tensors[0].dtype)], 1)


def ask(probe: Probe, op: str, level: str, buffers: tuple[Tensor | None, ...], dtype: torch.dtype, **values: object) -> Tensor:
    result, used = probe.ask(op, buffers, isa=level, type=TYPES[dtype], **values)
    assert used == level
    return torch.frombuffer(bytearray(result), dtype=dtype)


def asked(
    probe: Probe, levels: tuple[str, ...], op: str, buffers: tuple[Tensor | None, ...], dtype: torch.dtype, **values: object
) -> Tensor:
    """The answer of the portable kernel, after it was seen to be that of the other."""
    plain, *others = (ask(probe, op, level, buffers, dtype, **values) for level in own(levels))
    for other in others:
        assert torch.equal(plain.view(torch.uint8), other.view(torch.uint8))
    return plain


def without_gaps(got: Tensor, rows: int) -> Tensor:
    got = got.reshape(rows, -1)
    assert (got[:, -GAP:] == 7).all(), "what lies between the rows was touched"
    return got[:, :-GAP]


def assert_within(got: Tensor, want: Tensor, roundings: Tensor | float, factor: Tensor | float = 0) -> None:
    """One rounding to the result's type, and *roundings* single-precision ones before it; *factor* multiplied a subnormal number."""
    bound = (EPS[got.dtype] + roundings * 2.0**-24) * want.abs() + TINY[got.dtype] + factor * TINY[torch.float32]
    excess = ((got.double() - want).abs() / bound).max()
    assert excess <= 1.001, f"{excess:.2f} times the bound"  # roundings multiply: (1 + a)(1 + b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("has_residual", [False, True], ids=["plain", "residual"])
def test_rms_norm(probe: Probe, levels: tuple[str, ...], dtype: torch.dtype, n: int, has_residual: bool) -> None:
    for rows, weight_type, offset in zip(ROWS, (dtype, torch.float32, None), (0, 1, 0), strict=True):
        x, residual = torch.randn(rows, n).to(dtype), torch.randn(rows, n).to(dtype)
        weight = None if weight_type is None else torch.randn(n).to(weight_type)
        buffers = (rows_with_gaps(x), rows_with_gaps(residual) if has_residual else None, weight, rows_with_gaps(x))
        got = asked(
            probe, levels, "rms_norm", buffers, dtype, rows=rows, n=n, weight_type=TYPES[weight_type or dtype], weight_offset=offset,
            inner_rows=1, x_stride=n + GAP, x_inner_stride=0, stride=n + GAP,
        ).chunk(2 if has_residual else 1)  # fmt: skip
        whole = x.double() + residual.double() if has_residual else x.double()
        # Sums of n / 64 terms, then of 64 in 6 steps; the square root halves their error.
        assert_within(without_gaps(got[0], rows), reference.rms_norm(whole, weight, offset), n / 64 + 12)
        if has_residual:
            assert_within(without_gaps(got[1], rows), whole, 1)


def test_rms_norm_takes_the_heads_of_a_merged_row(probe: Probe, levels: tuple[str, ...]) -> None:
    tokens, heads, size, stride = 3, 2, 40, 150
    merged = torch.randn(tokens, stride).bfloat16()
    got = asked(
        probe, levels, "rms_norm", (merged, None, None, torch.zeros(tokens * heads, size).bfloat16()), torch.bfloat16, rows=tokens * heads,
        n=size, weight_type=TYPES[torch.bfloat16], weight_offset=0, inner_rows=heads, x_stride=stride, x_inner_stride=size, stride=size,
    )  # fmt: skip
    want = reference.rms_norm(merged[:, : heads * size].reshape(-1, size), None)
    assert_within(got.reshape(-1, size), want, 16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_gate(probe: Probe, levels: tuple[str, ...], activation: str, n: int, dtype: torch.dtype) -> None:
    for rows in ROWS:
        x, up = (torch.randn(rows, n) * 4).to(dtype), torch.randn(rows, n).to(dtype)
        buffers = (rows_with_gaps(x), rows_with_gaps(up), rows_with_gaps(x))
        got = asked(
            probe, levels, "gate", buffers, dtype, rows=rows, n=n, activation=reference.ACTIVATIONS.index(activation), stride=n + GAP
        )
        # The argument of exp is off by some roundings of itself, so the result is by as many times that argument.
        wide = x.double()
        argument = {"silu": 0 * wide, "gelu": wide.square() / 2 + 2, "gelu_tanh": 2 * reference.tanh_argument(wide).abs()}[activation]
        assert_within(without_gaps(got, rows), reference.gate(activation, x, up), 10 + 4 * argument, (wide * up).abs())


@pytest.mark.parametrize("activation", range(3), ids=reference.ACTIVATIONS)
def test_gate_at_the_ends_of_its_range(probe: Probe, levels: tuple[str, ...], activation: int) -> None:
    x = torch.tensor([[0.0, -0.0, math.inf, math.nan, 3e38, -3e38, 88.5, -88.5, -104.5, 1e-40, -1e-40, -200.0]])
    for level in own(levels):
        got = ask(probe, "gate", level, (x, torch.ones_like(x), x), torch.float32, rows=1, n=12, activation=activation, stride=12)
        assert got[[0, 1]].eq(0).all()
        assert got[2] == math.inf
        assert got[3].isnan()
        assert got[4] == x[0, 4]
        assert got[6] == x[0, 6]
        assert (got[[5, 7, 8, 11]] <= 0).all()
        assert (got[[5, 7, 8, 11]] > -1e-35).all()
        assert (got[9:11] - x[0, 9:11] / 2).abs().max() < 1e-44


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("is_interleaved", [False, True], ids=["halves", "interleaved"])
@pytest.mark.parametrize("rotary_dim", [2, 16, 20, 32, 34, 62, 64, 80])
def test_rotary(probe: Probe, levels: tuple[str, ...], rotary_dim: int, is_interleaved: bool, dtype: torch.dtype) -> None:
    half = rotary_dim // 2
    for rows, size in itertools.product(ROWS, (rotary_dim, rotary_dim + 6)):
        positions, angles = torch.randperm(9)[:rows], torch.randn(9, rotary_dim).to(dtype)
        query, key = torch.randn(rows, 3, size).to(dtype), torch.randn(rows, 2, size).to(dtype)
        buffers = (positions, angles, rows_with_gaps(query.flatten(1)), rows_with_gaps(key.flatten(1)))
        got = asked(
            probe, levels, "rotary", buffers, dtype, rows=rows, head_size=size, rotary_dim=rotary_dim, interleaved=int(is_interleaved),
            query_heads=3, query_stride=3 * size + GAP, key_heads=2, key_stride=2 * size + GAP,
        ).split([rows * (3 * size + GAP), rows * (2 * size + GAP)])  # fmt: skip
        cos, sin = angles[positions].split(half, 1)
        for one, x in zip(got, (query, key), strict=True):
            want = reference.rotate(x, cos, sin, is_interleaved)
            magnitude = reference.rotate(x.abs(), cos.abs(), -sin.abs(), is_interleaved).abs()
            magnitude = torch.maximum(magnitude, reference.rotate(x.abs(), cos.abs(), sin.abs(), is_interleaved).abs())
            turned = without_gaps(one, rows).reshape(rows, -1, size)
            assert ((turned.double() - want).abs() <= EPS[dtype] * want.abs() + 2.0**-23 * magnitude + TINY[dtype]).all()
            assert torch.equal(turned[..., rotary_dim:], x[..., rotary_dim:])


@pytest.mark.parametrize("is_log", [False, True], ids=["softmax", "log"])
@pytest.mark.parametrize("n", [1, 16, 17, 1000, 2**14, 2**14 + 1, 50_000])
def test_softmax(probe: Probe, levels: tuple[str, ...], n: int, is_log: bool) -> None:
    for rows in ROWS:
        x = torch.randn(rows, n) * 5
        x[:, n // 2 + 1 :: 3] = -math.inf
        buffers = (rows_with_gaps(x), rows_with_gaps(x))
        got = without_gaps(
            asked(probe, levels, "softmax", buffers, torch.float32, rows=rows, n=n, stride=n + GAP, log=int(is_log)), rows
        ).double()
        below = x.double() - x.double().amax(1, keepdim=True)
        want = below.log_softmax(1) if is_log else below.softmax(1)
        assert torch.equal(got.isneginf() if is_log else got.eq(0), x.isneginf())
        # The rounding of x - max, then up to 2^14 / 64 + 10 sums, an exp or a log, and a product.
        roundings = below.abs() + 2**8 + 16
        bound = roundings * 2.0**-24 * (1 + want.abs() if is_log else want) + TINY[torch.float32]
        assert ((got - want).abs()[~x.isneginf()] <= bound[~x.isneginf()]).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [1, 2, 16, 17, 4096, 4097, 20_000])
def test_argmax(probe: Probe, levels: tuple[str, ...], n: int, dtype: torch.dtype) -> None:
    for rows in ROWS:
        x = torch.randn(rows, n).mul(100).round().to(dtype)  # many equal ones
        x[-1] = -math.inf
        for bad in (None, n // 2, n - 1):
            if bad is not None:
                x[0, bad] = math.nan
            for level in own(levels):
                result, _ = probe.ask("argmax", (rows_with_gaps(x),), isa=level, rows=rows, n=n, type=TYPES[dtype], stride=n + GAP)
                assert torch.equal(torch.frombuffer(bytearray(result), dtype=torch.int64), x.argmax(1)), level


@pytest.mark.parametrize("spread", [0.1, 1, 8, 40])
@pytest.mark.parametrize("n", [1, 17, 64, 65, 3000, 20_000])
def test_top_k_top_p(probe: Probe, levels: tuple[str, ...], n: int, spread: float) -> None:
    x = torch.randn(5, n) * spread
    x[1] = x[1].bfloat16()  # equal ones, at the cut too
    x[2, ::2] = -math.inf
    ks = torch.tensor([1, min(n, 20), min(n, 7), max(1, n - 3), n])
    ps = torch.tensor([0.5, 0.9, 1.0, 0.999, 0.1])
    for k, p in ((ks, ps), (ks, None), (None, ps)):
        got = asked(probe, levels, "top_k_top_p", (rows_with_gaps(x), k, p), torch.float32, rows=5, n=n, stride=n + GAP)
        assert torch.equal(without_gaps(got, 5), reference.top_k_top_p(x, k, p))


def test_top_k_top_p_leaves_a_row_that_is_no_distribution(probe: Probe, levels: tuple[str, ...]) -> None:
    x = torch.randn(3, 100)
    x[0, 50], x[1, 50], x[2] = math.nan, math.inf, -math.inf
    got = asked(probe, levels, "top_k_top_p", (x, torch.full((3,), 5), torch.full((3,), 0.5)), torch.float32, rows=3, n=100, stride=100)
    assert torch.equal(got.reshape(3, 100).view(torch.int32), x.view(torch.int32))
