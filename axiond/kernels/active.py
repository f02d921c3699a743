"""
Which kernels run in this process, and why: recorded layer by layer while a model loads, and kept where the daemon reads it.

    python -m axiond.kernels.active     what this CPU would use
"""

import contextlib
import importlib
import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from axiond.kernels.settings import FORCE_ISA, REPORT, Isa

FOLDER = "AXIOND_ENGINE"
DECODE_ROWS, PREFILL_ROWS = 1, 128
# What an operation is called in reports, and in the native module.
OPS = {"w4a8": "q4", "w4a16": "q4_exact", "lm_head int8": "q8", "lm_head int4": "q4", "bf16": "bf16"}

# Below vLLM's own logger, so that its settings apply.
_logger = logging.getLogger("vllm.axiond")
_layers: Counter[str] = Counter()
_left: Counter[tuple[str, str]] = Counter()
_problems: list[str] = []
_facts: dict[str, str] = {}
_postponing = 0
_writing = threading.Lock()


@cache
def native() -> ModuleType | None:
    """
    Import `axiond.kernels.ops` and with it the native module; None if that fails, which is told once and reported.

    Raises:
        ValueError: AXIOND_FORCE_ISA names what this CPU lacks.
    """
    try:
        ops = importlib.import_module("axiond.kernels.ops")
    except (ImportError, OSError) as exc:
        not_used("could not be loaded", str(exc))
        return None
    ops._native.isa()
    return ops


def not_used(problem: str, detail: str) -> None:
    """Record why nothing of this package runs."""
    _problems.append(f"axiond's kernels {problem}, vLLM's own are used: {detail}")
    _logger.warning(_problems[-1])
    _write()


def took(op: str) -> None:
    """Record that a layer runs on axiond's kernels; *op* is a key of `OPS`, or the name of something else."""
    if op not in _layers:
        _logger.info("axiond: %s runs on %s", op, _op(op, 0).get("isa") or "axiond's kernels")
    _layers[op] += 1
    _write()


def left(what: str, reason: str) -> None:
    """Record that a layer is left to vLLM."""
    if (what, reason) not in _left:
        _logger.info("axiond: %s left to vLLM: %s", what, reason)
    _left[what, reason] += 1
    _write()


def say(text: str) -> None:
    _logger.warning("axiond: %s", text)


def tell(**facts: str) -> None:
    """Record how the model is served: fields of `axiond.report.KernelsReport`."""
    _facts.update(facts)
    _write()


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """Write the report once, at the end: a model has hundreds of layers."""
    global _postponing
    _postponing += 1
    try:
        yield
    finally:
        _postponing -= 1
        _write()


def is_better_left(op: str) -> bool:
    """Whether vLLM, where it has a kernel at all, has a better one: ours would be the plain one, and nobody insists on it."""
    ops = native()
    return ops is None or (_isa(ops._native.kernel_for(OPS[op], DECODE_ROWS)) == "portable" and not os.environ.get(FORCE_ISA))


def report() -> dict[str, Any]:
    """What runs, as `axiond.report.KernelsReport` reads it."""
    return {
        "problem": "; ".join(_problems),
        **_facts,
        "ops": [_op(op, layers) for op, layers in _layers.items()],
        "left": [{"what": what, "reason": reason, "layers": layers} for (what, reason), layers in _left.items()],
    }


def _op(op: str, layers: int) -> dict[str, Any]:
    found: dict[str, Any] = {"op": op, "layers": layers}
    ops = native()
    if ops is None:
        return found
    levels = ops._native.isa()
    if op not in OPS:
        return found | {"isa": ops._native.small_isa(), "why": _why(levels)}
    decode, prefill = (ops._native.kernel_for(OPS[op], rows) for rows in (DECODE_ROWS, PREFILL_ROWS))
    return found | {"isa": _isa(decode), "why": _why(levels), "decode": decode, "prefill": prefill}


def _isa(kernel: str) -> str:
    return max((isa for isa in get_args(Isa) if kernel.endswith(f"_{isa}")), key=len, default="")


def _why(levels: dict[str, str]) -> str:
    if forced := os.environ.get(FORCE_ISA):
        return f"{FORCE_ISA} is {forced}; this CPU has {levels['detected']}"
    return f"best for this operation; this CPU has {levels['detected']}"


def _write() -> None:
    """Replace the report, if a daemon waits for one. Workers of other ranks have the same layers and are silent."""
    folder = os.environ.get(FOLDER)
    if not folder or _postponing or _rank():
        return
    path = Path(folder) / REPORT
    new = path.with_suffix(".new")
    # A report must not cost the engine its life.
    with _writing, contextlib.suppress(OSError):
        new.write_text(json.dumps(report()))
        new.replace(path)


def _rank() -> int:
    from torch import distributed

    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def main() -> None:
    if native() is None:
        raise SystemExit(_problems[0])
    for op in OPS:
        found = _op(op, 0)
        print(f"{op:<13} {found['isa']:<13} {found['decode']} ({DECODE_ROWS} row), {found['prefill']} ({PREFILL_ROWS} rows)")
    print(f"Why: {found['why']}.")


if __name__ == "__main__":
    main()
