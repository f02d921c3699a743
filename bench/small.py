"""
The small operations in microseconds a call from Python: plain torch, vLLM's C++ where there is one, and axiond's.

Each cell is the quickest call of many rounds that visit the operations of a line in turn, so that a neighbour on the
machine disturbs none of them more than the others. `python bench/small.py --write` makes `bench/results/small.md`.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from vllm.platforms import current_platform

sys.path.insert(0, str(Path(__file__).parents[1]))
from axiond.kernels import small
from bench.machine import describe

RESULT = Path(__file__).parent / "results" / "small.md"
COLUMNS = ("torch", "vLLM's C++", "axiond")
ROWS = (1, 16, 64)
ROUNDS, ROUND_S, TOO_LONG_S = 30, 0.003, 3.0
Calls = Mapping[str, Callable[[], object]]


def torch_add_norm(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """vLLM's own norm in eager mode."""
    total = x.float() + residual.float()
    normed = total * torch.rsqrt(total.square().mean(-1, keepdim=True) + 1e-6)
    return normed.to(weight.dtype) * weight, total.to(x.dtype)


def operations() -> Iterator[tuple[str, Calls]]:
    c = torch.ops._C
    for n in (576, 1536, 3072):
        for rows in ROWS:
            x, residual, weight = torch.randn(rows, n).bfloat16(), torch.randn(rows, n).bfloat16(), torch.randn(n).bfloat16()
            yield (
                f"add and RMSNorm, {rows} x {n}",
                {
                    "torch": lambda x=x, r=residual, w=weight: torch_add_norm(x, r, w),
                    "vLLM's C++": lambda x=x, r=residual, w=weight: c.fused_add_rms_norm(x, r, w, 1e-6),
                    "axiond": lambda x=x, r=residual, w=weight: small.add_rms_norm_(x, r, w, 1e-6),
                },
            )
    for n in (1536, 8960):
        for rows in ROWS:
            x, out = torch.randn(rows, 2 * n).bfloat16(), torch.empty(rows, n).bfloat16()
            yield (
                f"SwiGLU, {rows} x {n}",
                {
                    "torch": lambda x=x, n=n: functional.silu(x[..., :n]) * x[..., n:],
                    "vLLM's C++": lambda x=x, out=out: c.silu_and_mul(out, x),
                    "axiond": lambda x=x: small.gate(x, small.SILU),
                },
            )
            yield (
                f"GeGLU (tanh), {rows} x {n}",
                {
                    "torch": lambda x=x, n=n: functional.gelu(x[..., :n], approximate="tanh") * x[..., n:],
                    "vLLM's C++": lambda x=x, out=out: c.gelu_tanh_and_mul(out, x),
                    "axiond": lambda x=x: small.gate(x, small.GELU_TANH),
                },
            )
    for style, rows in ((style, rows) for style in ("halves", "interleaved") for rows in ROWS):
        q, k, _ = torch.randn(rows, 16 * 128).bfloat16().split([12 * 128, 2 * 128, 2 * 128], 1)
        positions, cos_sin, is_neox = torch.arange(rows), torch.randn(rows, 128).bfloat16(), style == "halves"
        yield (
            f"rotary ({style}), {rows} x 14 x 128",
            {
                "vLLM's C++": lambda p=positions, q=q, k=k, cs=cos_sin, neox=is_neox: c.rotary_embedding(p, q, k, 128, cs, neox),
                "axiond": lambda p=positions, q=q, k=k, cs=cos_sin, neox=is_neox: small.rotary_(p, q, k, 128, cs, neox),
            },
        )
    for rows in (1, 16):
        yield from of_vocabulary(torch.randn(rows, 151936) * 3)


def of_vocabulary(x: Tensor) -> Iterator[tuple[str, Calls]]:
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch as stock

    size, (k, p) = f"{x.shape[0]} x {x.shape[1]}", (torch.full((len(x),), 20), torch.full((len(x),), 0.8))
    yield f"softmax, {size}", {"torch": lambda: x.softmax(1), "axiond": lambda: small.softmax(x)}
    yield (
        f"argmax, {size}",
        {"torch": lambda: x.argmax(1), "vLLM's C++": lambda: torch.ops._C.greedy_argmax(x), "axiond": lambda: small.argmax(x)},
    )
    # Both change what they are given, so both are given a copy.
    yield f"top-p, {size}", {"torch": lambda: stock(x.clone(), None, p, True), "axiond": lambda: small.top_k_top_p_(x.clone(), None, p)}
    yield f"top-k and top-p, {size}", {"torch": lambda: stock(x.clone(), k, p, True), "axiond": lambda: small.top_k_top_p_(x.clone(), k, p)}


def microseconds(calls: Calls) -> dict[str, float]:
    best = dict.fromkeys(calls, float("inf"))
    start = time.perf_counter()
    for _ in range(ROUNDS):
        for name, call in calls.items():
            best[name] = min(best[name], once(call))
        if time.perf_counter() - start > TOO_LONG_S:
            break
    return best


def once(call: Callable[[], object]) -> float:
    best, end = float("inf"), time.perf_counter() + ROUND_S
    while (start := time.perf_counter()) < end:
        call()
        best = min(best, time.perf_counter() - start)
    return best * 1e6


def table() -> Iterator[str]:
    machine = describe()
    yield f"{machine['date']}, {machine['cpu']} ({machine['features']}), {torch.get_num_threads()} threads."
    yield ""
    yield f"| µs a call, bfloat16 (sampling: float32) | {' | '.join(COLUMNS)} |"
    yield "|---|" + "---:|" * len(COLUMNS)
    for name, calls in operations():
        found = microseconds(calls)
        yield f"| {name} | {' | '.join(f'{found[column]:.1f}' if column in found else '' for column in COLUMNS)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    is_written = parser.parse_args().write
    current_platform.import_kernels()
    torch.manual_seed(0)
    lines = []
    with torch.inference_mode():
        for line in table():
            print(line, flush=True)
            lines.append(line)
    if is_written:
        RESULT.write_text(f"# Small operations\n\n{(__doc__ or '').strip()}\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
