"""The right level is chosen on each CPU, and none that it lacks."""

import re

import pytest

from tests.native.probe import Machine, Probe, ProbeError

EVERY = ("portable", "neon", "neon_dotprod", "neon_i8mm", "neon_bf16", "avx512vnni", "avx512bf16")
OPS = ("q4", "q8", "q4_exact", "bf16")
# matmul_<dst>_<lhs>_<rhs>p<nr>x<kr>_<mr>x<nr>_<level>: equal "p" parts share packed weights.
GRAMMAR = re.compile(r"matmul_f32_(qs8|bf16)_(qs4|qs8|bf16)p16x[24]_\d+x\d+_(" + "|".join(EVERY) + ")")


def test_the_best_level_of_the_cpu_is_found(machine: Machine, probe: Probe) -> None:
    assert probe.ask("isa", isa="")[1] == (machine.best or probe.ask("isa", isa="")[1])


def test_each_level_of_the_cpu_can_be_forced(probe: Probe, levels: tuple[str, ...]) -> None:
    assert [probe.ask("isa", isa=level)[1] for level in levels] == list(levels)


def test_a_level_that_the_cpu_lacks_is_refused_by_name(probe: Probe, levels: tuple[str, ...]) -> None:
    for level in set(EVERY) - set(levels):
        with pytest.raises(ProbeError, match=f"this CPU has {levels[-1]} and not {level}"):
            probe.ask("isa", isa=level)


def test_an_unknown_level_is_refused_with_the_known_ones(probe: Probe) -> None:
    with pytest.raises(ProbeError, match="there is no such level; there are portable, neon"):
        probe.ask("isa", isa="sse9")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("m", [1, 2, 3, 4, 8, 31, 32, 64, 1000])
def test_a_chosen_kernel_is_of_a_level_in_force_and_is_named_after_what_it_does(
    probe: Probe, levels: tuple[str, ...], op: str, m: int
) -> None:
    for index, level in enumerate(levels):
        name = probe.ask("choose", isa=level, op=op, m=m)[1]
        found = GRAMMAR.fullmatch(name)
        assert found, name
        assert found[3] in levels[: index + 1]
