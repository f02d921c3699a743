"""
Model the NEON micro-kernels' speed on a machine that has no ARM core. Every figure is modelled, none is measured.

    python -m bench.neon_model              all kernels; writes bench/results/neon_model.md; exits 1 below a target

Each kernel runs once under qemu-aarch64, where a plugin writes down every instruction: that gives instructions per multiply-add
(MAC), exactly. llvm-mca 19 then says how many cycles a core needs for that very sequence, with unpacking, scales, zero points and
all other epilogues in it; and for the hottest loop of it alone. It knows the core's units and latencies and foretells every
branch; it knows no cache, no memory and no TLB, so "B/cycle" is what the core could take if memory could give it. It charges 100
cycles for any call, having no idea what is called; the callee is in the sequence here, so calls and returns are plain jumps. The page
shows what both targets would be with that charge, and at other sizes.

Needs aarch64-linux-gnu-g++, gcc, cmake and ninja; fetches qemu-user and llvm-19 with apt-get if they are not installed.
"""

import re
import shutil
import struct
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from bench.neon.tools import Tools, build

RESULT = Path(__file__).parent / "results" / "neon_model.md"
V2, N1 = ("neoverse-v2", 8), ("neoverse-n1", 4)  # llvm's core, and how many instructions it really takes in a cycle
MACS = {"smmla": 32, "sdot": 16, "bfmmla": 16, "bfdot": 8, "smlal": 8, "smlal2": 8, "smull": 8, "smull2": 8, "fmla": 4}
PEAK = {"smmla": 128, "sdot": 64, "bfmmla": 64, "bfdot": 32, "smlal": 16, "fmla": 16}  # MACs a cycle on Neoverse V2
WEIGHT_BYTES = {"q4": 0.5, "q8": 1.0, "q4_exact": 0.5, "bf16": 2.0}
GEMV_TARGET, GEMM_TARGET = 15.0, 0.66

PREAMBLE = f"""# NEON micro-kernels, modelled

**Modelled, not measured.** What `python -m bench.neon_model` printed; its docstring says how, and what such a model leaves out. No ARM
core was used. One published GEMM reached 61 to 72 % of a Graviton4 core's peak where such a model says more.

Core: Neoverse V2 (`-mcpu=neoverse-v2 -dispatch=8`), for the levels without SMMLA also Neoverse N1 (`-dispatch=4`). MAC: one multiply-add.
"Peak" is of the kernel's own instruction: SMMLA 128 MAC/cycle on V2, SDOT and BFMMLA 64, BFDOT 32, SMLAL and FMLA 16. "Loop" is the
hottest loop alone, "whole" the call with everything. Weights have zero points; scales are float16.

Targets, both whole: decode (1 row, g128, SDOT) at least {GEMV_TARGET:.0f} B/cycle, prefill (128 rows, g128, SMMLA)
at least {GEMM_TARGET:.0%} of peak.
"""

KLEIDIAI = """
KleidiAI 1.30, from an earlier run of llvm-mca over its inner loops, not by this program; compare with "loop", not "whole".

| kernel | loop |
|---|---|
| GEMV 1x8x32, SDOT | 14.1 B/cycle |
| GEMM 4x8x32, SMMLA | 85 MAC/cycle, 66 % of peak |
"""


@dataclass(frozen=True)
class Case:
    """One call of a micro-kernel. *mac* is the instruction that does its work."""

    isa: str
    mac: str
    op: str
    rows: int
    group: int = 128
    panels: int = 1
    k: int = 1024

    @property
    def macs(self) -> int:
        return self.rows * self.panels * 16 * self.k


CASES = (
    *(Case("neon", "smlal", "q4", rows) for rows in (1, 4)),
    *(Case("neon", "smlal", "q8", rows) for rows in (1, 4)),
    Case("neon", "fmla", "bf16", 1),
    Case("neon", "fmla", "bf16", 4),
    Case("neon", "fmla", "q4_exact", 1),
    Case("neon", "fmla", "q4_exact", 32, k=256),
    *(Case("neon_dotprod", "sdot", "q4", 1, group, panels=2, k=4096) for group in (128, 64, 32)),
    *(Case("neon_dotprod", "sdot", "q4", rows) for rows in (2, 3, 4, 32)),
    Case("neon_dotprod", "sdot", "q8", 1, k=4096),
    Case("neon_dotprod", "sdot", "q8", 32),
    *(Case("neon_i8mm", "smmla", "q4", rows) for rows in (4, 8, 16, 32, 64, 128)),
    *(Case("neon_i8mm", "smmla", "q4", 128, group, k=512) for group in (64, 32)),
    *(Case("neon_i8mm", "smmla", "q8", rows) for rows in (8, 128)),
    *(Case("neon_bf16", "bfdot", "bf16", rows) for rows in (1, 4)),
    *(Case("neon_bf16", "bfmmla", "bf16", rows, k=512) for rows in (8, 128)),
    *(Case("neon_bf16", "bfmmla", "q4_exact", rows, k=512) for rows in (1, 8, 128)),
)


@dataclass(frozen=True)
class Result:
    """What one call costs, in instructions and in cycles."""

    case: Case
    kernel: str
    weight_bytes: int
    instructions: int
    loop_rate: float | None  # MACs a cycle
    cycles: float
    n1_cycles: float | None

    @property
    def rate(self) -> float:
        return self.case.macs / self.cycles

    @property
    def share(self) -> float:
        return self.rate / PEAK[self.case.mac]

    @property
    def bytes_per_cycle(self) -> float:
        return self.weight_bytes / self.cycles

    def row(self) -> str:
        case, peak = self.case, PEAK[self.case.mac]
        decode, loop = case.rows <= 4, self.loop_rate
        cells = (
            f"`{self.kernel}`", case.rows, case.group if case.op != "bf16" else "", f"{self.instructions / case.macs:.4f}",
            f"{loop:.1f} ({loop / peak:.0%})" if loop else "", f"{self.rate:.1f} (**{self.share:.0%}**)",
            f"{loop / case.rows * WEIGHT_BYTES[case.op]:.1f}" if decode and loop else "",
            f"**{self.bytes_per_cycle:.1f}**" if decode else "",
            f"{self.weight_bytes / self.n1_cycles:.1f}" if decode and self.n1_cycles else "",
        )  # fmt: skip
        return "| " + " | ".join(map(str, cells)) + " |"


class Listing:
    """The program's instructions by address, as llvm-mca reads them. With *costly_calls* it charges 100 cycles for each call."""

    def __init__(self, program: Path, costly_calls: bool = False) -> None:
        text = subprocess.run(
            ["aarch64-linux-gnu-objdump", "-d", "--no-show-raw-insn", program], capture_output=True, text=True, check=True
        ).stdout
        self.at = {
            int(place, 16): readable(line, costly_calls) for place, line in re.findall(r"^\s+([0-9a-f]+):\t(.*)$", text, re.MULTILINE)
        }


def readable(line: str, costly_calls: bool) -> str:
    """Take comments and symbols off a line of objdump. Where a jump goes is nothing to the model."""
    line = re.sub(r"\s*(//|<).*", "", line)
    name = line.split()[0]
    if costly_calls and name in ("bl", "blr"):
        return "bl #8"
    if name in ("bl", "blr", "br", "ret", "b"):
        return "b #8"
    if name.startswith("b.") or name in ("cbz", "cbnz", "tbz", "tbnz"):
        return re.sub(r"[0-9a-f]+$", "#8", line)
    return re.sub(r"[0-9a-f]+$", "#4096", line) if name in ("adr", "adrp") else line


def run(tools: Tools, case: Case) -> tuple[str, int, tuple[int, ...]]:
    """Run the kernel once; return its name, the bytes of weights it read, and the address of every instruction."""
    words = [case.isa, case.op, *map(str, (case.rows, case.panels, case.k, case.group))]
    to = tools.folder / "trace"
    done = tools.run(["qemu-aarch64", "-cpu", "max", "-plugin", str(tools.plugin), str(tools.program), *words], TRACE_TO=str(to))
    name, size = done.split()
    raw = to.read_bytes()
    return name, int(size), struct.unpack(f"<{len(raw) // 8}Q", raw)


def macs(lines: list[str]) -> int:
    return sum(MACS.get(line.split()[0], 0) for line in lines)


def hottest_loop(listing: Listing, trace: tuple[int, ...]) -> list[str]:
    """
    Find the straight run of instructions, ended by a jump back to its start, that multiplied most in the trace.

    Returns:
        Its lines; none if no such loop went round twice (a group of 32 is one round).
    """
    spent: Counter[tuple[int, int]] = Counter()
    start = 0
    for here, after in zip(range(len(trace)), trace[1:], strict=False):
        if after == trace[here] + 4:
            continue
        if trace[start] <= after <= trace[here]:
            spent[after, trace[here]] += 1
        start = here + 1
    loops = [([listing.at[place] for place in range(first, last + 4, 4)], rounds) for (first, last), rounds in spent.items()]
    return max(loops, key=lambda loop: macs(loop[0]) * loop[1], default=([], 0))[0]


def cycles(tools: Tools, core: tuple[str, int], lines: list[str], iterations: int = 1) -> float:
    source = tools.folder / "lines.s"
    source.write_text("\n".join(lines) + "\n")
    said = tools.run([
        "llvm-mca-19", "-mtriple=aarch64", f"-mcpu={core[0]}", f"-dispatch={core[1]}", f"-iterations={iterations}",
        "-instruction-info=0", "-resource-pressure=0", str(source),
    ])  # fmt: skip
    found = re.search(r"Total Cycles:\s+(\d+)", said)
    assert found, said
    return int(found[1]) / iterations


def model(tools: Tools, listing: Listing, case: Case) -> Result:
    name, size, trace = run(tools, case)
    whole, loop = [listing.at[place] for place in trace], hottest_loop(listing, trace)
    loop_rate = macs(loop) / cycles(tools, V2, loop, 1000) if macs(loop) else None
    n1 = cycles(tools, N1, whole) if case.isa in ("neon", "neon_dotprod") else None
    return Result(case, name, size, len(trace), loop_rate, cycles(tools, V2, whole), n1)


def targets(results: list[Result]) -> list[str]:
    """Say for each target what was reached."""
    by_case = {(r.case.isa, r.case.op, r.case.rows, r.case.group): r for r in results}
    gemv, gemm = by_case["neon_dotprod", "q4", 1, 128], by_case["neon_i8mm", "q4", 128, 128]
    return [
        f"{'reached' if gemv.bytes_per_cycle >= GEMV_TARGET else 'MISSED'}: decode {gemv.bytes_per_cycle:.2f} B/cycle (k = {gemv.case.k})",
        f"{'reached' if gemm.share >= GEMM_TARGET else 'MISSED'}: prefill {gemm.share:.1%} of SMMLA's peak (k = {gemm.case.k})",
    ]


def sensitivity(tools: Tools) -> list[str]:
    """Tabulate how the figures behind the targets move with the size, and with what a call is taken to cost."""
    listings = Listing(tools.program), Listing(tools.program, costly_calls=True)
    lines = ["", "What the targets' figures depend on:", "", "| | calls are jumps | calls cost 100 cycles |", "|---|---|---|"]
    for k in (1024, 2048, 4096):
        case = Case("neon_dotprod", "sdot", "q4", 1, panels=2, k=k)
        _, size, trace = run(tools, case)
        rates = [size / cycles(tools, V2, [listing.at[place] for place in trace]) for listing in listings]
        lines.append(f"| decode, 1 row, k = {k} | {rates[0]:.2f} B/cycle | {rates[1]:.2f} B/cycle |")
    for rows, k in ((32, 1024), (64, 1024), (128, 512), (128, 1024)):
        case = Case("neon_i8mm", "smmla", "q4", rows, k=k)
        _, _, trace = run(tools, case)
        rates = [case.macs / cycles(tools, V2, [listing.at[place] for place in trace]) / PEAK["smmla"] for listing in listings]
        lines.append(f"| prefill, {rows} rows, k = {k} | {rates[0]:.1%} of peak | {rates[1]:.1%} of peak |")
    return lines


def main() -> int:
    if missing := [name for name in ("aarch64-linux-gnu-g++", "gcc", "cmake", "ninja") if not shutil.which(name)]:
        print(f"{', '.join(missing)} not found", file=sys.stderr)
        return 2
    tools = build()
    listing = Listing(tools.program)
    head = ["kernel", "rows", "group", "instructions/MAC", "loop, MAC/cycle (peak)", "whole, MAC/cycle (peak)"]
    head += ["loop, B/cycle", "whole, B/cycle", "N1 whole, B/cycle"]
    lines = [PREAMBLE, "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    results = []
    for case in CASES:
        results.append(model(tools, listing, case))
        lines.append(results[-1].row())
        print(results[-1].row(), flush=True)
    said = targets(results)
    tail = [KLEIDIAI, *said, *sensitivity(tools)]
    print(*tail, sep="\n")
    RESULT.write_text("\n".join([*lines, *tail]) + "\n")
    return int(any(line.startswith("MISSED") for line in said))


if __name__ == "__main__":
    sys.exit(main())
