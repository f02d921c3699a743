"""Layers without quantization: vLLM hands each to one function after loading, which is replaced here."""

from collections.abc import Callable
from functools import wraps

from torch.nn import Module
from vllm.model_executor.layers import utils
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from axiond.kernels import head, plain
from axiond.kernels.settings import Settings

Dispatch = Callable[[Module, bool], None]


def install(settings: Settings) -> None:
    """Have layers packed for axiond's kernels where they gain by it. Calling it again changes nothing."""
    stock: Dispatch = utils.dispatch_cpu_unquantized_gemm
    if not hasattr(stock, "__axiond__"):
        utils.dispatch_cpu_unquantized_gemm = around(stock, settings)


def around(stock: Dispatch, settings: Settings) -> Dispatch:
    @wraps(stock)
    def dispatch(layer: Module, remove_weight: bool) -> None:
        def linear() -> None:
            if settings.bf16 == "off" or not plain.take(layer, remove_weight):
                stock(layer, remove_weight)

        if layer.weight.is_meta or layer.weight.ndim != 2:
            stock(layer, remove_weight)
        elif isinstance(layer, VocabParallelEmbedding):
            head.take(layer, settings.lm_head, linear)
        else:
            linear()

    dispatch.__axiond__ = True  # type: ignore[attr-defined]
    return dispatch
