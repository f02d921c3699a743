"""How vLLM loads a model: with packed weights of an earlier start where there are any, and with dummy weights quickly."""

import gc
import os
from collections.abc import Callable
from pathlib import Path

import torch
import vllm
from torch.nn import Module, Parameter
from vllm.config import CompilationMode, ModelConfig, VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod, VocabParallelEmbedding
from vllm.model_executor.model_loader import dummy_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.platforms import current_platform

from axiond import __version__
from axiond.kernels import active, cache, dummy
from axiond.kernels.settings import PACKED, Settings
from axiond.kernels.step import patch

LARGE_BYTES = 1 << 20


def install(settings: Settings) -> None:
    """Patch this process. Calling it again changes nothing."""
    patch(BaseModelLoader, "load_model", lambda stock: in_session(stock, settings))
    patch(DefaultModelLoader, "load_weights", with_session)
    dummy_loader.initialize_single_dummy_weight = dummy.fill


def in_session(stock: Callable[..., Module], settings: Settings) -> Callable[..., Module]:
    def load_model(loader: BaseModelLoader, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str = "") -> Module:
        gc.freeze()  # vLLM collects garbage twice, half a second each: among all that it has imported there is none
        with active.postponed():
            if vllm_config.compilation_config.mode == CompilationMode.NONE:
                active.tell(mode="eager")
            with cache.session(new_session(loader, vllm_config, model_config, prefix, settings)):
                return stock(loader, vllm_config=vllm_config, model_config=model_config, prefix=prefix)

    return load_model


def with_session(stock: Callable[..., None]) -> Callable[..., None]:
    def load_weights(loader: DefaultModelLoader, model: Module, model_config: ModelConfig) -> None:
        found = cache.current()
        if found is None:
            stock(loader, model, model_config)
            return
        found.begin(model)
        stock(loader, model, model_config)
        found.tables(tables(model))

    return load_weights


def tables(model: Module) -> dict[str, Parameter]:
    """The weights of vocabularies: they are looked up in, so they stay as they are. Tied ones are one."""
    once = dict(model.named_parameters())
    return {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, VocabParallelEmbedding)
        and f"{name}.weight" in once
        and isinstance(module.quant_method, UnquantizedEmbeddingMethod)
        and module.weight.nbytes >= LARGE_BYTES
        and module.weight.is_contiguous()
    }


def new_session(
    loader: BaseModelLoader, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str, settings: Settings
) -> cache.Session | None:
    folder, model = os.environ.get(PACKED), Path(model_config.model)
    # The default loader's other ways, and other loaders, may do anything with a parameter.
    if not folder or type(loader) is not DefaultModelLoader or not model.is_dir() or (native := active.native()) is None:
        return None
    parallel = vllm_config.parallel_config
    factors = (
        __version__, vllm.__version__, settings.w4a8, settings.lm_head, settings.bf16, native._native.isa(),
        torch.cpu._is_amx_tile_supported(), current_platform.is_zen_cpu(), str(model_config.dtype), model_config.quantization,
        loader.load_config.load_format, repr(model_config.quantization_config),
        model_config.runner_type, model_config.convert_type, model_config.hf_config.to_json_string(use_diff=False),
        vllm_config.lora_config is not None, parallel.tensor_parallel_size, get_tensor_model_parallel_rank(),
        parallel.pipeline_parallel_size, parallel.rank, parallel.data_parallel_size, parallel.enable_expert_parallel, prefix,
    )  # fmt: skip
    return cache.open_session(Path(folder), cache.files_of(model), factors)
