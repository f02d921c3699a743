"""What axiond changes in vLLM's decode step. Written for the version below: in any other nothing is changed."""

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any

import vllm
from vllm.config import VllmConfig
from vllm.platforms.cpu import CpuPlatform

from axiond.kernels import executor

WRITTEN_FOR = "0.32."
_log = logging.getLogger(__name__)


def install() -> None:
    """Patch this process. Calling it again changes nothing."""
    if not vllm.__version__.startswith(WRITTEN_FOR):
        _log.warning("axiond speeds up the decode step of vLLM %sx, this is %s: it runs as it is", WRITTEN_FOR, vllm.__version__)
        return
    patch(CpuPlatform, "check_and_update_config", one_process)


def patch(owner: Any, name: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace a function of *owner*, unless that was done before."""
    stock = vars(owner)[name]
    is_of_class = isinstance(stock, classmethod)
    function = stock.__func__ if is_of_class else stock
    if not hasattr(function, "__axiond__"):
        ours = wraps(function)(around(function))
        ours.__axiond__ = True  # type: ignore[attr-defined]
        setattr(owner, name, classmethod(ours) if is_of_class else ours)


def one_process(stock: Callable[[type[CpuPlatform], VllmConfig], None]) -> Callable[[type[CpuPlatform], VllmConfig], None]:
    """Run the worker in EngineCore where vLLM would have chosen so itself, had its CPU platform let it."""

    def check_and_update_config(cls: type[CpuPlatform], config: VllmConfig) -> None:
        is_one = config.parallel_config.distributed_executor_backend == "uni"
        stock(cls, config)
        if is_one and config.parallel_config.distributed_executor_backend == "mp":
            executor.claim(config)

    return check_and_update_config
