"""
Packed linear layers beside those of vLLM's wheel, and beside what the CPU can do at most.

Every cell is the best of many short rounds that visit all operations in turn, so that a neighbour on the machine
disturbs none of them more than the others; one thread is timed by the processor time it used. Weights are read from
memory, as in a model: each operation has as many copies as do not fit in the caches, and takes them in turn. The share in
brackets is of the time that the measured limits allow, the larger of weights' bytes / bandwidth and operations / peak
(of VNNI for int8 activations, else of BF16).

`python bench/kernels.py --write` makes `bench/results/kernels.md`, on an idle machine with AVX-512 VNNI and BF16.
"""

import argparse
import ctypes
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from axiond.kernels import _native, ops
from bench.machine import describe

RESULT = Path(__file__).parent / "results" / "kernels.md"
ROWS = (1, 2, 4, 8, 16, 32, 128, 512)
GROUP = 128
CACHES = 96 << 20  # more than the caches of one socket's share hold
ROUNDS, ROUND_S = 12, 0.01
TOO_LONG_S = 0.8  # then two calls have to do
TRIES = 40


@dataclass(frozen=True)
class Shape:
    name: str
    n: int
    k: int
    most_rows: int = 512


SHAPES = (
    Shape("Qwen2.5-1.5B qkv", 2048, 1536),
    Shape("Qwen2.5-1.5B out", 1536, 1536),
    Shape("Qwen2.5-1.5B gate and up", 17920, 1536),
    Shape("Qwen2.5-1.5B down", 1536, 8960),
    Shape("Qwen2.5-1.5B head", 151936, 1536, most_rows=32),
    Shape("larger than every cache", 28672, 4096, most_rows=128),
)

Call = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Operation:
    """One way to multiply: make(n, k) packs random weights, and returns how to call them."""

    name: str
    make: Callable[[int, int], Call]
    bytes_per_weight: float
    peak: str


@dataclass(frozen=True)
class Limits:
    threads: int
    vnni: float  # operations a second
    bf16: float
    read: float  # bytes a second


def random_q4(n: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randint(0, 16, (n, k), dtype=torch.uint8),
        (torch.rand(n, k // GROUP) * 0.1 + 0.01).half(),
        torch.randint(0, 16, (n, k // GROUP), dtype=torch.uint8),
    )


def ours_q4(n: int, k: int) -> Call:
    rhs = ops.pack_q4(*random_q4(n, k), GROUP)
    return lambda x: ops.linear(x, rhs)


def ours_q4_exact(n: int, k: int) -> Call:
    rhs = ops.pack_q4(*random_q4(n, k), GROUP)
    return lambda x: ops.linear(x, rhs, exact=True)


def ours_q8(n: int, k: int) -> Call:
    rhs = ops.pack_q8(torch.randint(-127, 128, (n, k), dtype=torch.int8), torch.rand(n) * 0.01, GROUP)
    return lambda x: ops.linear(x, rhs)


def ours_bf16(n: int, k: int) -> Call:
    rhs = ops.pack_bf16(torch.randn(n, k).bfloat16())
    return lambda x: ops.linear(x, rhs)


def onednn_bf16(n: int, k: int) -> Call:
    from vllm import _custom_ops as stock

    handler = stock.create_onednn_mm(torch.randn(n, k).bfloat16().t(), 32)
    return lambda x: stock.onednn_mm(handler, x, None)


def awq(n: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Words of AWQ's shapes. Their content does not matter for the time."""
    words = lambda rows, columns: torch.randint(-(2**31), 2**31, (rows, columns), dtype=torch.int64).int()
    return words(k, n // 8), words(k // GROUP, n // 8), torch.rand(k // GROUP, n).bfloat16() * 0.1


def stock_w4a8(n: int, k: int) -> Call:
    from vllm import _custom_ops as stock

    weight, zeros, scales = stock.convert_weight_packed_scale_zp(*awq(n, k), stock.CPUQuantAlgo.AWQ)
    return lambda x: stock.int4_scaled_mm_cpu(x=x, w=weight, w_zeros=zeros, w_scales=scales, bias=None)


def stock_w4a16(n: int, k: int) -> Call:
    from vllm import _custom_ops as stock

    weight, zeros, scales = awq(n, k)
    weight = weight.view(k, -1, 2).permute(1, 0, 2).reshape(-1, k * 2).contiguous()
    return lambda x: stock.cpu_gemm_wna16(x, weight, scales, zeros, None, 8, "vec")


FOUR_BITS = 0.5 + 4 / GROUP  # with a header of 64 bytes for 16 columns
OPERATIONS = (
    Operation("q4", ours_q4, FOUR_BITS, "vnni"),
    Operation("q4 exact", ours_q4_exact, FOUR_BITS, "bf16"),
    Operation("q8", ours_q8, 1, "vnni"),
    Operation("bf16", ours_bf16, 2, "bf16"),
    Operation("oneDNN bf16", onednn_bf16, 2, "bf16"),
    Operation("int4_scaled_mm_cpu", stock_w4a8, FOUR_BITS, "vnni"),
    Operation("cpu_gemm_wna16", stock_w4a16, FOUR_BITS, "bf16"),
)


def measure_limits(threads: int, memory: Tensor) -> Limits:
    """The best of several tries, with the same loop on each thread."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "peak.so"
        flags = ["-std=c++17", "-O3", "-shared", "-fPIC", *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl", "vnni", "bf16"))]
        subprocess.run(["g++", *flags, Path(__file__).with_name("peak.cc"), "-o", library], check=True)
        native = ctypes.CDLL(str(library))
    for function in (native.peak_vnni, native.peak_bf16, native.peak_read):
        function.restype = ctypes.c_double
    loops, share = ctypes.c_long(100_000), memory.numel() // threads // TRIES // 256 * 256
    turn = itertools.count()

    def read() -> float:
        return native.peak_read(ctypes.c_void_p(memory.data_ptr() + next(turn) % (threads * TRIES) * share), ctypes.c_long(share))  # type: ignore[no-any-return]

    with ThreadPoolExecutor(threads) as pool:

        def best(call: Callable[[], float]) -> float:
            rates = []
            for _ in range(TRIES):
                start = clock(threads)
                done = call() if threads == 1 else sum(pool.map(lambda _: call(), range(threads)))
                rates.append(done / (clock(threads) - start))
            return max(rates)

        return Limits(threads, best(lambda: native.peak_vnni(loops)), best(lambda: native.peak_bf16(loops)), best(read))


def clock(threads: int) -> float:
    return time.thread_time() if threads == 1 else time.perf_counter()


def time_once(calls: Iterator[Call], x: Tensor, times: int, threads: int) -> float:
    start = clock(threads)
    for call in itertools.islice(calls, times):
        call(x)
    return (clock(threads) - start) / times


def time_all(calls: Mapping[str, Iterator[Call]], x: Tensor, threads: int) -> dict[str, float]:
    """Seconds of one call, by operation."""
    best = {name: time_once(turn, x, 2, threads) for name, turn in calls.items()}
    for _ in range(ROUNDS):
        for name, turn in calls.items():
            if best[name] < TOO_LONG_S:
                best[name] = min(best[name], time_once(turn, x, max(1, int(ROUND_S / best[name])), threads))
    return best


def limit_s(operation: Operation, shape: Shape, m: int, limits: Limits) -> float:
    """The time that the machine needs at least."""
    peak = limits.vnni if operation.peak == "vnni" else limits.bf16
    return max(shape.n * shape.k * operation.bytes_per_weight / limits.read, 2 * m * shape.n * shape.k / peak)


def measure_shape(shape: Shape, all_limits: list[Limits]) -> Iterator[str]:
    copies = {o.name: max(1, round(CACHES / (shape.n * shape.k * o.bytes_per_weight))) for o in OPERATIONS}
    calls = {o.name: itertools.cycle([o.make(shape.n, shape.k) for _ in range(copies[o.name])]) for o in OPERATIONS}
    for limits in all_limits:
        torch.set_num_threads(limits.threads)
        rows = [m for m in ROWS if m <= shape.most_rows]
        times = {m: time_all(calls, torch.randn(m, shape.k).bfloat16(), limits.threads) for m in rows}
        yield f"\n### {shape.name}: n = {shape.n}, k = {shape.k}, {threads_text(limits.threads)}\n\n"
        yield "| µs, and share of the limit | " + " | ".join(f"m = {m}" for m in rows) + " |\n|---|" + "---:|" * len(rows) + "\n"
        for o in OPERATIONS:
            cells = [f"{times[m][o.name] * 1e6:,.0f} ({limit_s(o, shape, m, limits) / times[m][o.name]:.0%})" for m in rows]
            yield f"| {o.name} | " + " | ".join(cells) + " |\n"
        yield "\n" + "\n".join(summary(shape, times, limits)) + "\n"


def summary(shape: Shape, times: dict[int, dict[str, float]], limits: Limits) -> Iterator[str]:
    for o in OPERATIONS[:4]:
        rate = shape.n * shape.k * o.bytes_per_weight / times[1][o.name]
        most = max(m for m in times if m <= 128)
        speed = 2 * most * shape.n * shape.k / times[most][o.name]
        peak = limits.vnni if o.peak == "vnni" else limits.bf16
        yield (
            f"- {o.name}: {rate / 1e9:.1f} GB/s at m = 1, {rate / limits.read:.0%} of the bandwidth; "
            f"{speed / 1e9:,.0f} GOPS at m = {most}, {speed / peak:.0%} of the peak"
        )


def dispatch_us() -> tuple[float, float]:
    """One call of the smallest layer that there is, directly and through torch's dispatcher."""
    rhs = ops.pack_q4(torch.zeros(16, 32, dtype=torch.uint8), torch.ones(16, 1), None, 32)
    x = torch.randn(1, 32).bfloat16()
    direct = itertools.repeat(lambda x: ops.linear(x, rhs))
    dispatched = itertools.repeat(lambda x: torch.ops.axiond.linear(x, rhs.data, None, *rhs.arguments, False))
    best = [min(time_once(calls, x, 2000, 1) for _ in range(5)) * 1e6 for calls in (direct, dispatched)]
    return best[0], best[1]


def threads_text(threads: int) -> str:
    return "one thread" if threads == 1 else f"{threads} threads"


def report(shapes: tuple[Shape, ...], threads: list[int]) -> Iterator[str]:
    machine = describe()
    yield "# Packed linear layers\n\n"
    yield f"`python bench/kernels.py --write` on {machine['date']}: {machine['cpu']} ({machine['features']}), {machine['cores']} cores; "
    yield ", ".join(f"{name} {version}" for name, version in machine["versions"].items()) + ".\n\n"
    yield " ".join((__doc__ or "").split("\n\n")[1].split()) + f" q4 has groups of {GROUP} and zero points; activations are bfloat16.\n\n"
    memory = torch.ones(512 << 20, dtype=torch.uint8)
    all_limits = [measure_limits(count, memory) for count in threads]
    del memory
    for limits in all_limits:
        yield f"- {threads_text(limits.threads)}: VNNI {limits.vnni / 1e9:,.0f} GOPS, BF16 {limits.bf16 / 1e9:,.0f} GFLOPS, "
        yield f"reading {limits.read / 1e9:.1f} GB/s\n"
    torch.set_num_threads(1)
    direct, dispatched = dispatch_us()
    yield f"- a call of the smallest layer: {direct:.1f} µs from Python, {dispatched:.1f} µs through torch's dispatcher\n"
    for shape in shapes:
        yield from measure_shape(shape, all_limits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write bench/results/kernels.md")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", default="", help="part of a shape's name")
    arguments = parser.parse_args()
    if _native.isa()["detected"] != "avx512bf16":
        sys.exit(f"this compares kernels for AVX-512 VNNI and BF16, and this CPU has {_native.isa()['detected']}")
    lines = []
    for line in report(tuple(s for s in SHAPES if arguments.only in s.name), arguments.threads):
        print(line, end="", flush=True)
        lines.append(line)
    if arguments.write:
        RESULT.write_text("".join(lines))


if __name__ == "__main__":
    main()
