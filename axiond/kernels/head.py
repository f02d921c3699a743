"""
The output layer: by default with 8-bit weights, which halves what decoding reads for it.

The few highest logits of each row are computed again with the table as it was. So the likeliest token is the one that the
table means, and what is rounded is the tail of the distribution.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from vllm.config import get_current_vllm_config_or_none
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from axiond.kernels import active, cache, plain
from axiond.kernels.rounding import INT4_GROUP, round_int4
from axiond.kernels.settings import LmHead

WHAT = "lm_head"
PACKED = "_axiond_rhs"
AGAIN = 32  # with 8-bit weights 8 are enough, and 16 with 4-bit ones, that SmolLM2's greedy answers are its own
ROWS_AT_A_TIME = 64


def take(layer: VocabParallelEmbedding, bits: LmHead, stock: Callable[[], None]) -> None:
    """
    Make a vocabulary's table ready for products, with *stock* if there is a reason.

    Most tables are only looked up in, and vLLM does not say which: they stay as they are until the first product.
    """
    if not (isinstance(layer, ParallelLMHead) or is_tied(layer)):
        layer.cpu_linear = lambda x, weight, bias: _first(layer, bits, stock, x, bias)
    else:
        _prepare(layer, bits, stock)


def is_tied(layer: VocabParallelEmbedding) -> bool:
    """Whether the model multiplies by this table, in which it looks words up."""
    config = get_current_vllm_config_or_none()
    if config is None or config.model_config is None or config.model_config.runner_type != "generate":
        return False
    hf_config = config.model_config.hf_text_config
    return getattr(hf_config, "tie_word_embeddings", False) and getattr(hf_config, "hidden_size", 0) == layer.embedding_dim


def _first(layer: Module, bits: LmHead, stock: Callable[[], None], x: Tensor, bias: Tensor | None) -> Tensor:
    _prepare(layer, bits, stock)
    found: Tensor = layer.cpu_linear(x, layer.weight, bias)
    return found


def _prepare(layer: Module, bits: LmHead, stock: Callable[[], None]) -> None:
    if bits == "none":
        stock()
        return
    if reason := reason_against(layer.weight):
        active.left(WHAT, reason)
        stock()
        return
    ops = active.native()
    assert ops
    # A table and an output layer that are tied hold the same parameter.
    if (rhs := getattr(layer.weight, PACKED, None)) is None:
        rhs = cache.packed(layer, (), lambda: pack(ops, layer.weight.data, bits))
        setattr(layer.weight, PACKED, rhs)
        active.took(f"{WHAT} {bits}")
    linear, words = ops.linear, layer.shard_indices.num_org_elements
    layer.cpu_linear = lambda x, table, bias: sharpened(linear(x, rhs, bias), x, table, bias, words)


def sharpened(logits: Tensor, x: Tensor, table: Tensor, bias: Tensor | None, words: int) -> Tensor:
    """
    Replace the highest logits of each row by exact ones.

    Args:
        logits: shape (m, n); changed.
        x: shape (m, k), dtype of *logits*.
        table: shape (n, k), dtype of *logits*.
        bias: shape (n,).
        words: rows of the table before its padding, whose zeros are higher than the logits of some models.

    Returns:
        *logits*.
    """
    for some, rows in zip(logits[:, :words].split(ROWS_AT_A_TIME), x.split(ROWS_AT_A_TIME), strict=True):
        highest = some.topk(min(AGAIN, some.shape[1]), sorted=False).indices
        exact = torch.bmm(table[highest], rows.unsqueeze(-1)).squeeze(-1)
        some.scatter_(1, highest, exact if bias is None else exact + bias[highest])
    return logits


def reason_against(weight: Tensor) -> str | None:
    if reason := plain.unsuitable(weight, torch.bfloat16, torch.float16):
        return reason
    config = get_current_vllm_config_or_none()
    if config and config.lora_config:
        return "LoRA adapters are enabled"
    return plain.stock_is_better("lm_head int8")


def pack(ops: Any, weight: Tensor, bits: LmHead) -> Any:
    """Round a table of shape (n, k) and pack it."""
    if bits == "int8":
        return ops.round_q8(weight, ops.largest_group(weight.shape[1]))
    return ops.pack_q4(*round_int4(weight), None, INT4_GROUP)
