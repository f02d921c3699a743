"""Every linear kernel of every level against the reference, and against the plain kernel to the last bit."""

import itertools
import zlib
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from axiond.kernels import reference
from tests.native.probe import TYPES, Probe

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
EPS = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
# Sizes around the tiles of all kernels: rows of 1 to 8, blocks of 16 to 128, panels of 16 in runs of 4 and more.
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16, 17, 33, 65)
COLUMNS = (1, 15, 16, 17, 48, 63, 64, 65, 144)


@dataclass(frozen=True)
class Case:
    m: int
    n: int
    k: int
    group: int
    x_type: torch.dtype
    scale_type: torch.dtype = torch.float16
    has_zero_points: bool = False
    has_bias: bool = False
    threads: int = 1

    def __str__(self) -> str:
        flags = "z" * self.has_zero_points + "b" * self.has_bias
        types = f"{str(self.x_type)[6:]}-{str(self.scale_type)[6:]}"
        return f"m{self.m}-n{self.n}-k{self.k}-g{self.group}-{types}-{flags}-t{self.threads}"


def cases() -> list[Case]:
    """Every row count, column count, group, type and thread count with several of the others; and rows of many groups."""
    turning = zip(
        itertools.cycle((1, 2, 3, 5)), itertools.cycle((32, 64, 128)), itertools.cycle(DTYPES), itertools.cycle(DTYPES[1:]),
        itertools.cycle((False, True, True, False, True)), itertools.cycle((True, False, False)), itertools.cycle((1, 2, 1, 3, 7, 1, 4)),
    )  # fmt: skip
    sizes = [(m, n) for i, m in enumerate(ROWS) for n in COLUMNS[i % 2 :: 2]] + [(1, 400), (70, 300), (129, 16), (259, 33)]
    long = [Case(m, 40, 2304, group, torch.bfloat16, has_zero_points=True, threads=2) for m in (1, 17, 130) for group in (128, 32)]
    return long + [
        Case(m, n, groups * group, group, x_type, scale_type, zeros, bias, threads)
        for (m, n), (groups, group, x_type, scale_type, zeros, bias, threads) in zip(sizes, turning, strict=False)
    ]


def random(case: Case) -> tuple[torch.Generator, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(zlib.crc32(str(case).encode()))
    x = torch.randn(case.m, case.k, generator=generator)
    x[:, 0] *= 50  # an outlier channel
    if case.m > 2:
        x[1, : case.group] = 0
        x[2, : case.group] *= 1e-33  # as good as zeros, and 127 / amax would overflow a little further down
    bias = torch.randn(case.n, generator=generator).to(case.x_type) if case.has_bias else None
    return generator, x.to(case.x_type), bias


def ask(probe: Probe, op: str, level: str, case: Case, weights: tuple[Tensor | None, ...], x: Tensor, bias: Tensor | None) -> Tensor:
    result, _ = probe.ask(
        "linear", (*weights, *[None] * (3 - len(weights)), x, bias), isa=level, op=op, m=case.m, n=case.n, k=case.k, group=case.group,
        type=TYPES[case.x_type], scale_type=TYPES[case.scale_type], threads=case.threads,
    )  # fmt: skip
    return torch.frombuffer(bytearray(result), dtype=case.x_type).reshape(case.m, case.n)


def assert_within(got: Tensor, want: Tensor, magnitude: Tensor, case: Case, roundings: float) -> None:
    """Each sum may be off by *roundings* single-precision roundings of its magnitude, and by one rounding to the result's type."""
    bound = roundings * 2.0**-24 * magnitude + EPS[case.x_type] * want.abs() + 1e-30
    if case.x_type == torch.float16:
        bound += 2.0**-25  # half of the smallest number it has
    assert got.isfinite().all()
    excess = ((got.double() - want).abs() / bound).max()
    assert excess <= 1, f"{excess:.2f} times the bound"


def four_bit(case: Case, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
    groups = case.k // case.group
    q = torch.randint(0, 16, (case.n, case.k), dtype=torch.uint8, generator=generator)
    scales = (torch.rand(case.n, groups, generator=generator) * 0.1 + 0.001).to(case.scale_type)
    zeros = torch.randint(0, 16, (case.n, groups), dtype=torch.uint8, generator=generator) if case.has_zero_points else None
    return q, scales, zeros


@pytest.mark.parametrize("case", cases(), ids=str)
def test_w4a8(probe: Probe, levels: tuple[str, ...], case: Case) -> None:
    generator, x, bias = random(case)
    q, scales, zeros = four_bit(case, generator)
    plain = ask(probe, "q4", "portable", case, (q, scales, zeros), x, bias)
    want = reference.w4a8(x, q, scales, zeros, case.group, bias)
    magnitude = reference.with_bias(x.double().abs() @ reference.dequantize(q, scales, zeros, case.group).abs().T,
                                    None if bias is None else bias.abs())  # fmt: skip
    assert_within(plain, want, 1.1 * magnitude, case, 2 * case.k / case.group + 4)
    for level in levels[1:]:
        assert torch.equal(plain, ask(probe, "q4", level, case, (q, scales, zeros), x, bias)), level


@pytest.mark.parametrize("case", cases(), ids=str)
def test_w8a8(probe: Probe, levels: tuple[str, ...], case: Case) -> None:
    generator, x, bias = random(case)
    q = torch.randint(-127, 128, (case.n, case.k), dtype=torch.int8, generator=generator)
    scales = torch.rand(case.n, generator=generator) * 0.01 + 0.001
    plain = ask(probe, "q8", "portable", case, (q, scales), x, bias)
    want = reference.w8a8(x, q, scales, case.group, bias)
    magnitude = reference.with_bias((x.double().abs() @ q.double().abs().T) * scales.double(), None if bias is None else bias.abs())
    assert_within(plain, want, 1.1 * magnitude, case, 2 * case.k / case.group + 4)
    for level in levels[1:]:
        assert torch.equal(plain, ask(probe, "q8", level, case, (q, scales), x, bias)), level


@pytest.mark.parametrize("case", cases(), ids=str)
def test_w4a16_rounds_no_activation(probe: Probe, levels: tuple[str, ...], case: Case) -> None:
    generator, x, bias = random(case)
    q, scales, zeros = four_bit(case, generator)
    weight = reference.dequantize(q, scales, zeros, case.group)
    want = reference.matmul(x, weight, bias)
    magnitude = reference.with_bias(x.double().abs() @ weight.abs().T, None if bias is None else bias.abs())
    # Two bfloat16 parts hold 16 digits of a float32, whose rounding is 2^7 single-precision ones.
    roundings = case.k + 4 + (2**8 if case.x_type == torch.float32 else 0)
    for level in levels:
        assert_within(ask(probe, "q4_exact", level, case, (q, scales, zeros), x, bias), want, magnitude, case, roundings)


@pytest.mark.parametrize("case", cases(), ids=str)
def test_bf16(probe: Probe, levels: tuple[str, ...], case: Case) -> None:
    generator, x, bias = random(case)
    weight = torch.randn(case.n, case.k, generator=generator).bfloat16()
    want = reference.matmul(x, weight, bias)
    magnitude = reference.with_bias(x.double().abs() @ weight.double().abs().T, None if bias is None else bias.abs())
    roundings = case.k + 4 + (2**8 if case.x_type == torch.float32 else 0)
    for level in levels:
        assert_within(ask(probe, "bf16", level, case, (weight,), x, bias), want, magnitude, case, roundings)


def test_a_row_does_not_depend_on_its_batch(probe: Probe, levels: tuple[str, ...]) -> None:
    case = Case(67, 80, 256, 64, torch.bfloat16, has_zero_points=True, has_bias=True, threads=2)
    generator, x, bias = random(case)
    weights = four_bit(case, generator)
    whole = ask(probe, "q4", levels[-1], case, weights, x, bias)
    for m in (1, 3, 4, 31, 32):
        part = ask(probe, "q4", levels[-1], Case(m, 80, 256, 64, torch.bfloat16), weights, x[:m], bias)
        assert torch.equal(part, whole[:m]), m


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_not_finite_stays_in_its_row(probe: Probe, levels: tuple[str, ...], bad: float) -> None:
    case = Case(9, 32, 128, 64, torch.float32)
    generator, x, _ = random(case)
    weights = four_bit(case, generator)
    good = [ask(probe, "q4", level, case, weights, x, None) for level in levels]
    x[4, 7] = bad
    for level, want in zip(levels, good, strict=True):
        got = ask(probe, "q4", level, case, weights, x, None)
        rest = [row for row in range(case.m) if row != 4]
        assert torch.equal(got[rest], want[rest])
        assert not got[4].isfinite().any()


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_results_of_every_size_are_rounded_to_the_nearest(probe: Probe, levels: tuple[str, ...], dtype: torch.dtype) -> None:
    """Scales of all bits make results of all bits: too large and too small ones, infinities and NaNs."""
    n, k = 4001, 32
    bits = torch.randint(-(2**31), 2**31, (n,), generator=torch.Generator().manual_seed(0)).int()
    bits[::3] = bits[::3] & 0x7FFFFFF | 0x30000000  # what float16 has no or few digits for
    bits[1::3] = bits[1::3] & 0xFFFF | 0x44FF0000  # its largest numbers, and a little more
    scales = bits.view(torch.float32)
    weights, x = (torch.ones(n, k, dtype=torch.int8), scales), torch.ones(1, k)
    for level in levels:
        wide = ask(probe, "q8", level, Case(1, n, k, k, torch.float32), weights, x, None)
        got = ask(probe, "q8", level, Case(1, n, k, k, dtype), weights, x.to(dtype), None)
        torch.testing.assert_close(got, wide.to(dtype), rtol=0, atol=0, equal_nan=True)
        assert got.isnan().any()
        assert got.isinf().any()
