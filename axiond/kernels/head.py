"""The output layer: by default with 8-bit weights, which halves what decoding reads for it."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from vllm.config import get_current_vllm_config_or_none
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from axiond.kernels import active, plain
from axiond.kernels.settings import LmHead

WHAT = "lm_head"
ROWS = 8192  # rounded at a time: a large vocabulary in float32 takes gigabytes
PACKED = "_axiond_rhs"


def take(layer: VocabParallelEmbedding, bits: LmHead, stock: Callable[[], None], remove_weight: bool) -> None:
    """
    Make a vocabulary's table ready for products, with *stock* if there is a reason.

    Most tables are only looked up in, and vLLM does not say which: they stay as they are until the first product.
    """
    if not (isinstance(layer, ParallelLMHead) or is_tied(layer)):
        layer.cpu_linear = lambda x, weight, bias: _first(layer, bits, stock, x, bias)
    else:
        _prepare(layer, bits, stock, remove_weight)


def is_tied(layer: VocabParallelEmbedding) -> bool:
    """Whether the model multiplies by this table, in which it looks words up."""
    config = get_current_vllm_config_or_none()
    if config is None or config.model_config is None or config.model_config.runner_type != "generate":
        return False
    hf_config = config.model_config.hf_text_config
    return getattr(hf_config, "tie_word_embeddings", False) and getattr(hf_config, "hidden_size", 0) == layer.embedding_dim


def _first(layer: Module, bits: LmHead, stock: Callable[[], None], x: Tensor, bias: Tensor | None) -> Tensor:
    _prepare(layer, bits, stock, remove_weight=False)
    found: Tensor = layer.cpu_linear(x, layer.weight, bias)
    return found


def _prepare(layer: Module, bits: LmHead, stock: Callable[[], None], remove_weight: bool) -> None:
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
        rhs = pack(ops, layer.weight.data, bits)
        setattr(layer.weight, PACKED, rhs)
        active.took(f"{WHAT} {bits}")
    linear = ops.linear
    layer.cpu_linear = lambda x, _weight, bias: linear(x, rhs, bias)
    if remove_weight:
        plain.drop_weight(layer)


def reason_against(weight: Tensor) -> str | None:
    if active.native() is None:
        return "axiond's kernels could not be loaded"
    if weight.dtype not in (torch.bfloat16, torch.float16):
        return f"its weights are {weight.dtype}"
    if weight.shape[1] % 32:
        return f"its {weight.shape[1]} inputs are no multiple of 32"
    config = get_current_vllm_config_or_none()
    if config and config.lora_config:
        return "LoRA adapters are enabled"
    return plain.stock_is_better("lm_head int8")


def pack(ops: Any, weight: Tensor, bits: LmHead) -> Any:
    """Round a table of shape (n, k) and pack it."""
    if bits == "int8":
        q, scales = _concatenated(round_int8(rows) for rows in weight.split(ROWS))
        return ops.pack_q8(q, scales, ops.largest_group(weight.shape[1]))
    q, scales = _concatenated(round_int4(rows, INT4_GROUP) for rows in weight.split(ROWS))
    return ops.pack_q4(q, scales, None, INT4_GROUP)


INT4_GROUP = 32


def round_int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """To -127..127 with a scale for each row."""
    rows = rows.float()
    scales = rows.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
    return (rows / scales[:, None]).round().clamp(-127, 127).to(torch.int8), scales


def round_int4(rows: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """To 0..15, 8 for zero, with a float16 scale for each *group* of a row."""
    grouped = rows.float().unflatten(1, (-1, group))
    largest = torch.maximum(grouped.amax(-1) / 7, grouped.amin(-1) / -8)
    scales = largest.clamp_min(2**-24).half()
    return ((grouped / scales[..., None].float()).round() + 8).clamp(0, 15).to(torch.uint8).flatten(1), scales


def _concatenated(parts: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    q, scales = zip(*parts, strict=True)
    return torch.cat(q), torch.cat(scales)
