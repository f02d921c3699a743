"""The right level is chosen on each CPU, and none that it lacks."""

import platform
import re
import shutil
import subprocess
from itertools import takewhile
from pathlib import Path

import pytest
import torch

from tests.native.probe import Machine, Probe, ProbeError

EVERY = ("portable", "neon", "neon_dotprod", "neon_i8mm", "neon_bf16", "avx2", "avx512vnni", "avx512bf16")
OPS = ("q4", "q8", "q4_exact", "bf16")
# matmul_<dst>_<lhs>_<rhs>p<nr>x<kr>_<mr>x<nr>_<level>: equal "p" parts share packed weights.
GRAMMAR = re.compile(r"matmul_f32_(qs8|bf16)_(qs4|qs8|bf16)p16x[24]_\d+x\d+_(" + "|".join(EVERY) + ")")
# What Linux calls the features that a level needs beyond those of the one before.
FEATURES = {
    "x86_64": {
        "avx2": {"avx2", "fma", "f16c"},
        "avx512vnni": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"},
        "avx512bf16": {"avx512_bf16"},
    },
    "aarch64": {"neon": {"asimd"}, "neon_dotprod": {"asimddp"}, "neon_i8mm": {"i8mm"}, "neon_bf16": {"bf16"}},
}


def best_of_this_cpu() -> str:
    found = re.search(r"^(?:flags|Features)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    assert found
    levels = FEATURES[platform.machine()]
    return ["portable", *takewhile(lambda level: levels[level] <= set(found[1].split()), levels)][-1]


def test_the_best_level_of_the_cpu_is_found(machine: Machine, probe: Probe) -> None:
    assert probe.ask("isa", isa="")[1] == (machine.best or best_of_this_cpu())


@pytest.mark.skipif(platform.machine() != "x86_64" or not shutil.which("qemu-x86_64-static"), reason="needs QEMU, on x86-64")
def test_a_cpu_with_nothing_but_the_baseline_runs_the_plain_kernels() -> None:
    command = ["qemu-x86_64-static", "-cpu", "core2duo", *Machine("host", "", ()).command()]
    with Probe(command) as probe:
        assert probe.ask("choose", isa="", op="q4", m=1)[1].endswith("_portable")
        assert probe.ask("argmax", (torch.ones(20),), isa="", rows=1, n=20, type=0, stride=20) == (bytes(8), "portable")


@pytest.mark.skipif(platform.machine() != "x86_64" or not shutil.which("qemu-x86_64-static"), reason="needs QEMU, on x86-64")
def test_a_cpu_without_avx512_runs_what_there_is_for_avx2() -> None:
    command = ["qemu-x86_64-static", "-cpu", "Haswell", *Machine("host", "", ()).command()]
    with Probe(command) as probe:
        assert probe.ask("isa", isa="")[1] == "avx2"
        assert probe.ask("choose", isa="", op="q8", m=1)[1].endswith("_avx2")
        assert probe.ask("choose", isa="", op="q4", m=1)[1].endswith("_portable")


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


def test_the_file_of_a_level_leaves_nothing_that_runs_elsewhere(machine: Machine, probe: Probe) -> None:
    """Neither code that runs when it is loaded, nor a copy of an inline function that the linker may choose for everybody."""
    objects = [path for path in Path(probe.command[-1]).parent.rglob("*.o") if re.search(r"_(avx\w+|neon\w*)\.", path.name)]
    assert len(objects) > 3
    nm = "aarch64-linux-gnu-nm" if machine.qemu_cpu else "nm"
    symbols = subprocess.run([nm, "--demangle", *objects], capture_output=True, text=True, check=True, timeout=60).stdout
    assert not re.findall(r"^\w* *[WVu] .*|.*_GLOBAL__sub_I.*", symbols, re.MULTILINE)
