"""
One process for EngineCore and its worker, where vLLM starts two.

vLLM's CPU platform always puts the worker into a process of its own. EngineCore then spins for the worker's answer on a
core that the worker computes on, and every token crosses shared memory twice. Here EngineCore calls the worker.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm.config import VllmConfig
from vllm.utils.ompmultiprocessing import OMPProcessManager
from vllm.utils.system_utils import set_env_var
from vllm.v1.engine import utils
from vllm.v1.executor import Executor
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from axiond.kernels.memory import ENGINE, plan_path
from axiond.kernels.rebind import Follower

BACKEND = f"{__name__}.OneProcessExecutor"
BOUND_TO = "AXIOND_CORES"
SPIN_COUNT = "10000"

_environ: dict[str, str] = {}


def claim(config: VllmConfig) -> None:
    """
    Have EngineCore, which is yet to be spawned, run the worker too.

    Nothing changes where there is more than one worker or vLLM was told how to run it.
    """
    parallel = config.parallel_config
    if parallel.world_size_across_dp != 1 or parallel.nnodes != 1 or config.kv_transfer_config is not None:
        return
    manager = OMPProcessManager(config)
    if manager.skip_setup:
        return
    cores = manager.cpu_lists[0]
    _environ.clear()
    # libgomp reads its environment once, when EngineCore is loaded: the first core is for the main thread. It never forgets
    # what it read there, and an engine that the daemon may move is told its cores in another way.
    _environ["OMP_NUM_THREADS"] = str(len(cores))
    _environ[BOUND_TO if ENGINE in os.environ else "GOMP_CPU_AFFINITY"] = " ".join(map(str, cores))
    # A fraction of a millisecond, where libgomp's own is several: enough for what lies between two kernels. A thread that
    # spins for longer costs whoever shares its core more than waking it does: with six other processes on two cores a token
    # took 38 ms, and 95 with libgomp's; alone both take the same.
    _environ["GOMP_SPINCOUNT"] = os.environ.get("GOMP_SPINCOUNT", SPIN_COUNT)
    parallel.distributed_executor_backend = BACKEND
    utils._configure_uniproc_startup_threads = environment


@contextlib.contextmanager
def environment(executor_class: type[Executor], _: int) -> Iterator[None]:
    """Give EngineCore, which is started meanwhile, the environment that it shall have, and leave that of this process as it is."""
    with contextlib.ExitStack() as restored:
        for name, value in _environ.items() if executor_class is OneProcessExecutor else ():
            restored.enter_context(set_env_var(name, value))
        yield


class OneProcessExecutor(UniProcExecutor):  # type: ignore[misc]
    """Runs the worker in the calling thread."""

    def _init_executor(self) -> None:
        self._is_first_step, self._follower = True, Follower(plan_path())
        super()._init_executor()

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        if self._is_first_step:
            # By now all threads exist.
            self._is_first_step = False
            unbind_other_threads()
        self._follower.look()
        return super().execute_model(*args, **kwargs)


def unbind_other_threads() -> None:
    """Let the threads that were started by the main one, and so share its core, run wherever the parent may."""
    main, bound = os.getpid(), os.sched_getaffinity(0)
    everywhere = os.sched_getaffinity(os.getppid())
    for thread in (int(entry.name) for entry in Path("/proc/self/task").iterdir()):
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            if thread != main and os.sched_getaffinity(thread) == bound:
                os.sched_setaffinity(thread, everywhere)
