"""
vLLM's sampler without a sort of the vocabulary. Written for the version below: in any other nothing is changed.

There is no extension point for these functions.
"""

import logging

import torch
import vllm
from torch import Tensor
from vllm.v1.sample.ops import topk_topp_sampler
from vllm.v1.sample.sampler import Sampler

from axiond.kernels import active, small

WRITTEN_FOR = "0.32."
_log = logging.getLogger("vllm.axiond")
_stock_top_k_top_p = topk_topp_sampler.apply_top_k_top_p_pytorch


def install() -> None:
    """Patch this process. Calling it again changes nothing."""
    if not vllm.__version__.startswith(WRITTEN_FOR):
        _log.warning("axiond speeds up the sampler of vLLM %sx, this is %s: it runs as it is", WRITTEN_FOR, vllm.__version__)
        return
    topk_topp_sampler.apply_top_k_top_p_pytorch = top_k_top_p
    Sampler.greedy_sample = staticmethod(greedy_sample)
    Sampler.compute_logprobs = staticmethod(compute_logprobs)
    active.took("sampler")


def top_k_top_p(logits: Tensor, k: Tensor | None, p: Tensor | None, allow_cpu_sync: bool = False) -> Tensor:
    if logits.dtype != torch.float32 or logits.dim() != 2 or logits.stride(1) != 1:
        return _stock_top_k_top_p(logits, k, p, allow_cpu_sync)
    return small.top_k_top_p_(logits, k, p)


def greedy_sample(logits: Tensor) -> Tensor:
    return small.argmax(logits)


def compute_logprobs(logits: Tensor) -> Tensor:
    return small.log_softmax(logits.float())
