"""Which CPUs for ARM vLLM's wheel runs on, and what those are told on which it does not."""

import pytest

from axiond.kernels.baseline import BF16, FP16, I8MM, problem

NEOVERSE_V2 = (FP16, I8MM | BF16)
NEOVERSE_N1 = (FP16, 0)
CORTEX_A53 = (0, 0)


@pytest.mark.parametrize(
    ("cpu", "dtype"),
    [(NEOVERSE_V2, "bfloat16"), (NEOVERSE_V2, "float32"), (NEOVERSE_V2, "float16"), (NEOVERSE_N1, "float16")],
)
def test_nothing_is_said_where_it_works(cpu: tuple[int, int], dtype: str) -> None:
    assert problem(dtype, *cpu) is None


@pytest.mark.parametrize(
    ("cpu", "dtype", "advice"),
    [
        pytest.param(NEOVERSE_N1, "bfloat16", 'for bfloat16: set dtype to "float16"', id="bfloat16"),
        pytest.param(NEOVERSE_N1, "float32", 'for float32: set dtype to "float16"', id="float32"),
        pytest.param((FP16, I8MM), "bfloat16", 'set dtype to "float16"', id="i8mm without bf16"),
        pytest.param(CORTEX_A53, "float16", "vLLM has to be compiled on this machine", id="no fp16"),
    ],
)
def test_what_dies_is_refused_with_advice(cpu: tuple[int, int], dtype: str, advice: str) -> None:
    assert advice in (problem(dtype, *cpu) or "")
