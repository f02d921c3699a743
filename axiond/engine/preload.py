"""
What the fork server holds for engines: vLLM, imported, and the few things in which a forked engine differs.

EngineCore and workers are forked too. libgomp has read its environment by then, so their threads are bound by hand.
"""

import atexit
import importlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing import util
from typing import Any

import setproctitle

from axiond.engine import server
from axiond.engine.plugin import guard, guard_again

MODULES = (
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
    "axiond.kernels.fused",
    "axiond.kernels.linear",
)
BOUND_TO = "GOMP_CPU_AFFINITY"


class _Forked:
    """Something for multiprocessing to tell a child about."""


_forked = _Forked()


def prepare() -> None:
    """Import everything, and start no thread."""
    for name in MODULES:
        importlib.import_module(name)
    server.vllm_parser()
    # It looks for the place of this process's title, which a changed environment hides.
    setproctitle.getproctitle()
    fork_processes()


def serve(argv: tuple[str, ...]) -> int:
    """Be an engine, from its API server's command line to its exit code."""
    guard()
    util.register_after_fork(_forked, begin_child)
    try:
        return server.serve(argv)
    finally:
        atexit._run_exitfuncs()


def begin_child(_: object) -> None:
    """In a process that was forked from an engine's: what it would have done when it was spawned."""
    # What is written there is heard by the parent.
    signal.set_wakeup_fd(-1)
    guard_again()
    from axiond.kernels import threads

    cores = [int(core) for core in os.environ.get(BOUND_TO, "").split()]
    if cores:
        threads.bind(cores)
    else:
        threads.set_count(len(os.sched_getaffinity(0)))


def fork_processes() -> None:
    """vLLM's CPU platform wants processes spawned, each time it looks at a configuration."""
    from vllm.platforms.cpu import CpuPlatform

    stock: Callable[[type, Any], None] = vars(CpuPlatform)["check_and_update_config"].__func__

    def check_and_update_config(cls: type, config: Any) -> None:
        stock(cls, config)
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = multiprocessing.get_context("fork").get_start_method()

    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)
