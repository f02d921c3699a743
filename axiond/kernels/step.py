"""What axiond changes in vLLM's decode step."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from vllm.config import CompilationMode, VllmConfig
from vllm.platforms.cpu import CpuPlatform

from axiond.kernels import active, executor
from axiond.kernels.imports import after_import
from axiond.kernels.settings import Settings


def install(settings: Settings) -> None:
    """Patch this process. Calling it again changes nothing."""
    patch(CpuPlatform, "check_and_update_config", one_process)
    if settings.fused:
        after_import("vllm.v1.worker.cpu_model_runner", change_runner)


def change_runner() -> None:
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    patch(CPUModelRunner, "load_model", then_prepare_layers)
    patch(GPUModelRunner, "reload_weights", then_prepare_layers)


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


def then_prepare_layers(stock: Callable[..., None]) -> Callable[..., None]:
    """Once a model has its weights, have its decoder layers run as one function each; torch.compile would do it in its own way."""

    def load(runner: Any, *args: Any, **kwargs: Any) -> None:
        with active.postponed():
            stock(runner, *args, **kwargs)
            config = runner.vllm_config
            if config.compilation_config.mode == CompilationMode.NONE and config.kv_transfer_config is None and active.native():
                # It needs the native module and vLLM's models.
                from axiond.kernels import decoder

                decoder.install()
                decoder.prepare(runner.model, runner.model_config.dtype)

    return load
