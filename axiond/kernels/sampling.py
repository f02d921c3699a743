"""vLLM's sampler without a sort of the vocabulary. There is no extension point for these functions."""

import torch
from torch import Tensor
from vllm.v1.sample.ops import topk_topp_sampler
from vllm.v1.sample.sampler import Sampler

from axiond.kernels import active, small

_stock_top_k_top_p = topk_topp_sampler.apply_top_k_top_p_pytorch


def install() -> None:
    """Patch this process. Calling it again changes nothing."""
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
