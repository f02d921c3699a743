"""
Where an engine's memory comes from, when vLLM has had its say.

vLLM binds its worker to the node of its first CPU, and moves what it holds there. An engine on several nodes would have the
memory of one, and be killed when that is used up.
"""

import json
import os
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any

from axiond.kernels.imports import after_import
from axiond.numa import prefer_memory

ENGINE = "AXIOND_ENGINE"


def plan_path() -> Path:
    """The file that says where this process's engine runs; of one that axiond did not start, there is none."""
    return Path(os.environ.get(ENGINE, "/nonexistent")) / "cores"


def prefer(nodes: list[int]) -> None:
    """Take memory from *nodes* if there is a choice."""
    with suppress(OSError):
        if nodes:
            prefer_memory(nodes)


def install() -> None:
    """Calling it again changes nothing."""
    after_import("vllm.v1.worker.cpu_worker", _after_init)


def _after_init() -> None:
    from vllm.v1.worker.cpu_worker import CPUWorker

    stock = CPUWorker.__init__
    if hasattr(stock, "__wrapped__"):
        return

    @wraps(stock)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        # Of several workers each is best off near its own cores, as vLLM has it.
        if self.parallel_config.world_size_across_dp == 1:
            with suppress(OSError, ValueError):
                prefer(json.loads(plan_path().read_bytes())["nodes"])

    CPUWorker.__init__ = init
