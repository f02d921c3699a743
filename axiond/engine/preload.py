"""
What the fork server holds for engines: vLLM, imported, and the few things in which a forked engine differs.

EngineCore and workers are forked too. libgomp has read its environment by then, so their threads are bound by hand.
"""

import atexit
import importlib
import multiprocessing
import operator
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from multiprocessing import util
from typing import Any, TypeVar

import setproctitle

from axiond.engine import server
from axiond.engine.paged import PagedLater
from axiond.engine.plugin import guard, guard_forked

# What vLLM imports late, when an engine starts: one that is not there is imported by nobody.
MODULES = (
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.entrypoints.anthropic.api_router",
    "vllm.entrypoints.cohere.api_router",
    "vllm.entrypoints.generate.api_router",
    "vllm.entrypoints.generate.generative_scoring.api_router",
    "vllm.entrypoints.generate.structured_decisions.api_router",
    "vllm.entrypoints.openai.chat_completion.api_router",
    "vllm.entrypoints.openai.completion.api_router",
    "vllm.entrypoints.openai.models.api_router",
    "vllm.entrypoints.openai.responses.api_router",
    "vllm.entrypoints.scale_out.derender.api_router",
    "vllm.entrypoints.scale_out.factories",
    "vllm.entrypoints.scale_out.render.api_router",
    "vllm.entrypoints.scale_out.token_in_token_out.api_router",
    "vllm.entrypoints.serve.elastic_ep.api_router",
    "vllm.entrypoints.serve.instrumentator.metrics",
    "vllm.entrypoints.serve.instrumentator.offline_docs",
    "vllm.entrypoints.serve.lora.api_router",
    "vllm.entrypoints.serve.profile.api_router",
    "vllm.entrypoints.serve.sagemaker.api_router",
    "vllm.entrypoints.serve.tokenize.api_router",
    "vllm.entrypoints.serve.utils.orca_metrics",
    "model_hosting_container_standards.sagemaker",
    "pydantic.v1",
    "uvicorn.lifespan.on",
    "uvicorn.protocols.http.auto",
    "uvicorn.protocols.websockets.auto",
    "vllm.distributed.elastic_ep.elastic_execute",
    "vllm.model_executor.layers.quantization.compressed_tensors.utils",
    "vllm.model_executor.layers.quantization.online",
    "vllm.model_executor.models.llama",
    "vllm.model_executor.models.qwen2",
    "vllm.model_executor.models.qwen3",
    "vllm.renderers.hf",
    "vllm.v1.attention.backends.cpu_attn",
    "vllm.v1.attention.backends.zentorch_sdpa",
    "vllm.v1.core.sched.scheduler",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.metrics.reader",
    "vllm.v1.pool.flash_maxsim",
    "vllm.v1.worker.cpu_worker",
    "axiond.kernels.decoder",
    "axiond.kernels.threads",
)
BOUND_TO = "AXIOND_CORES"

_T = TypeVar("_T")


def prepare() -> None:
    """Import everything, and start no thread."""
    for name in MODULES:
        with suppress(ImportError):
            importlib.import_module(name)
    # It looks for the place of this process's title, which a changed environment hides.
    setproctitle.getproctitle()
    from vllm import plugins
    from vllm.model_executor.models import registry
    from vllm.platforms.cpu import CpuPlatform
    from vllm.renderers import hf
    from vllm.v1.engine.core_client import MPClient
    from vllm.v1.worker import utils

    CpuPlatform.register_triton_kernel_overrides()
    CpuPlatform.register_triton_kernel_overrides = classmethod(lambda _: None)
    CpuPlatform.check_and_update_config = classmethod(_then_fork(vars(CpuPlatform)["check_and_update_config"].__func__))
    MPClient._start_mm_warmup = _then_render(MPClient._start_mm_warmup)
    hf.maybe_make_thread_pool = _without_copies(hf.maybe_make_thread_pool)
    registry._run_in_subprocess = run_here
    utils.torch = PagedLater(utils.torch)
    assert not plugins.plugins_loaded, "an engine's own settings decide what its plugins do"


def serve(argv: tuple[str, ...]) -> int:
    """Be an engine, from its API server's command line to its exit code."""
    guard()
    guard_forked()
    util.register_after_fork(bind_threads, operator.call)
    try:
        return server.serve(argv)
    finally:
        atexit._run_exitfuncs()


def bind_threads() -> None:
    """Do in a forked process what libgomp does in one that is loaded anew."""
    from axiond.kernels import threads

    if cores := os.environ.get(BOUND_TO, "").split():
        threads.bind(list(map(int, cores)))
    else:
        threads.set_count(len(os.sched_getaffinity(0)))


def run_here(inspect: Callable[[], _T]) -> _T:
    """Look at a model's class in this process, where vLLM starts another, so that it touches no GPU here."""
    return inspect()


def _then_fork(stock: Callable[[type, Any], None]) -> Callable[[type, Any], None]:
    """vLLM's CPU platform wants processes spawned, each time it looks at a configuration."""

    @wraps(stock)
    def check_and_update_config(cls: type, config: Any) -> None:
        stock(cls, config)
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = multiprocessing.get_context("fork").get_start_method()

    return check_and_update_config


def _then_render(stock: Callable[[Any], None]) -> Callable[[Any], None]:
    """While EngineCore, which has just been forked, loads the model, have the API server render a first prompt."""

    @wraps(stock)
    def start_warm_up(client: Any) -> None:
        from vllm.renderers.params import ChatParams

        stock(client)
        if client._renderer is not None:
            threading.Thread(target=client._renderer.warmup, args=(ChatParams(),), daemon=True).start()

    return start_warm_up


def _without_copies(stock: Callable[..., _T]) -> Callable[..., _T]:
    """Copy a tokenizer for each thread when the thread needs it, and not before EngineCore can be forked."""

    @wraps(stock)
    def maybe_make_thread_pool(tokenizer: Any, copies: int = 0) -> _T:
        return stock(tokenizer, 0)

    return maybe_make_thread_pool
